"""How much memory this machine, or the container on it, has and still can give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Limit and use of the container, and what its files take of that and would give back (cgroup v2 and v1)."""


def total() -> int:
    """Bytes of memory; 0 where Linux does not say."""
    return min([_meminfo("MemTotal"), *(limit for limit, _ in _container())])


def available() -> int:
    """Bytes that a new process may take without pushing another one out."""
    return max(0, min([_meminfo("MemAvailable"), *(limit - used for limit, used in _container())]))


def peak() -> int:
    """Bytes this process has had in memory at most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _meminfo(name: str) -> int:
    lines = MEMINFO.read_text().splitlines() if MEMINFO.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _container() -> Iterator[tuple[int, int]]:
    """The limit of the container and what it uses, its cache left out; nothing without a limit."""
    for limit, used, stat, cache in FILES:
        if (CGROUP / limit).is_file() and (text := (CGROUP / limit).read_text().strip()).isdigit():
            lines = (CGROUP / stat).read_text().splitlines()
            cached = next((int(line.split()[1]) for line in lines if line.startswith(f"{cache} ")), 0)
            yield int(text), int((CGROUP / used).read_text()) - cached
