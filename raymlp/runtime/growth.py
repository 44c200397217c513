"""Whether a cluster brings nodes for what its own cannot hold: its autoscaler is asked, which answers within seconds.

Kept small: Ray Train's controller loads it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

ANSWER_S, POLL_S = 20.0, 0.5
"""Seconds in which an autoscaler says that nodes come, or that none can. One that says nothing is given the benefit of the doubt."""


def autoscales() -> bool:
    """Whether an autoscaler (version 2) looks after the cluster. Needs Ray."""
    return bool(_state().autoscaler_state_version)


def may_bring(bundles: Sequence[dict[str, float]]) -> bool:
    """Whether the cluster has, or may come to have, room for all of these CPUs and GPUs at a time, each bundle whole on one node. Nodes
    that come for the question are there for what asked. Needs Ray."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    if not autoscales():
        return False
    group = placement_group([dict(bundle) for bundle in bundles])
    ready, known, deadline = group.ready(), group.id.hex(), time.monotonic() + ANSWER_S
    try:
        while time.monotonic() < deadline and not ray.wait([ready], timeout=POLL_S)[0]:
            state = _state()
            if any(known in request.details for request in state.infeasible_gang_resource_requests):
                return False
            if state.pending_instance_requests or state.pending_instances:
                break
        return True
    finally:
        remove_placement_group(group)


def _state() -> Any:
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    return GetClusterStatusReply.FromString(global_worker.gcs_client.get_cluster_status()).autoscaling_state
