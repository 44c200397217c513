"""An endpoint with a replica on each of two nodes, of which one loses its power under load: run by `test_node_of_endpoint`.

Says what it saw as JSON, in the last line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from load import Load, post, told
from small import KEY, NAME, PATH, body, make_bundle, make_config

from raymlp.config.runtime import Runtime
from raymlp.core.records import Version
from raymlp.doctor import doctor
from raymlp.runtime.cluster.layout import load
from raymlp.runtime.ports import free_port
from raymlp.runtime.session import ray_session
from raymlp.serve.deploy import deploy, status, undeploy
from tests.chaos.faults import below, cut_power, raylets, until

PER_S = 80.0
EXPOSED = ("authentication", "dashboard", "token file", "TLS between nodes", "metrics port")


def main(folder: Path, place: Path) -> None:
    cluster = load(place)
    assert cluster
    bundle = make_bundle(folder / "bundle", seed=1)
    replicas = {"min_replicas": 2, "max_replicas": 2, "cpus_per_replica": 1.0}
    config = make_config(Runtime(storage=str(folder), num_cpus=4), port=free_port(), **replicas)

    def pids() -> set[int]:
        try:
            return {report["pid"] for report in status(NAME)["replicas"]}
        except Exception:  # what a part that is away answers
            return set()

    with ray_session(config.runtime):
        endpoint = deploy(config, Version("1", str(bundle)))
        findings = [one for one in doctor(config) if one.what.endswith(EXPOSED)]
        before = pids()
        nodes = {node: before & set(below(raylet)) for node, raylet in raylets(cluster).items()}
        with Load(endpoint.url, lambda n: post(PATH, body(n), KEY), connections=4, per_second=PER_S) as load_:
            until(lambda: len(load_.sent) > 2 * PER_S, "two seconds of answers")
            victim = min(nodes)
            cut_power(cluster, victim)
            cut = time.monotonic()
            whole_s = until(lambda: len(pids() - nodes[victim]) == 2, "a replica in place of the lost one", 150.0)
            until(lambda: time.monotonic() > cut + 20, "twenty seconds after the cut")
        undeploy(NAME)
    spread = sorted(len(found) for found in nodes.values())
    exposed = [(one.what.partition(": ")[2], one.level, one.found) for one in findings]
    sys.stdout.write(f"{json.dumps({'spread': spread, 'whole_s': whole_s, 'exposed': exposed, **told(load_.sent)})}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
