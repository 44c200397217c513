"""What a cluster may grow to, as its autoscaler has told it.

Kept small: Ray Train's controller loads it.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Group(NamedTuple):
    """Nodes of one kind: what each has, and how many there may be, those that are there among them."""

    resources: dict[str, float]
    most: float


def groups() -> list[Group]:
    """The groups of a cluster that brings nodes by itself; none of one whose size is fixed. Needs Ray."""
    from ray._private.state import state

    config = state.get_cluster_config()
    return [
        Group({kind: float(amount) for kind, amount in group.resources.items()}, math.inf if group.max_count < 0 else group.max_count)
        for group in (config.node_group_configs if config else ())
    ]


def most(kind: str) -> float:
    """The most of a resource that all nodes together may come to have; 0.0 on a cluster of fixed size."""
    return sum(group.resources.get(kind, 0.0) * group.most for group in groups() if group.resources.get(kind))


def largest(kind: str) -> float:
    """The most of a resource on one node that may come; 0.0 on a cluster of fixed size."""
    return max((group.resources.get(kind, 0.0) for group in groups() if group.most), default=0.0)
