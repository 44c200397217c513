"""A task whose node falls silent is done elsewhere: run by `test_partition` in the head's network namespace.

The folder takes notes: `began` once the task runs on the far node, and from the test `cut` once the network is cut. Says what it saw as
JSON, in the last line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tests.chaos.faults import until

LIMIT_S = 100.0


def main(folder: Path, head: str) -> None:
    ray.init(logging_level="ERROR", log_to_driver=False)
    nodes = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes()}
    (far,) = (node for address, node in nodes.items() if address != head)

    @ray.remote(num_cpus=1, max_retries=3)
    def work() -> str:
        address = ray.util.get_node_ip_address()
        if address != head:
            (folder / "began").touch()
            time.sleep(3_600)
        return str(address)

    answer = work.options(scheduling_strategy=NodeAffinitySchedulingStrategy(far, soft=True)).remote()
    until((folder / "cut").exists, "the cut", LIMIT_S)
    cut = time.monotonic()
    until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1, "the death of the node", LIMIT_S)
    declared_s = time.monotonic() - cut
    where = ray.get(answer, timeout=LIMIT_S)
    sys.stdout.write(f"{json.dumps({'where': where, 'declared_s': declared_s, 'done_s': time.monotonic() - cut})}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
