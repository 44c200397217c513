"""How exactly a rate limit holds over four replicas behind the ingress, and how well distinct rows are counted there.

`PYTHONPATH=.:benchmarks python benchmarks/limits.py` serves a small net with one limit a caller, asks for three times as much, and prints
what was admitted beside what rate and burst allow; then it kills the process that counts, under load, and looks for lost requests. It
takes a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

SECONDS, RATE, REPLICAS, CONNECTIONS, ROWS = 15.0, 100.0, 4, 16, 3_000
LIMIT = {"requests_per_s": RATE, "burst": int(RATE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--offered", type=float, default=3 * RATE, help="requests a second that are asked")
    options = parser.parse_args()
    seconds, offered = options.seconds, options.offered

    from raymlp.config.runtime import Runtime
    from raymlp.core.records import Version
    from raymlp.runtime.ports import free_port
    from raymlp.runtime.session import ray_session
    from raymlp.serve.deploy import deploy, undeploy
    from tests.serve.bundles import make_bundle, make_config

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAYMLP_API_KEYS": "one,two,three"}
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(storage=folder, num_cpus=4, object_store_mb=200)
        bundle = make_bundle(Path(folder) / "bundle", seed=0)
        replicas: dict[str, Any] = {"min_replicas": REPLICAS, "max_replicas": REPLICAS, "cpus_per_replica": 0.1}
        config = make_config(runtime, port=free_port(), rate_limit=LIMIT, **replicas)
        with ray_session(runtime):
            endpoint = deploy(config, Version("1", str(bundle)))
            try:
                warm_up(endpoint.url)
                limited(endpoint.url, seconds, offered)
                without_the_counts(endpoint.url, seconds, offered)
            finally:
                undeploy("flights")
            config = make_config(runtime, port=free_port(), extraction_limit=ROWS, **replicas)
            endpoint = deploy(config, Version("1", str(bundle)))
            try:
                distinct(endpoint.url)
            finally:
                undeploy("flights")


def warm_up(url: str) -> None:
    """So that every replica has answered once, by another caller than those that are counted."""
    ask(url, "three", 2.0, 100.0)


def ask(url: str, key: str, seconds: float, offered: float) -> tuple[Counter[int], float]:
    """Statuses of requests on a steady stream, and how long it took."""
    from load import Load, post

    from tests.serve.bundles import json_rows

    body = json.dumps({"instances": json_rows(1)}).encode()
    start = time.perf_counter()
    with Load(url, lambda _: post("/v1/models/flights:predict", body, key), connections=CONNECTIONS, per_second=offered) as load:
        time.sleep(seconds)
    return Counter(one.status for one in load.sent), time.perf_counter() - start


def limited(url: str, seconds: float, offered: float) -> None:
    found, took = ask(url, "one", seconds, offered)
    allowed = RATE * took + RATE
    print(f"offered {found.total() / took:,.0f}/s at {REPLICAS} replicas for {took:.1f} s, limit {RATE:g}/s and a burst of {RATE:g}")
    print(f"admitted {found[200]:,}, allowed {allowed:,.0f}: error {found[200] / allowed - 1:+.1%}; statuses {dict(found)}")


def without_the_counts(url: str, seconds: float, offered: float) -> None:
    """The same with the counting process killed in between."""
    import threading

    import ray

    from raymlp.serve.counts import NAMESPACE

    def kill() -> None:
        ray.kill(ray.get_actor("counts-flights", namespace=NAMESPACE))

    timer = threading.Timer(seconds / 2, kill)
    timer.start()
    found, took = ask(url, "two", seconds, offered)
    timer.join()
    allowed = RATE * took + RATE
    lost = found.total() - found[200] - found[429]
    print(f"the same, the counting process killed after {seconds / 2:g} s: admitted {found[200]:,}, allowed {allowed:,.0f}: ", end="")
    print(f"error {found[200] / allowed - 1:+.1%}; requests neither answered nor refused: {lost}")


def distinct(url: str) -> None:
    """Distinct rows, asked once each, until they are refused."""
    from raymlp.serve.client import replay
    from tests.serve.bundles import json_rows

    row, sent, admitted = json_rows(1)[0], 0, 0
    while sent < 2 * ROWS:
        rows = [{**row, "delay": number / 1e6} for number in range(sent, sent + 500)]
        admitted += sum(answer.status == 200 for answer in replay(url, "flights", rows, key="one", connections=CONNECTIONS))
        sent += 500
    print(f"distinct rows: {admitted:,} of {sent:,} answered, limit {ROWS:,}: error {admitted / ROWS - 1:+.1%}")


if __name__ == "__main__":
    main()
