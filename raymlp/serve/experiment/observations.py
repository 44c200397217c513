"""What is known of an experiment: arrays over keys and over labelled rows, in the order of time.

A key is what decides which arm answers, and counts once: its first request, its first answer's latency, its first value of a business
column, its first labelled row. It belongs to the arm that its first request went to; where a bandit has moved it since, later requests of
other arms do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raymlp.core.metrics import losses
from raymlp.core.records import Task
from raymlp.serve.experiment.intervals import Floats, Mask
from raymlp.serve.rollout.quality import RANKING_BLOCK, RANKING_STRIDE, misranking

Places = NDArray[np.int64]
RUN = RANKING_BLOCK * RANKING_STRIDE
"""Labelled rows that give blocks of `misranking` together."""


@dataclass(frozen=True)
class Seen:
    """Values of one kind, one a key, (N,) in the order of time: the arm's number (0 is the control), the stretch in which the key came,
    seconds since 1970."""

    value: Floats
    arm: Places
    stretch: Places
    time: Floats

    @classmethod
    def none(cls) -> Self:
        """No values."""
        return cls(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))

    def of(self, arm: int) -> Floats:
        """One arm's values."""
        return np.asarray(self.value[self.arm == arm])

    def until(self, time: float) -> Seen:
        """Those that came by then."""
        end = int(np.searchsorted(self.time, time, side="right"))
        return Seen(self.value[:end], self.arm[:end], self.stretch[:end], self.time[:end])

    def pair(self, arm: int, shares: Floats) -> tuple[Floats, Mask, Floats, Places]:
        """Values of an arm and the control, which are the arm's, its share of the two, and their stretches. `shares` (S, K)."""
        some = (self.arm == 0) | (self.arm == arm)
        stretch = self.stretch[some]
        share = shares[:, arm] / (shares[:, 0] + shares[:, arm])
        return self.value[some], self.arm[some] == arm, share[stretch], stretch


@dataclass(frozen=True)
class Labelled:
    """The first labelled row of each key, with every arm's score of it: `y` (N,), a score array an arm with N rows, `time` (N,)."""

    task: Task = "binary"
    y: Floats = field(default_factory=lambda: np.zeros(0))
    scores: tuple[Floats, ...] = ()
    time: Floats = field(default_factory=lambda: np.zeros(0))

    def until(self, time: float) -> Labelled:
        """Those predictions that were made by then."""
        end = int(np.searchsorted(self.time, time, side="right"))
        return replace(self, y=self.y[:end], scores=tuple(scores[:end] for scores in self.scores), time=self.time[:end])

    def measured(self, measure: str, arm: int) -> Floats:
        """Loss or hit of each row, or AUC of each block, of one arm's scores."""
        if not len(self.y):
            return np.zeros(0)
        scores = self.scores[arm]
        if measure == "loss":
            return losses(self.task, self.y, scores)
        if measure == "auc":
            return 1 - misranking(self.y, scores)
        guess = scores.argmax(axis=1) if scores.ndim == 2 else scores >= 0.5
        return np.asarray(guess == self.y, dtype=np.float64)


@dataclass(frozen=True)
class Observations:
    """An experiment so far. `shares` (S, K) are the arms' shares of traffic in each stretch of time."""

    shares: Floats
    requests: tuple[int, ...]
    """Requests of each arm, all of them."""
    failed: Seen
    """Each key's first request: 1 where it failed. All keys are in it."""
    latency_ms: Seen
    """Each key's first answer."""
    business: Mapping[str, Seen] = field(default_factory=dict)
    """By column, each key's first value."""
    labelled: Labelled = field(default_factory=Labelled)

    @property
    def keys(self) -> tuple[int, ...]:
        """Keys of each arm."""
        return tuple(np.bincount(self.failed.arm, minlength=self.shares.shape[1]).tolist())

    @property
    def is_divided_evenly_over_time(self) -> bool:
        """Whether the shares stood still."""
        return len(self.shares) < 2

    def keys_by_stretch(self) -> Floats:
        """New keys by stretch and arm, (S, K)."""
        stretches, arms = self.shares.shape
        flat = np.bincount(self.failed.stretch * arms + self.failed.arm, minlength=stretches * arms)
        return flat.reshape(stretches, arms).astype(np.float64)

    def until(self, time: float) -> Observations:
        """What was to be seen by then; of labels and business values those that belong to predictions made by then."""
        business = {column: seen.until(time) for column, seen in self.business.items()}
        return replace(
            self,
            failed=self.failed.until(time),
            latency_ms=self.latency_ms.until(time),
            business=business,
            labelled=self.labelled.until(time),
        )


def moments(times: Sequence[float] | Floats, number: int) -> list[float]:
    """At most so many times among those given, evenly spaced by rank and ascending, the last always among them."""
    ranked = np.sort(np.asarray(times, dtype=np.float64))
    if not len(ranked):
        return []
    places = np.unique(np.linspace(0, len(ranked) - 1, number + 1).astype(int)[1:])
    return [float(time) for time in np.unique(ranked[places])]
