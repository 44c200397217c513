"""Start the endpoint, change its versions and weights while it runs, and stop it.

Everything goes through Ray Serve's config deployment: a change of `user_config` alone reaches the replicas that run in a fraction
of a second and restarts none of them, and a replica that comes later starts with the same. Any driver on the cluster can do it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from raymlp.config.schema import Config
from raymlp.config.serve import Serve
from raymlp.core.errors import ServingError, VersionRefused
from raymlp.core.records import Endpoint, Version
from raymlp.runtime.ingress import has_fast_path
from raymlp.runtime.ports import port_is_free, who_listens
from raymlp.serve.apart import application_names, belongs_to
from raymlp.serve.application import application_of, loading_of, log_folder, user_config_of, version_application_of
from raymlp.serve.controller import (
    CHANGE_S,
    applications,
    apply,
    grpc_port,
    reports_of,
    serve_client,
    start_serve,
    stop_serve,
    undeclare,
    until,
    wait_for_revision,
    wait_ready,
    wait_running,
)
from raymlp.serve.counts import stop_counts
from raymlp.serve.fitting import bytes_of, too_large
from raymlp.serve.keys import ApiKey, given_keys, read_keys
from raymlp.serve.probe import probe, start_probe
from raymlp.serve.routing import check_weights
from raymlp.serve.tokens import require_library

API_KEYS = "RAYMLP_API_KEYS"
logger = logging.getLogger(__name__)


def deploy(config: Config, champion: Version) -> Endpoint:
    """Serve `champion` alone at config.serve.host and port; returns when it answers. A running endpoint of the name is replaced.

    Ray must be initialised. Raises ServingError when a key, the port or HAProxy is missing, when the bundle does not answer a
    sample in a process of its own, or when the endpoint does not get ready.
    """
    name, settings = config.problem.name, config.serve
    keys = keys_of(settings)
    fast = has_fast_path(settings.ingress)
    running = serve_client()
    _check_address(settings, running)
    probing = start_probe(champion, loading_of(config))
    if not fast:
        logger.warning(
            "the endpoint runs behind Ray Serve's own proxy: expect about a twentieth of HAProxy's requests per second, and some that fail "
            "when a replica dies"
        )
    client = running or start_serve(config, fast=fast)
    versions, weights = {champion.label: champion.bundle}, {champion.label: 1.0}
    apart = application_names(name, versions) if settings.placement == "apart" else {}
    application = application_of(config, user_config_of(versions, weights, apart=apart), keys)
    endpoint = _endpoint(config, name, {champion.label: 1.0})
    try:
        probing()
        if apart:
            _put_apart(client, config, versions)
        apply(client, application)
        wait_running(client, name)
        wait_ready(endpoint.url)
        wait_for_revision(client, application)
        _clear_away(client, name, keep=apart.values())
    except ServingError:
        if running is None:
            stop_serve()
        raise
    return endpoint


def set_versions(
    config: Config,
    endpoint: Endpoint | str,
    versions: Mapping[str, str],
    weights: Mapping[str, float],
    *,
    salt: str = "",
    fence: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Endpoint:
    """Give the endpoint these versions (label to bundle path, the champion first) and shares of traffic, without a restart. `salt`
    deals the keys: the same one throughout a rollout, another one for the next. Inside `fence` the change is sent: it raises for one
    who may not make it any more.

    A version that is new to the endpoint is first probed in a process of its own. Returns when every replica has the change.
    Raises ServingError, with nothing changed, for weights that do not sum to one or a name that is not deployed, and VersionRefused for a
    bundle that fails its probe; and when a replica cannot load a version after all, whose share the champion then keeps.
    """
    name = endpoint if isinstance(endpoint, str) else endpoint.name
    if not versions or set(weights) != set(versions):
        raise ServingError(
            f"versions are {', '.join(versions) or 'none'} and weights name {', '.join(weights) or 'none'}; expected the same."
        )
    check_weights(next(iter(versions)), weights)
    client = serve_client()
    known = application_named(client, name)
    current, loading = known.deployments[0].user_config, known.args["loading"]
    new = {label: path for label, path in versions.items() if current["versions"].get(label) != path}
    apart = application_names(name, dict(versions)) if current.get("apart") else {}
    for label, path in new.items():
        try_out(name, Version(label, path), loading, beside=not apart)
    if apart:
        _put_apart(client, config, new)
    changed = application_named(client, name).model_copy(deep=True)  # once more: a shadow may have come or gone while versions were tried
    shadow = changed.deployments[0].user_config.get("shadow")
    changed.deployments[0].user_config = user_config_of(versions, weights, salt, apart=apart, shadow=shadow)
    with fence():
        apply(client, changed)
    reports = wait_for_revision(client, changed)
    with fence():
        _clear_away(client, name, keep=apart.values())
    found = {item for report in reports for item in report["problems"].items() if item[0] in versions}  # a shadow's are none of ours
    left_out = sorted(f"{label}: {problem}" for label, problem in found)
    if left_out:
        raise VersionRefused(f"{name} could not take over every version, and keeps what works: {'; '.join(left_out)}")
    return _endpoint(config, name, weights)


def declared(name: str) -> dict[str, Any]:
    """What the endpoint was last told to serve: `versions`, `weights`, `champion`, `salt`. Raises ServingError where it is not deployed."""
    return dict(application_named(serve_client(), name).deployments[0].user_config)


def application_named(client: Any, name: str) -> Any:
    """An endpoint's application as it is declared. Raises ServingError where it is not deployed."""
    known = applications(client)
    if name not in known:
        raise ServingError(f"{name} is not deployed; expected one of: {', '.join(known) or 'none'}. Deploy it first.")
    return known[name]


