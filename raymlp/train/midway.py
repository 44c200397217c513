"""What a checkpoint needs in the middle of an epoch, besides weights and optimizer, to go on as if nothing had happened.

Each worker keeps a file of its own: the state of its random numbers and the sums of the epoch so far. The batches need none: their
order follows from seed, epoch and rank, and those that were seen are passed over.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save(folder: Path, rank: int, sums: dict[str, Any]) -> None:
    """Write the state of this process's random numbers and `sums`, of tensors and numbers."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "sums": sums,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (name, torch.from_numpy(np.array(keys, np.int64)), *map(float, rest)),
        "python": random.getstate(),
    }
    torch.save(state, _file(folder, rank))


def load(folder: Path, rank: int) -> dict[str, Any] | None:
    """Put the random numbers of this process where they were, and give the sums; None for a worker that was not there."""
    if not _file(folder, rank).exists():
        return None
    state = torch.load(_file(folder, rank), weights_only=True)
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, position, has_spare, spare = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), int(position), int(has_spare), spare))
    random.setstate(state["python"])
    sums: dict[str, Any] = state["sums"]
    return sums


def is_midway(folder: Path) -> bool:
    """Whether a checkpoint was made in the middle of an epoch."""
    return _file(folder, 0).exists()


def moved(loops: dict[str, Any], batch: int) -> None:
    """Let Lightning's state of its loops, as saved at the end of a step, stand after another batch of the epoch, or before its first."""
    current = loops["fit_loop"]["epoch_loop.batch_progress"]["current"]
    current.update(ready=batch, started=batch, processed=batch, completed=batch - 1)


def _file(folder: Path, rank: int) -> Path:
    return folder / f"worker-{rank}.pt"
