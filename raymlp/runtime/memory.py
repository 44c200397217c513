"""How much memory this machine, or the container on it, has and still can give."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def total() -> int:
    """Bytes of memory; 0 where Linux does not say."""
    return min(_meminfo("MemTotal"), _limit() or _meminfo("MemTotal"))


def available() -> int:
    """Bytes that a new process may take without pushing another one out."""
    free = _meminfo("MemAvailable")
    limit = _limit()
    if not limit:
        return free
    used = int((CGROUP / "memory.current").read_text()) - _cache()
    return max(0, min(free, limit - used))


def peak() -> int:
    """Bytes this process has had in memory at most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _meminfo(name: str) -> int:
    lines = MEMINFO.read_text().splitlines() if MEMINFO.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _limit() -> int:
    """Of the container; 0 without one."""
    try:
        text = (CGROUP / "memory.max").read_text().strip()
    except OSError:
        return 0
    return 0 if text == "max" else int(text)


def _cache() -> int:
    """What the container's files take and would give back."""
    lines = (CGROUP / "memory.stat").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
