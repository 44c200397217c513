"""The endpoint of a problem: put up, taken down, what it has answered."""

from __future__ import annotations

import os
import re
from datetime import datetime
from typing import TYPE_CHECKING

from raymlp.config.schema import Config
from raymlp.core.errors import ConfigError
from raymlp.core.files import Place
from raymlp.core.records import Endpoint
from raymlp.pipeline.driver import label_folder
from raymlp.pipeline.models import resolve, store_of
from raymlp.runtime.audit import record
from raymlp.runtime.progress import SilentStory, Story

if TYPE_CHECKING:
    import pyarrow as pa


def deploy(config: Config, model: str | Place = "", *, with_driver: bool = True, story: Story | None = None) -> Endpoint:
    """Serve a bundle, or `NAME@ALIAS` from the registry (the problem's champion by default). Needs a Ray session to stay.

    `with_driver` starts the process that drives the endpoint's rollouts as well, which takes up one that is open."""
    from raymlp.pipeline.driver_actor import start_driver
    from raymlp.pipeline.shadows import set_shadow
    from raymlp.serve import deploy as serving

    with (story or SilentStory()).step("deploy") as step:
        step.say("starting replicas")
        version = resolve(config, model or config.serve.model)
        follows = config.serve.rollout.follow_registry_s is not None
        if follows and not re.fullmatch(r"v\d+", version.label):
            raise ConfigError(
                f"serve.rollout.follow_registry_s is set and {model or config.serve.model} is not of the registry; expected NAME@ALIAS. "
                "Register the bundle, or set follow_registry_s to null."
            )
        secret = webhook_secret(config) if config.serve.rollout.webhook else ""
        endpoint = serving.deploy(config, version)
        record(config.runtime, "deploy", model=endpoint.name, version=version.label, url=endpoint.url)
        if config.serve.shadow.model:
            set_shadow(config)
        if with_driver:
            start_driver(config)
        if secret:
            url = f"{str(config.serve.rollout.webhook).rstrip('/')}/v1/models/{endpoint.name}:registry"
            store_of(config).tell_of_aliases(endpoint.name, url, secret)
        step.result(f"{endpoint.url} serves {', '.join(endpoint.weights)}")
    return endpoint


def webhook_secret(config: Config) -> str:
    """The secret that MLflow and the endpoint share. Raises ConfigError without one, or without a tracking server, which alone sends."""
    from raymlp.serve.webhook import SHARED

    if not (config.registry.tracking_uri or "").startswith(("http://", "https://")):
        raise ConfigError(
            f"serve.rollout.webhook is set and registry.tracking_uri is {config.registry.tracking_uri}; expected an MLflow server, which "
            "alone sends messages. Set registry.tracking_uri, or serve.rollout.webhook to null."
        )
    if not (secret := os.environ.get(SHARED, "")):
        raise ConfigError(f"serve.rollout.webhook is set and {SHARED} is not; expected a secret there, and the same for the replicas.")
    return secret


def undeploy(config: Config) -> None:
    """Stop the endpoint of the problem, and what drives its rollouts: one that is open is taken up by the next deploy."""
    from raymlp.pipeline.driver_actor import stop_driver
    from raymlp.serve import deploy as serving

    stop_driver(config.problem.name)
    serving.undeploy(config.problem.name)
    record(config.runtime, "undeploy", model=config.problem.name, version="")
    if config.serve.rollout.webhook:  # last: a registry that is away keeps nothing running
        store_of(config).tell_no_more(config.problem.name)


def prediction_log(config: Config, *, version: str | None = None, since: datetime | None = None) -> pa.Table:
    """Rows of the prediction log, of one version or of all, from a moment on."""
    import pyarrow.compute as pc

    from raymlp.serve.application import log_folder
    from raymlp.serve.log import read_log

    log = read_log(log_folder(config, config.problem.name), since=since)
    if version is not None:
        log = log.filter(pc.equal(log.column("version"), version))
    return log.filter(pc.greater_equal(log.column("time"), since)) if since else log


def labels(config: Config) -> pa.Table | None:
    """True answers that have come: `prediction_id` and `label`, the raw value of the target column, and what else the files hold; null
    where a file does not have a column. None without files."""
    from raymlp.data.labels import read_labels

    return read_labels(label_folder(config))
