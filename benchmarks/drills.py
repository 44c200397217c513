"""Break a running endpoint in every way we know, under a steady stream of requests, and count.

    python benchmarks/drills.py [DRILL ...] [--rate 200] [--connections 8] [--ingress auto|proxy]

Two replicas on this machine, one row of thirty numbers a request. Of each fault: requests sent from a second before it until two seconds
after all is whole again, those that failed (an answer other than 200, or a connection that broke under a request), connections refused
(nothing listened; opened anew), latency of the answers, the longest stretch without an answer, and the seconds from the fault until what
was broken is back.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from load import Load, Sent, post, told
from rich.console import Console
from rich.table import Table
from small import KEY, PATH, body, make_bundle, make_config, prepare_environment

from raymlp.config.loader import with_overrides
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.core.errors import ServingError
from raymlp.core.records import Version
from raymlp.runtime.ingress import private_folder
from raymlp.runtime.ports import free_port
from raymlp.serve.controller import serve_client
from raymlp.serve.deploy import deploy, set_versions, status, undeploy

NAME = "drill"
CALM_S, LIMIT_S = 1.0, 90.0


class Place:
    """The endpoint under test, with its parts' process numbers."""

    def __init__(self, config: Config, bundles: dict[str, Path]) -> None:
        self.config, self.bundles = config, bundles
        self.endpoint = deploy(config, Version("1", str(bundles["1"])))

    def give(self, **weights: float) -> None:
        """Versions by label, the champion first."""
        versions = {label.removeprefix("v"): str(self.bundles[label.removeprefix("v")]) for label in weights}
        set_versions(self.config, NAME, versions, {label.removeprefix("v"): share for label, share in weights.items()})

    def redeploy(self, **settings: Any) -> None:
        self.config = with_overrides(self.config, {f"serve.{name}": value for name, value in settings.items()})
        deploy(self.config, Version("1", str(self.bundles["1"])))

    def replicas(self) -> set[int]:
        return {report["pid"] for report in status(NAME)["replicas"]}

    def controller(self) -> int:
        import ray

        return int(ray.get(serve_client()._controller.get_pid.remote()))

    def ingress(self) -> int:
        """HAProxy's process, the newest one: those that end after a reload are older."""
        import psutil

        folder = str(private_folder())
        found = [
            (process.create_time(), process.pid)
            for process in psutil.process_iter(["cmdline"])
            if process.info["cmdline"]
            and "haproxy" in process.info["cmdline"][0]
            and any(folder in word for word in process.info["cmdline"])
        ]
        return max(found)[1]

    def ingress_actor(self) -> int:
        import psutil

        return int(psutil.Process(self.ingress()).ppid())

    def kill(self, *pids: int) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def is_new(read: Callable[[], int], old: int) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            return read() != old
        except Exception:  # whatever a part that is away answers
            return False

    return ask


def has_replicas(place: Place, count: int, without: set[int]) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            now = place.replicas()
        except Exception:
            return False
        return len(now) == count and not now & without

    return ask


def kill_one(place: Place) -> Callable[[], bool]:
    victim = min(place.replicas())
    place.kill(victim)
    return has_replicas(place, 2, {victim})


def kill_all(place: Place) -> Callable[[], bool]:
    victims = place.replicas()
    place.kill(*victims)
    return has_replicas(place, len(victims), victims)


def kill_controller(place: Place) -> Callable[[], bool]:
    victim = place.controller()
    place.kill(victim)
    return is_new(place.controller, victim)


def kill_ingress(place: Place) -> Callable[[], bool]:
    victim = place.ingress()
    place.kill(victim)
    return is_new(place.ingress, victim)


def kill_ingress_actor(place: Place) -> Callable[[], bool]:
    victim = place.ingress_actor()
    place.kill(victim)
    return is_new(place.ingress_actor, victim)


def redeploy(place: Place) -> Callable[[], bool]:
    before = place.replicas()
    place.redeploy(max_rows_per_request=500 + place.config.serve.max_rows_per_request)
    return has_replicas(place, len(before), before)


def change_weights(place: Place) -> None:
    place.give(v1=0.9, v2=0.1)
    for share in (0.25, 0.5, 0.0, 0.5):
        place.give(v1=1 - share, v2=share)


def promote(place: Place) -> None:
    place.give(v2=1.0)


def roll_back(place: Place) -> None:
    place.give(v1=0.5, v2=0.5)
    place.give(v1=1.0)


