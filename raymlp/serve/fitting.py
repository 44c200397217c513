"""Whether one more version fits beside those that a replica holds: arithmetic of facts, no Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from raymlp.runtime.store import place_of

RESERVE = 0.05
"""Share of a node's free memory that is left alone."""


def bytes_of(bundle: str) -> int:
    """The size of a bundle's files; 0 for one that is not there."""
    return sum(file.stat().st_size for file in place_of(bundle).glob("*") if file.is_file())


def too_large(label: str, *, bundle_bytes: int, measured_bytes: int, reports: Iterable[Mapping[str, Any]]) -> str:
    """Why a version does not fit into the replicas of these reports, with the arithmetic; empty when it does.

    It needs what its files hold, or what its probe took more when it was loaded, whichever is larger, in each replica. Of a node, the
    smallest figure that its replicas saw free counts.
    """
    need = max(bundle_bytes, measured_bytes)
    replicas, free = Counter[str](), dict[str, int]()
    for report in reports:
        node, available = report["node"], report["free_bytes"]
        replicas[node] += 1
        free[node] = min(available, free.get(node, available))
    for node, count in replicas.items():
        usable = int(free[node] * (1 - RESERVE))
        if count * need > usable:
            return (
                f"version {label} needs about {_mib(need)} in a replica (its files have {_mib(bundle_bytes)}, its probe took "
                f"{_mib(measured_bytes)}); {count} on {node} make {_mib(count * need)}, and {_mib(usable)} of the {_mib(free[node])} free "
                "there may be used. Set serve.placement=apart, fewer replicas, or add memory"
            )
    return ""


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
