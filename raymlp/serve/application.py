"""What Ray Serve is told of an endpoint: the application with its deployment, and the part of it that changes while it runs."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymlp.config.schema import Config
from raymlp.runtime.session import storage_root
from raymlp.serve.fallback import Fallback
from raymlp.serve.keys import ApiKey
from raymlp.serve.probe import trust
from raymlp.serve.unwatched import VARIABLE

DEPLOYMENT = "model"


def application_of(config: Config, user_config: dict[str, Any], keys: list[ApiKey]) -> Any:
    """The application of the config's endpoint, with these versions and weights (see `user_config_of`)."""
    from ray.serve.schema import DeploymentSchema, ServeApplicationSchema

    settings = config.serve
    bundle = user_config["versions"][user_config["champion"]]
    args = {
        "name": config.problem.name,
        "keys": [key.model_dump(mode="json") for key in keys],
        "keys_file": str(Path(settings.keys_file).absolute()) if settings.keys_file else None,
        "needs_key": settings.auth == "key",
        "max_rows": settings.max_rows_per_request,
        "log_folder": str(log_folder(config, config.problem.name)),
        "log": settings.log.model_dump(),
        "loading": {"runtime": settings.runtime, "graphs": str(graphs_folder(config)), "batching": settings.batching},
        "protocols": ["rest-v1", "arrow", "open-inference-rest", *(["open-inference-grpc"] if settings.grpc_port else [])],
        "fallback": Fallback.of(settings.fallback, bundle).facts() if settings.fallback else None,
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


def user_config_of(versions: Mapping[str, str], weights: Mapping[str, float], salt: str = "") -> dict[str, Any]:
    """What `ModelServer.reconfigure` gets; the first version is the champion. Every call is a revision of its own."""
    champion = next(iter(versions))
    return {
        "versions": dict(versions),
        "weights": {label: float(share) for label, share in weights.items()},
        "champion": champion,
        "salt": salt,
        "revision": uuid.uuid4().hex,
    }


def log_folder(config: Config, name: str) -> Path:
    """Where an endpoint's replicas write their prediction log."""
    return storage_root(config.runtime) / "predictions" / name


def graphs_folder(config: Config) -> Path:
    """Where the graphs of nets for ONNX Runtime lie, one folder a bundle."""
    return storage_root(config.runtime) / "graphs"


def _runtime_env() -> dict[str, Any]:
    """The code of this job for the replicas, and what they may trust. The deployment's number makes a new deploy of changed settings
    a new version for Ray Serve, which looks at the import path and this alone."""
    import ray

    job = ray.get_runtime_context().runtime_env
    code = {part: job[part] for part in ("working_dir", "py_modules") if job.get(part)}
    unwatched = {name: value for name, value in VARIABLE.items() if name not in os.environ}
    return {**code, "env_vars": {"RAYMLP_DEPLOYMENT": uuid.uuid4().hex, **trust(), **unwatched}}
