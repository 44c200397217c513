"""Memory of this process and of the machine, on Linux."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""What a container may take, and takes (cgroup v2 and v1)."""


def peak_bytes() -> int:
    """Most memory that this process has held at once since `reset_peak`."""
    return _field(STATUS, "VmHWM")


def reset_peak() -> None:
    """Begin the peak anew; where the kernel forbids it, the peak stays that of the whole life of the process."""
    with suppress(OSError):
        REFERENCES.write_text("5")


def free_bytes() -> int:
    """What is free: of the machine, or of the container where that is less."""
    free = [_field(Path("/proc/meminfo"), "MemAvailable")]
    for most, used in LIMITS:
        if most.is_file() and (text := most.read_text().strip()).isdigit():
            free.append(int(text) - int(used.read_text()))
    return max(0, min(free))


def _field(file: Path, name: str) -> int:
    line = next(line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10
