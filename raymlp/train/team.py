"""The workers of a run as one of them sees them: how they meet, what is heard from outside, and when a checkpoint is due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from raymlp.config.recovery import Checkpoint
from raymlp.train.pulse import Agree, Beat, Notice

Save = Callable[[Path], None]
Report = Callable[[dict[str, float], Save | None], bool | None]
"""Hears the metrics of an epoch (or, within one, the `step` alone) and, when a checkpoint is due, a function that writes it into a
folder. True at the end of an epoch ends training."""
Gather = Callable[[NDArray[Any]], NDArray[Any]]
"""Puts the rows of all workers together, in the order of their ranks."""


class Stopped(Exception):
    """The run was saved and ended because its caller wanted it to."""


@dataclass(frozen=True)
class Team:
    """A worker's rank among how many, how it meets the others, and what it hears from outside."""

    rank: int = 0
    world_size: int = 1
    gather: Gather = lambda rows: rows
    total: Gather = lambda numbers: numbers
    """Adds up the numbers of all workers, place by place."""
    agree: Agree = lambda values: values
    hear: Callable[[], Notice] = lambda: Notice.NONE
    uploading: Callable[[], bool] = lambda: False
    """Whether a checkpoint is still on its way."""


def is_due(settings: Checkpoint, epochs: int, beat: Beat, *, saved_s: float) -> bool:
    """Whether a checkpoint is due at the end of an epoch; the last one was made after `saved_s` seconds of training."""
    by_epochs = settings.every_epochs is not None and epochs % settings.every_epochs == 0
    by_time = settings.every_minutes is not None and beat.seconds - saved_s >= settings.every_minutes * 60
    return (by_epochs or by_time or beat.notice is Notice.SAVE) and not beat.uploading
