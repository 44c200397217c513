"""Where a run was made: what may explain that the same config, snapshot and seed gave other bits."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import lru_cache
from pathlib import Path

from raymlp import __version__

NAMED = ("torch", "numpy", "scipy", "pyarrow", "lightning", "ray", "deepspeed", "transformers", "xgboost-cpu", "lightgbm", "opacus")
"""Packages whose arithmetic or order of work decides the bits of a model; those that are not installed are left out."""


def facts() -> dict[str, str]:
    """Name to value, of the process that calls it: versions, processor, the instructions that torch uses, its threads, the GPU.

    Loads torch.
    """
    import torch

    found = {"raymlp": __version__, "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found |= {name: version for name in NAMED if (version := _version(name))}
    found |= {"cpu": _cpu(), "cpu instructions": torch.backends.cpu.get_cpu_capability(), "threads": str(torch.get_num_threads())}
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return found


@lru_cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


@lru_cache
def _cpu() -> str:
    """Model of the processor, as Linux tells it; elsewhere what Python knows."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