def undeploy(name: str) -> None:
    """Stop the endpoint; its replicas finish their requests and write their logs first. Nothing happens when it is not there."""
    client = serve_client()
    if client is None:
        return
    running = {app.name for app in client.list_serve_statuses()}
    own = {app for app in running if belongs_to(app, name)}
    if not own:
        return
    stop_counts(name)
    if running - own:
        undeclare(client, *own)
        until(lambda: not own & {app.name for app in client.list_serve_statuses()}, CHANGE_S, f"{name} is still being stopped")
    else:
        stop_serve()


def status(name: str) -> dict[str, Any]:
    """`state` as Ray Serve names it (NOT_STARTED when absent) with its `message`, and one report
    for each replica that answers."""
    client = serve_client()
    found = client.get_serve_status(name).app_status if client else None
    state = found.status.value if found else "NOT_STARTED"
    reports = reports_of(name) if state in ("RUNNING", "DEPLOYING", "UNHEALTHY") else []
    answered = [report for report in reports if report]
    return {"name": name, "state": state, "message": found.message if found else "", "replicas": answered}


def problems(name: str) -> dict[str, str]:
    """Versions that a replica was given and does not serve, each with the reason."""
    return {label: problem for report in reports_of(name) if report for label, problem in report["problems"].items()}


def _put_apart(client: Any, config: Config, versions: Mapping[str, str]) -> None:
    """Start versions that stand apart, and wait for them. Raises VersionRefused, with none of them left, when one does not start."""
    started = [version_application_of(config, label, path) for label, path in versions.items()]
    try:
        for application in started:
            apply(client, application)
        for application in started:
            wait_running(client, application.name)
    except ServingError as error:
        undeclare(client, *(application.name for application in started))
        raise VersionRefused(str(error)) from error


def _clear_away(client: Any, name: str, *, keep: Iterable[str]) -> None:
    """Stop versions that stand apart and that the endpoint has no more."""
    left = {app for app in applications(client) if app != name and belongs_to(app, name)} - set(keep)
    undeclare(client, *left)


def try_out(name: str, version: Version, loading: Mapping[str, Any], *, beside: bool = True) -> None:
    """Probe a version that is new to the endpoint in a process of its own, as its replicas will load it. Raises VersionRefused when it
    fails, or does not fit into the memory `beside` those that are there."""
    grown = probe(version, loading).grown_bytes
    reports = [report for report in reports_of(name) if report] if beside else []
    if problem := too_large(version.label, bundle_bytes=bytes_of(version.bundle), measured_bytes=grown, reports=reports):
        raise VersionRefused(f"{problem}. Nothing was changed.")


def keys_of(settings: Serve) -> list[ApiKey]:
    """The keys of the environment; those of `serve.keys_file` are read by the replicas. Raises ServingError when there is none at all,
    and no tokens either."""
    if settings.auth == "none":
        return []
    if settings.jwt is not None:
        require_library()
    given = given_keys(os.environ.get(API_KEYS, ""))
    filed = read_keys(Path(settings.keys_file)).keys if settings.keys_file else ()
    if not (*given, *filed) and settings.jwt is None:
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
        if settings.grpc_port != (grpc := grpc_port(client)):
            raise ServingError(
                f"serve.grpc_port is {settings.grpc_port}, and Ray Serve runs with {grpc}; expected the same. Undeploy first, or set "
                "serve.grpc_port."
            )
    elif not port_is_free(settings.host, settings.port):
        raise ServingError(f"{where} {_taken(settings.port)}; expected a free port of this machine. Set serve.port or serve.host.")
    elif settings.grpc_port is not None and not port_is_free(settings.host, settings.grpc_port):
        raise ServingError(f"port {settings.grpc_port} {_taken(settings.grpc_port)}; expected a free port. Set serve.grpc_port.")


def _taken(port: int) -> str:
    """Why a port cannot be had. HAProxy outlives a local Ray that was killed with SIGKILL, and still has the endpoint's port."""
    listener = who_listens(port)
    left = " (left by an endpoint that was killed? Then end that process)" if listener.startswith("haproxy") else ""
    return f"is taken by {listener}{left}" if listener else "cannot be listened on"


def _endpoint(config: Config, name: str, weights: Mapping[str, float]) -> Endpoint:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(config.serve.host, config.serve.host)  # noqa: S104 (read, not bound)
    return Endpoint(name, f"{config.serve.scheme}://{host}:{config.serve.port}", dict(weights), log_folder(config, name))
