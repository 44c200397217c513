"""The peak of this process's memory, which can be begun anew, on Linux."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes() -> int:
    """Most memory that this process has held at once since `reset_peak`."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def reset_peak() -> None:
    """Begin the peak anew; where the kernel forbids it, the peak stays that of the whole life of the process."""
    with suppress(OSError):
        REFERENCES.write_text("5")