def poison(place: Place) -> Callable[[], bool]:
    """A challenger that ends its process at one value, which comes with every thousandth request."""
    victims = place.replicas()
    place.give(v1=0.5, v3=0.5)
    return has_replicas(place, 2, victims)


def broken(place: Place) -> None:
    try:
        place.give(v1=0.5, v4=0.5)
    except ServingError:
        return
    raise AssertionError("a bundle without its plan was taken")


Fault = Callable[[Place], Callable[[], bool] | None]
DRILLS: dict[str, tuple[str, Fault]] = {
    "replica": ("kill -9 of one of two replicas", kill_one),
    "only": ("kill -9 of all replicas at once", kill_all),
    "controller": ("kill -9 of the Serve controller", kill_controller),
    "ingress": ("kill -9 of HAProxy", kill_ingress),
    "actor": ("kill -9 of HAProxy's Ray actor", kill_ingress_actor),
    "redeploy": ("redeploy with other settings", redeploy),
    "weights": ("five changes of weights", change_weights),
    "promote": ("promotion", promote),
    "rollback": ("rollback", roll_back),
    "poison": ("challenger that kills its process at some requests", poison),
    "broken": ("version that cannot load", broken),
}


def request_of(drill: str) -> Callable[[int], bytes]:
    deadly = {"x0": 7.0}
    return lambda number: post(PATH, body(number, **(deadly if drill == "poison" and number % 500 == 499 else {})), KEY)


def run(place: Place, drill: str, *, rate: float, connections: int) -> dict[str, Any]:
    """One fault under load, from an endpoint that is whole and serves version 1 alone."""
    what, fault = DRILLS[drill]
    if status(NAME)["replicas"][0]["weights"] != {"1": 1.0}:
        place.give(v1=1.0)
    with Load(place.endpoint.url, request_of(drill), connections=connections, per_second=rate) as load:
        time.sleep(CALM_S)
        struck = time.monotonic()
        is_whole = fault(place)
        done_s = time.monotonic() - struck
        while is_whole and not is_whole():
            if time.monotonic() > struck + LIMIT_S:
                raise TimeoutError(f"{what}: not whole after {LIMIT_S:g} s")
            time.sleep(0.05)
        whole_s = time.monotonic() - struck
        time.sleep(2.0)
    return {"fault": what, **told(load.sent), "silent_s": silence(load.sent), "done_s": done_s, "whole_s": whole_s}


def silence(sent: list[Sent]) -> float:
    """The longest stretch, in seconds, in which no request was answered with 200."""
    ends = sorted(one.at + one.took_s for one in sent if one.status == 200)
    return max((later - sooner for sooner, later in pairwise(ends)), default=0.0)


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("drills", nargs="*", metavar="DRILL", help=f"of {', '.join(DRILLS)}; all without one")
    words.add_argument("--rate", type=float, default=200)
    words.add_argument("--connections", type=int, default=8)
    words.add_argument("--ingress", default="auto")
    words.add_argument("--json", type=Path)
    words.add_argument("--replicas", type=int, default=2)
    chosen = words.parse_args()
    prepare_environment()
    from raymlp.runtime.session import ray_session

    with tempfile.TemporaryDirectory(prefix="raymlp-drills-") as folder:
        root = Path(folder)
        bundles = {label: make_bundle(root / label, seed=int(label), poison=label == "3") for label in "1234"}
        (bundles["4"] / "plan.json").write_text("{}")
        runtime = Runtime(storage=str(root / "storage"), num_cpus=4, object_store_mb=300)
        serve = {"min_replicas": chosen.replicas, "max_replicas": chosen.replicas, "cpus_per_replica": 0.1}
        config = make_config(runtime, port=free_port(), ingress=chosen.ingress, **serve)
        found = []
        with ray_session(runtime):
            place = Place(config, bundles)
            for drill in chosen.drills or DRILLS:
                found.append(run(place, drill, rate=chosen.rate, connections=chosen.connections))
                print(json.dumps(found[-1]), flush=True)
            undeploy(NAME)
    show(found)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1))


def show(found: list[dict[str, Any]]) -> None:
    table = Table("fault", "sent", "failed", "refused", "p50 ms", "p99 ms", "worst ms", "silent s", "whole after s")
    for one in found:
        failures = f" ({', '.join(f'{status}: {count}' for status, count in one['failures'].items())})" if one["failed"] else ""
        figures = [f"{one[name]:,.1f}" for name in ("p50_ms", "p99_ms", "worst_ms", "silent_s", "whole_s")]
        table.add_row(one["fault"], f"{one['requests']:,}", f"{one['failed']}{failures}", str(one["refused"]), *figures)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
