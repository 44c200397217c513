"""Start the endpoint, change its versions and weights while it runs, and stop it.

Everything goes through Ray Serve's config deployment: a change of `user_config` alone reaches the replicas that run in a fraction
of a second and restarts none of them, and a replica that comes later starts with the same. Any driver on the cluster can do it.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raymlp.config.schema import Config
from raymlp.config.serve import Serve
from raymlp.core.errors import ServingError
from raymlp.core.records import Endpoint, Version
from raymlp.runtime.ingress import SLOW_PATH, fast_path_environment, has_fast_path, port_is_free, private_folder
from raymlp.runtime.session import quiet, storage_root
from raymlp.serve.keys import ApiKey, given_keys, read_keys
from raymlp.serve.probe import probe, start_probe, trust
from raymlp.serve.routing import check_weights

API_KEYS = "RAYMLP_API_KEYS"
START_S = 180.0
"""The endpoint must be ready within these seconds."""

CHANGE_S = 120.0
"""Every replica must have taken over new versions or weights within these seconds."""

POLL_S = 0.05
DEPLOYMENT = "model"
logger = logging.getLogger(__name__)


def deploy(config: Config, champion: Version) -> Endpoint:
    """Serve `champion` alone at config.serve.host and port; returns when it answers. A running endpoint of the name is replaced.

    Ray must be initialised. Raises ServingError when a key, the port or HAProxy is missing, when the bundle does not answer a
    sample in a process of its own, or when the endpoint does not get ready.
    """
    name, settings = config.problem.name, config.serve
    keys = _keys(settings)
    fast = has_fast_path(settings.ingress)
    running = _client()
    _check_address(settings, running)
    probing = start_probe(champion)
    if not fast:
        logger.warning("the endpoint runs behind Ray Serve's own proxy: expect about a twentieth of HAProxy's requests per second")
    client = running or _start_serve(config, fast=fast)
    application = _application(config, _user_config({champion.label: champion.bundle}, {champion.label: 1.0}), keys)
    endpoint = _endpoint(config, name, {champion.label: 1.0})
    try:
        probing()
        _apply(client, application)
        _wait_running(client, name)
        _wait_ready(endpoint.url)
        _wait_for_revision(client, application)
    except ServingError:
        if running is None:
            _stop_serve()
        raise
    return endpoint


def set_versions(
    config: Config, endpoint: Endpoint | str, versions: Mapping[str, str], weights: Mapping[str, float], *, salt: str = ""
) -> Endpoint:
    """Give the endpoint these versions (label to bundle path, the champion first) and shares of traffic, without a restart. `salt`
    deals the keys: the same one throughout a rollout, another one for the next.

    A version that is new to the endpoint is first probed in a process of its own. Returns when every replica has the change.
    Raises ServingError, with nothing changed, for weights that do not sum to one, a name that is not deployed or a bundle
    that fails its probe; and when a replica cannot load a version after all, whose share the champion then keeps.
    """
    name = endpoint if isinstance(endpoint, str) else endpoint.name
    if not versions or set(weights) != set(versions):
        raise ServingError(
            f"versions are {', '.join(versions) or 'none'} and weights name {', '.join(weights) or 'none'}; expected the same."
        )
    check_weights(next(iter(versions)), weights)
    client = _client()
    applications = _applications(client)
    if client is None or name not in applications:
        raise ServingError(f"{name} is not deployed; expected one of: {', '.join(applications) or 'none'}. Deploy it first.")
    known = applications[name].deployments[0].user_config["versions"]
    for label, path in versions.items():
        if known.get(label) != path:
            probe(Version(label, path))
    changed = applications[name].model_copy(deep=True)
    changed.deployments[0].user_config = _user_config(versions, weights, salt)
    _apply(client, changed)
    reports = _wait_for_revision(client, changed)
    left_out = sorted({f"{label}: {problem}" for report in reports for label, problem in report["problems"].items()})
    if left_out:
        raise ServingError(f"{name} could not take over every version, and keeps what works: {'; '.join(left_out)}")
    return _endpoint(config, name, weights)


def undeploy(name: str) -> None:
    """Stop the endpoint; its replicas finish their requests and write their logs first. Nothing happens when it is not there."""
    client = _client()
    if client is None:
        return
    applications = _applications(client)
    running = {app.name for app in client.list_serve_statuses()}
    if name not in running:
        return
    if running - {name}:
        client.deploy_apps(_schema([app for app in applications.values() if app.name != name]))
        _until(lambda: name not in {app.name for app in client.list_serve_statuses()}, CHANGE_S, f"{name} is still being stopped")
    else:
        _stop_serve()


def status(name: str) -> dict[str, Any]:
    """`state` as Ray Serve names it (NOT_STARTED when absent) with its `message`, and one report
    for each replica that answers."""
    client = _client()
    found = client.get_serve_status(name).app_status if client else None
    state = found.status.value if found else "NOT_STARTED"
    reports = _reports(name) if state in ("RUNNING", "DEPLOYING", "UNHEALTHY") else []
    answered = [report for report in reports if report]
    return {"name": name, "state": state, "message": found.message if found else "", "replicas": answered}


def problems(name: str) -> dict[str, str]:
    """Versions that a replica was given and does not serve, each with the reason."""
    return {label: problem for report in _reports(name) if report for label, problem in report["problems"].items()}


# ---------------------------------------------------------------------- before the start


def _keys(settings: Serve) -> list[ApiKey]:
    """The keys of the environment; those of `serve.keys_file` are read by the replicas. Raises ServingError when there is none at all."""
    if settings.auth == "none":
        return []
    given = given_keys(os.environ.get(API_KEYS, ""))
    filed = read_keys(Path(settings.keys_file)).keys if settings.keys_file else ()
    if not (*given, *filed):
        raise ServingError(
            f"serve.auth is key, {API_KEYS} holds none and serve.keys_file is {settings.keys_file}; expected one or more. Set {API_KEYS}, "
            "or make a file with raymlp keys add NAME and set serve.keys_file."
        )
    return list(given)


def _check_address(settings: Serve, client: Any) -> None:
    where = f"{settings.host}:{settings.port}"
    if client is not None:
        current = client.http_config
        if (current.host, current.port) != (settings.host, settings.port):
            raise ServingError(
                f"serve.host and serve.port are {where}, and Ray Serve already listens on {current.host}:{current.port}; "
                "expected the same. Undeploy first, or set serve.port."
            )
    elif not port_is_free(settings.host, settings.port):
        raise ServingError(f"{where} cannot be listened on; expected a free port of this machine. Set serve.port or serve.host.")


def _start_serve(config: Config, *, fast: bool) -> Any:
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    if fast:
        private_folder().mkdir(mode=0o700, exist_ok=True)
    environment = fast_path_environment(config.runtime) if fast else SLOW_PATH
    quiet(config.runtime.verbose)
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=config.serve.host, port=config.serve.port),
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        controller_options={"runtime_env": {"env_vars": environment}},
    )
    return _client()


def _stop_serve() -> None:
    from ray import serve

    serve.shutdown()
    shutil.rmtree(private_folder(), ignore_errors=True)


# ---------------------------------------------------------------------- the application


def _application(config: Config, user_config: dict[str, Any], keys: list[ApiKey]) -> Any:
    from ray.serve.schema import DeploymentSchema, ServeApplicationSchema

    settings = config.serve
    args = {
        "name": config.problem.name,
        "keys": [key.model_dump(mode="json") for key in keys],
        "keys_file": str(Path(settings.keys_file).absolute()) if settings.keys_file else None,
        "needs_key": settings.auth == "key",
        "max_rows": settings.max_rows_per_request,
        "log_folder": str(_log_folder(config, config.problem.name)),
        "log": settings.log.model_dump(),
    }
    scaling = {
        "min_replicas": settings.min_replicas,
        "max_replicas": settings.max_replicas,
        "target_ongoing_requests": settings.target_ongoing_requests,
        "upscale_delay_s": settings.upscale_delay_s,
        "downscale_delay_s": settings.downscale_delay_s,
    }
    fixed = settings.min_replicas == settings.max_replicas
    deployment = DeploymentSchema(
        name=DEPLOYMENT,
        user_config=user_config,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        graceful_shutdown_timeout_s=10.0,
        ray_actor_options={"num_cpus": settings.cpus_per_replica},
        **({"num_replicas": settings.max_replicas} if fixed else {"autoscaling_config": scaling}),
    )
    return ServeApplicationSchema(
        name=config.problem.name,
        route_prefix="/",
        import_path="raymlp.serve.app:application",
        args=args,
        runtime_env=_runtime_env(),
        deployments=[deployment],
    )


def _runtime_env() -> dict[str, Any]:
    """The code of this job for the replicas, and what they may trust. The deployment's number makes a new deploy of changed settings
    a new version for Ray Serve, which looks at the import path and this alone."""
    import ray

    job = ray.get_runtime_context().runtime_env
    code = {part: job[part] for part in ("working_dir", "py_modules") if job.get(part)}
    return {**code, "env_vars": {"RAYMLP_DEPLOYMENT": uuid.uuid4().hex, **trust()}}


def _user_config(versions: Mapping[str, str], weights: Mapping[str, float], salt: str = "") -> dict[str, Any]:
    champion = next(iter(versions))
    return {
        "versions": dict(versions),
        "weights": {label: float(share) for label, share in weights.items()},
        "champion": champion,
        "salt": salt,
        "revision": uuid.uuid4().hex,
    }


def _apply(client: Any, application: Any) -> None:
    """Declare the application beside the others that are declared: one left out would be deleted."""
    others = [app for app in _applications(client).values() if app.name != application.name]
    client.deploy_apps(_schema([*others, application]))


def _schema(applications: list[Any]) -> Any:
    from ray.serve.schema import ServeDeploySchema

    return ServeDeploySchema(applications=applications)


def _applications(client: Any) -> dict[str, Any]:
    """Declared applications by name, as Ray Serve's controller keeps them."""
    import ray

    if client is None:
        return {}
    alive = {app.name for app in client.list_serve_statuses()}
    configs: dict[str, Any] = ray.get(client._controller.get_app_configs.remote())
    return {name: config for name, config in configs.items() if name in alive}


