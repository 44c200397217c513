"""The process that drives an endpoint's rollouts: a Ray actor with a name, which belongs to no job and is started again when it dies.

It keeps nothing that is not on storage. Its name makes it one on a cluster, and the lease one on the storage.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

from raymlp.config.schema import Config
from raymlp.pipeline.driver import Driver
from raymlp.pipeline.exclusive import rollout_folder
from raymlp.runtime.session import storage_root
from raymlp.serve.counts import NAMESPACE
from raymlp.serve.rollout.lease import Lost, lease_of
from raymlp.serve.webhook import driver_name

TICK_S = 0.5
"""Seconds between two looks at the orders."""

STOP_S = 30.0
"""A driver that is stopped is gone by then."""

log = logging.getLogger(__name__)


class RolloutDriver:
    """Drives from the moment it is there until it is killed, in a thread of its own."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._config = Config.model_validate(settings)
        self._moved = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def pid(self) -> int:
        """The number of this process."""
        return os.getpid()

    def registry_moved(self) -> None:
        """An alias was moved: look at the registry now."""
        self._moved.set()

    def _run(self) -> None:
        lease = lease_of(rollout_folder(self._config))
        while True:
            try:
                if lease.take():
                    driver = Driver(self._config, lease)
                    while True:
                        driver.look()
                        if self._moved.wait(TICK_S):
                            self._moved.clear()
                            driver.look_at_registry()
            except Lost as error:
                log.warning("%s", error)
            except Exception as error:
                log.warning("the rollouts of %s wait: %s: %s", self._config.problem.name, type(error).__name__, error)
            lease.release()
            time.sleep(TICK_S)


def start_driver(config: Config) -> None:
    """Have the cluster drive the rollouts of the config's problem, with these settings; one that does already is replaced. Needs Ray."""
    import ray

    from raymlp.serve.probe import code, trust

    stop_driver(config.problem.name)
    placed = config.runtime.model_copy(update={"storage": str(storage_root(config.runtime))})
    settings = config.model_copy(update={"runtime": placed}).model_dump(mode="json")
    # Its calls to the replicas come from a thread without an event loop.
    environment = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1", **trust()}
    ray.remote(RolloutDriver).options(
        name=driver_name(config.problem.name),
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        num_cpus=0,
        runtime_env={**code(), "env_vars": environment},
    ).remote(settings)


def stop_driver(name: str) -> None:
    """End the process that drives a model's rollouts; an open one waits for the next. Nothing happens when there is none."""
    import ray

    deadline = time.monotonic() + STOP_S
    while (actor := _actor(name)) is not None and time.monotonic() < deadline:
        ray.kill(actor, no_restart=True)
        time.sleep(0.05)


def _actor(name: str) -> Any:
    import ray

    try:
        return ray.get_actor(driver_name(name), namespace=NAMESPACE)
    except ValueError:
        return None
