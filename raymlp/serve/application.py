"""What Ray Serve is told of an endpoint: the application with its deployment, and the part of it that changes while it runs."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymlp.config.access import Access
from raymlp.config.privacy import Rule
from raymlp.config.schema import Config
from raymlp.config.serve import Serve
from raymlp.core.files import Place
from raymlp.runtime.session import storage_root
from raymlp.serve.apart import application_name
from raymlp.serve.fallback import Fallback
from raymlp.serve.keys import ApiKey
from raymlp.serve.probe import code, trust
from raymlp.serve.unwatched import VARIABLE

DEPLOYMENT = "model"
VERSION_DEPLOYMENT = "version"

QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""What replicas log; what Serve's controller was started with does not reach them, and a line for each request costs time."""

RETRY_AFTER_S = 1
"""Seconds after which a client that met a full queue may try again."""


def application_of(config: Config, user_config: dict[str, Any], keys: list[ApiKey], *, runtime_env: dict[str, Any] | None = None) -> Any:
    """The application of the config's endpoint, with these versions and weights (see `user_config_of`). `runtime_env` stands for the code
    of this job, where there is no Ray to ask."""
    from ray.serve.schema import ServeApplicationSchema

    settings = config.serve
    bundle = user_config["versions"][user_config["champion"]]
    args = {
        "name": config.problem.name,
        "keys": [key.model_dump(mode="json") for key in keys],
        "keys_file": str(Path(settings.keys_file).absolute()) if settings.keys_file else None,
        "needs_key": settings.auth == "key",
        "max_rows": settings.max_rows_per_request,
        "log_folder": str(log_folder(config, config.problem.name)),
        "shadow_folder": str(shadow_folder(config, config.problem.name)),
        "log": settings.log.model_dump(),
        "label_folder": str(label_folder(config, config.problem.name)),
        "label_rule": _plain(config.data.privacy.columns.get(str(config.problem.answer))),
        "access": settings.model_dump(mode="json", include=set(Access.model_fields)),
        "max_replicas": settings.replicas.max_replicas,
        "stand_in": settings.stand_in == "champion",
        "loading": {**loading_of(config), "timeout_s": settings.version_timeout_s},
        "protocols": ["rest-v1", "arrow", "open-inference-rest", *(["open-inference-grpc"] if settings.grpc_port else [])],
        "fallback": Fallback.of(settings.fallback, bundle).facts() if settings.fallback else None,
    }
    return ServeApplicationSchema(
        name=config.problem.name,
        route_prefix="/",
        import_path="raymlp.serve.app:application",
        args=args,
        runtime_env=_runtime_env() if runtime_env is None else runtime_env,
        logging_config=QUIET,
        deployments=[_deployment(settings, DEPLOYMENT, user_config=user_config)],
    )


def _plain(rule: Rule | None) -> dict[str, Any] | None:
    return rule.model_dump(mode="json") if rule is not None else None


def version_application_of(config: Config, label: str, path: str) -> Any:
    """The application of a version that stands apart: no route, so that nobody but the endpoint's replicas can ask it."""
    from ray.serve.schema import ServeApplicationSchema

    return ServeApplicationSchema(
        name=application_name(config.problem.name, label, path),
        route_prefix=None,
        import_path="raymlp.serve.version_app:application",
        args={"label": label, "path": path, **loading_of(config)},
        runtime_env=_runtime_env(),
        logging_config=QUIET,
        deployments=[_deployment(config.serve, VERSION_DEPLOYMENT)],
    )


def _deployment(settings: Serve, name: str, **more: Any) -> Any:
    """A deployment as the settings scale it. GPUs go to where the weights are."""
    from ray.serve.schema import DeploymentSchema

    replicas = settings.replicas
    scaling = {
        **replicas.model_dump(exclude={"window_s"}),
        "look_back_period_s": replicas.window_s,
        "metrics_interval_s": replicas.window_s / 10,
    }
    fixed = replicas.min_replicas == replicas.max_replicas
    has_weights = (settings.placement == "apart") == (name == VERSION_DEPLOYMENT)
    gpus = {"num_gpus": settings.num_gpus_per_replica} if has_weights else {}
    return DeploymentSchema(
        name=name,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config={"status_code": 503, "retry_after_s": RETRY_AFTER_S},
        max_surge_percent=100,  # a replica goes when the one that takes its place is ready
        health_check_period_s=1.0,  # a dead replica is known to be dead within it
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=10.0,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, **gpus},
        **({"num_replicas": replicas.max_replicas} if fixed else {"autoscaling_config": scaling}),
        **more,
    )


def device_of(settings: Serve) -> str:
    """Where nets run."""
    return "cuda" if settings.num_gpus_per_replica else "cpu"


def loading_of(config: Config) -> dict[str, str]:
    """How replicas load versions: what `Loaded.load` is given beside a label and a path."""
    settings = config.serve
    return {
        "device": device_of(settings), "runtime": settings.runtime, "graphs": str(graphs_folder(config)), "batching": settings.batching
    }  # fmt: skip


def user_config_of(
    versions: Mapping[str, str],
    weights: Mapping[str, float],
    salt: str = "",
    *,
    apart: Mapping[str, str] | None = None,
    shadow: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `ModelServer.reconfigure` gets; the first version is the champion, which is no `shadow` of itself. Every call is a revision of
    its own. `apart`: the applications of versions by label, where they have some."""
    champion = next(iter(versions))
    return {
        "versions": dict(versions),
        "weights": {label: float(share) for label, share in weights.items()},
        "champion": champion,
        "salt": salt,
        "apart": dict(apart or {}),
        "shadow": dict(shadow) if shadow is not None and shadow["label"] != champion else None,
        "revision": uuid.uuid4().hex,
    }


def log_folder(config: Config, name: str) -> Place:
    """Where an endpoint's replicas write their prediction log."""
    return storage_root(config.runtime) / "predictions" / name


def shadow_folder(config: Config, name: str) -> Place:
    """Where an endpoint's replicas write what their shadow answered."""
    return storage_root(config.runtime) / "shadows" / name


def graphs_folder(config: Config) -> Place:
    """Where the graphs of nets for ONNX Runtime lie, one folder a bundle."""
    return storage_root(config.runtime) / "graphs"


def label_folder(config: Config, name: str) -> Place:
    """Where replicas write the true answers that clients send back, and where others may put theirs."""
    return storage_root(config.runtime) / "labels" / name


def _runtime_env() -> dict[str, Any]:
    """The code of this job for the replicas, and what they may trust. The deployment's number makes a new deploy of changed settings
    a new version for Ray Serve, which looks at the import path and this alone."""
    unwatched = {name: value for name, value in VARIABLE.items() if name not in os.environ}
    return {**code(), "env_vars": {"RAYMLP_DEPLOYMENT": uuid.uuid4().hex, **trust(), **unwatched}}
