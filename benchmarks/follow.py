"""Seconds from moving an alias in the registry to the first response by the version it was moved to.

    python benchmarks/follow.py artifacts/runs/RUN/bundle
    python benchmarks/follow.py artifacts/runs/RUN/bundle --moves 20 --poll 0.2

Registers the bundle several times in a registry of its own, serves it on a local Ray, and moves `challenger` (half of the keys go to it)
and `champion` in turn, while a client asks with another key each time. Requests that were not answered with 200 are counted.
"""

from __future__ import annotations

import argparse
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from raymlp import pipeline
from raymlp.config.schema import Config
from raymlp.core.records import Endpoint
from raymlp.model.bundle import load_bundle
from raymlp.registry.store import Store
from raymlp.runtime.session import ray_session
from raymlp.runtime.tracking import tracked
from raymlp.serve.client import replay
from raymlp.serve.probe import example_row

LIMIT_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--moves", type=int, default=10, help="of each alias")
    parser.add_argument("--poll", type=float, default=0.5, help="serve.rollout.follow_registry_s")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(asked.bundle, folder, asked.poll)
        with ray_session(config.runtime):
            store = registered(config, asked.bundle, 2 + 2 * asked.moves)
            endpoint = pipeline.deploy(config)
            try:
                seconds, failed, sent = measured(config, endpoint, store, asked.bundle, asked.moves)
            finally:
                pipeline.undeploy(config)
    table = Table("alias moved", "moves", "seconds, median", "largest")
    for alias, found in seconds.items():
        table.add_row(alias, str(len(found)), f"{np.median(found):.2f}", f"{max(found):.2f}")
    console = Console()
    console.print(table)
    console.print(f"{failed:,} of {sent:,} requests failed; the aliases were looked at every {asked.poll:g} s")


def config_of(bundle: Path, storage: str, poll_s: float) -> Config:
    """The bundle's own config, an endpoint on a free port, and a rollout that never ends by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "runtime.storage": storage, "serve.port": port, "serve.auth": "none", "serve.max_replicas": 1, "serve.rollout.weights": "[0.5]",
        "serve.rollout.min_step_s": 3600, "serve.rollout.follow_registry_s": poll_s,
    }  # fmt: skip
    return pipeline.config_of(bundle, [f"{name}={value}" for name, value in settings.items()])


def registered(config: Config, bundle: Path, versions: int) -> Store:
    """A registry with the bundle under several numbers, the first of which is the champion."""
    store, name = Store(config.registry, config.runtime), config.problem.name
    with tracked(name, "follow", config_yaml="", seed=0, snapshot="", registry=config.registry, runtime=config.runtime) as run:
        for _ in range(versions):
            store.register(name, bundle, run=run)
    store.set_aliases(name, {"champion": "1"})
    return store


def measured(config: Config, endpoint: Endpoint, store: Store, bundle: Path, moves: int) -> tuple[dict[str, list[float]], int, int]:
    """Seconds by alias, requests that failed, requests."""
    name, row = config.problem.name, example_row(load_bundle(bundle).contract)
    seconds: dict[str, list[float]] = {"challenger": [], "champion": []}
    failed = sent = 0
    for number in range(2 * moves):
        alias, version = ("challenger", "champion")[number % 2], str(2 + number)
        if alias == "champion":
            store.set_aliases(name, {"challenger": None})
        deadline = time.monotonic() + LIMIT_S
        while (course := pipeline.rollout_status(config).course) is not None and not course.settled:
            assert time.monotonic() < deadline, "the rollout did not end"
            time.sleep(0.05)
        store.set_aliases(name, {alias: version})
        moved, first = time.monotonic(), ""
        while first != f"v{version}":
            assert time.monotonic() < moved + LIMIT_S, f"no response by version {version}"
            (answer,) = replay(endpoint.url, name, [row], key=None, connections=1, routing_keys=[str(sent)])
            first, sent, failed = str(answer.version), sent + 1, failed + (answer.status != 200)
        seconds[alias].append(time.monotonic() - moved)
    return seconds, failed, sent


if __name__ == "__main__":
    main()