def _client() -> Any:
    """The client of the cluster's Serve controller; None when Serve does not run. Raises ServingError without Ray."""
    import ray
    from ray.serve.context import _get_global_client

    if not ray.is_initialized():
        raise ServingError("Ray is not running; expected a session. Use raymlp.runtime.session.ray_session, or ray.init.")
    return _get_global_client(raise_if_no_controller_running=False)


# ---------------------------------------------------------------------- waiting


def _wait_running(client: Any, name: str) -> None:
    def is_running() -> bool:
        found = client.get_serve_status(name)
        state, message = found.app_status.status.value, found.app_status.message
        if state in ("DEPLOY_FAILED", "UNHEALTHY"):
            details = "; ".join(deployment.message for deployment in found.deployment_statuses if deployment.message)
            raise ServingError(f"{name} did not start: {_tail(details or message)}")
        return bool(state == "RUNNING")

    _until(is_running, START_S, f"{name} is not running")


def _wait_ready(url: str) -> None:
    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:  # noqa: S310 (always http)
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    _until(is_ready, START_S, f"{url}/readyz does not answer 200")


def _wait_for_revision(client: Any, application: Any) -> list[dict[str, Any]]:
    """The replicas' reports, once all of them have the application's revision."""
    name, deployment = application.name, application.deployments[0]
    may_be_empty = isinstance(deployment.autoscaling_config, dict) and deployment.autoscaling_config["min_replicas"] == 0
    reports: list[dict[str, Any]] = []

    def all_have_it() -> bool:
        if any(part.status.value != "HEALTHY" for part in client.get_serve_status(name).deployment_statuses):
            return False
        answers = _reports(name)
        reports[:] = [report for report in answers if report and report.get("revision") == deployment.user_config["revision"]]
        return len(reports) == len(answers) and bool(reports or may_be_empty)

    _until(all_have_it, CHANGE_S, f"not every replica of {name} has the new versions")
    return reports


def _reports(name: str) -> list[dict[str, Any] | None]:
    """What each running replica says it serves, None for one that does not answer; empty while there is none."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        answers = serve.get_app_handle(name).broadcast("report").results(timeout_s=CHANGE_S, return_exceptions=True)
    except RayServeException:
        return []
    return [answer if isinstance(answer, dict) else None for answer in answers]


def _until(is_done: Callable[[], bool], limit_s: float, problem: str) -> None:
    deadline = time.monotonic() + limit_s
    while not is_done():
        if time.monotonic() > deadline:
            raise ServingError(f"{problem} after {limit_s:g} s; expected it sooner. Look at Ray Serve's logs.")
        time.sleep(POLL_S)


def _tail(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason was given; look at Ray Serve's logs"


def _endpoint(config: Config, name: str, weights: Mapping[str, float]) -> Endpoint:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(config.serve.host, config.serve.host)  # noqa: S104 (read, not bound)
    return Endpoint(name, f"http://{host}:{config.serve.port}", dict(weights), _log_folder(config, name))


def _log_folder(config: Config, name: str) -> Path:
    return storage_root(config.runtime) / "predictions" / name
