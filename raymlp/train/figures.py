"""What an epoch cost: rows a second, step times, waiting, memory, and the share of a GPU's arithmetic that was used.

Legend: W workers. A step is timed by the clock of the host alone: nothing waits for the GPU.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raymlp.features.plan import PACKED
from raymlp.train.batches import TAKEN

log = logging.getLogger(__name__)
COUNTED_ROWS = 2
"""Rows that operations are counted on."""
PEAK_TFLOPS = {
    "B200": (2250.0, 80.0),
    "H200": (989.4, 66.9),
    "H100 PCIe": (756.0, 51.2),
    "H100": (989.4, 66.9),
    "A100": (312.0, 19.5),
    "L40S": (362.1, 91.6),
    "L4": (121.0, 30.3),
    "A10G": (70.0, 35.0),
    "A10": (125.0, 31.2),
    "V100": (125.0, 15.7),
    "T4": (65.1, 8.1),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
}
"""Dense peak of a device by a part of its name, in 1e12 operations a second: in half precision with float32 sums, and in float32
without TF32, which PyTorch leaves off. From NVIDIA's data sheets; the first name that fits counts."""


class Figures:
    """The clock of one worker's epoch."""

    def __init__(self) -> None:
        self._marks: list[float] = []
        self._before = 0.0

    def start(self, before_s: float = 0.0) -> None:
        """Begin an epoch, of which so many seconds were spent before the run was cut off."""
        self._before = before_s
        self._marks = [time.perf_counter()]
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def step(self) -> None:
        self._marks.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Since the epoch began."""
        return max(self._before + time.perf_counter() - self._marks[0], 1e-9)

    def row(self, *, train_s: float, waited_s: float) -> NDArray[np.float64]:
        """What this worker adds to `epoch_figures`: float64 (1, 5)."""
        steps = np.diff(self._marks) if len(self._marks) > 1 else np.array([train_s])
        middle, slow = np.percentile(steps, [50, 99]) * 1e3
        return np.array([[min(1.0, waited_s / train_s), middle, slow, _peak_rss_mb(), _peak_gpu_mb()]])


def epoch_figures(rows: NDArray[np.float64]) -> dict[str, float]:
    """Figures of all workers, float64 (W, 5), in one: the mean share of waiting, the median of the median step times, and of the
    slow steps (99th percentile) and the memory those of the worker that has most.

    Memory is in MiB: the highest so far in RAM, and the highest of the epoch on the GPU, where there is one.
    """
    figures = {
        "data_wait_share": float(rows[:, 0].mean()),
        "step_ms_p50": float(np.median(rows[:, 1])),
        "step_ms_p99": float(rows[:, 2].max()),
        "memory_mb": float(rows[:, 3].max()),
    }
    return figures | ({"gpu_memory_mb": float(rows[:, 4].max())} if rows[:, 4].any() else {})


def peak_flops(device: torch.device, precision: str, tflops: float | None) -> float | None:
    """Operations a second that a device can do in a precision: what is set, or what is known of a GPU by its name; None elsewhere."""
    if tflops is not None:
        return tflops * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((peaks for part, peaks in PEAK_TFLOPS.items() if part in name), None)
    if known is None:
        log.warning("the peak of %s is not known: set train.peak_tflops to see how much of it is used", name)
        return None
    return known[1 if precision == "32" else 0] * 1e12


def flops_per_row(build: Callable[[], nn.Module], shapes: Mapping[str, tuple[int, ...]]) -> float | None:
    """Operations of the forward and backward pass for a row, of matrix products and convolutions alone, as PyTorch counts them on
    tensors without values; None, with a warning, for a net that cannot run without values. `shapes` are those of one row's tensors."""
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device("meta"):
            net = build()
            kinds = {name: torch.from_numpy(np.zeros(0, TAKEN.get(PACKED[name], PACKED[name]))).dtype for name in shapes}
            tensors = {name: torch.empty((COUNTED_ROWS, *shape), dtype=kinds[name]) for name, shape in shapes.items()}
        with FlopCounterMode(display=False) as counter:
            net(tensors).sum().backward()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        log.warning("the operations of the net cannot be counted (%s): its utilisation is not reported", str(error).splitlines()[0])
        return None
    return float(counter.get_total_flops()) / COUNTED_ROWS


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _peak_gpu_mb() -> float:
    return torch.cuda.max_memory_allocated() / (1 << 20) if torch.cuda.is_available() else 0.0
