"""What a rollout rests on: counts and moments of the two versions by step, which add up and go through JSON.

A key is what decides which version answers: the request's own, or the prediction's id where it has none. Requests of one key go to one
version and resemble each other, so the key is what counts, once a rollout: its first request in `keys`, `latency` and `scores`, its
first failure in `errors`, its first value in `business`. A client that sends a thousand broken requests is one failure. A rate needs
trials that have not been picked by how they ended: each key's first request of a step is one, in `trials`, and may be in `failed`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import neg
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BINS_PER_OCTAVE = 32
"""Latency bins in a doubling: each 2.2 % wide."""


class Pair(NamedTuple):
    """A count for each version."""

    champion: int = 0
    challenger: int = 0


NONE = Pair()


@dataclass(frozen=True)
class Histogram:
    """Latencies in bins of equal ratio: bin k holds those from 2^(k / 32) ms up to 2^((k + 1) / 32) ms. `bins` ascending."""

    bins: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, latency_ms: Iterable[float] | Floats) -> Self:
        """From latencies in ms, (N,); those below a microsecond count as one microsecond."""
        values = np.maximum(np.asarray(latency_ms if isinstance(latency_ms, np.ndarray) else list(latency_ms), dtype=np.float64), 1e-3)
        bins, counts = np.unique(np.floor(BINS_PER_OCTAVE * np.log2(values)).astype(int), return_counts=True)
        return cls(tuple(bins.tolist()), tuple(counts.tolist()))

    @classmethod
    def merged(cls, parts: Sequence[Histogram]) -> Self:
        """All requests of some histograms."""
        bins = np.concatenate([np.zeros(0, dtype=int), *(part.bins for part in parts if part.bins)])
        counts = np.concatenate([np.zeros(0, dtype=int), *(part.counts for part in parts if part.bins)])
        if not len(bins):
            return cls()
        lowest = int(bins.min())
        total = np.bincount(bins - lowest, counts).astype(int)
        some = np.flatnonzero(total)
        return cls(tuple((some + lowest).tolist()), tuple(total[some].tolist()))

    @property
    def total(self) -> int:
        """Requests counted."""
        return self._tails[0]

    @cached_property
    def _tails(self) -> tuple[int, ...]:
        """Requests in the i-th bin and all slower ones, and 0 at the end."""
        return tuple(accumulate(reversed(self.counts), initial=0))[::-1]

    def from_bin(self, bin_number: int) -> int:
        """Requests in this bin and all slower ones."""
        return self._tails[bisect_left(self.bins, bin_number)]

    def quantile_bin(self, quantile: float) -> int:
        """The bin of the ceil(quantile * n)-th fastest request. Raises ValueError without any."""
        if not self.counts:
            raise ValueError("a histogram without requests has no quantile; expected one or more")
        slower = self.total - math.ceil(quantile * self.total)
        return self.bins[bisect_left(self._tails, -slower, key=neg) - 1]

    def quantile_ms(self, quantile: float) -> float:
        """The upper bound in ms of the quantile's bin; NaN without requests."""
        return upper_ms(self.quantile_bin(quantile)) if self.counts else math.nan


def upper_ms(bin_number: int) -> float:
    """The upper bound of a bin in ms."""
    return float(2.0 ** ((bin_number + 1) / BINS_PER_OCTAVE))


class Moments(NamedTuple):
    """Values seen, their sum and the sum of their squares."""

    rows: int = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Floats) -> Moments:
        """From values, float64 (N,)."""
        return cls(len(values), float(values.sum()), float((values**2).sum()))


NOTHING = Moments()


@dataclass(frozen=True)
class Step:
    """What happened while the challenger had one share of the traffic. `weight` is that share, in [0, 1]."""

    weight: float
    requests: Pair = NONE
    """Requests answered or failed, all of them."""
    keys: Pair = NONE
    """Keys seen for the first time in the rollout."""
    errors: Pair = NONE
    """Keys that failed for the first time in the rollout."""
    trials: Pair = NONE
    """Keys seen in this step, each by its first request in it."""
    failed: Pair = NONE
    """Trials that failed."""
    latency: tuple[Histogram, Histogram] = (Histogram(), Histogram())
    """Latency of the champion's and the challenger's keys."""
    scores: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """The champion's and the challenger's keys by cell of `Scores`, where it has cells."""
    business: tuple[Moments, Moments] = (NOTHING, NOTHING)
    """The business metric of the champion's and the challenger's keys."""


@dataclass(frozen=True)
class Scores:
    """How predictions are put in cells: ranges of a number between the champion's quantiles, ascending, or classes.

    `reference` counts the champion's first predictions by cell; they set the cells and the shares that a gap is measured from, and
    are in no step.
    """

    reference: tuple[int, ...] = ()
    ordered: bool = True


@dataclass(frozen=True)
class Paired:
    """Per-row loss differences, challenger minus champion, on `rows` labelled rows: their mean and sample variance
    (divided by n - 1), and the champion's mean loss. Lower loss is better."""

    rows: int = 0
    mean: float = 0.0
    variance: float = 0.0
    champion_loss: float = 0.0

    @classmethod
    def of(cls, champion: Floats, challenger: Floats) -> Self:
        """From the losses of both on the same rows, float64 (N,). Raises ValueError when the lengths differ."""
        if champion.shape != challenger.shape:
            raise ValueError(f"{len(champion)} losses of the champion and {len(challenger)} of the challenger; expected the same rows")
        rows = len(champion)
        if rows == 0:
            return cls()
        difference = challenger - champion
        variance = float(difference.var(ddof=1)) if rows > 1 else 0.0
        return cls(rows, float(difference.mean()), variance, float(champion.mean()))


@dataclass(frozen=True)
class Evidence:
    """All that is known of a rollout so far, one step for each share the challenger has had."""

    steps: tuple[Step, ...] = ()
    latency_reference: Histogram = Histogram()
    """The champion's first requests, which set what counts as slow and are in no step."""
    scores: Scores = Scores()
    loss: Paired = Paired()
    ranking: Paired | None = None
    """Differences of `misranking` (binary problems): a model that separates nothing can have a fair loss by luck."""
    has_answers: bool = True
    """Whether true answers may come; a task without a target is judged by errors and latency, and where there is one a business metric."""

    @property
    def requests(self) -> int:
        """Requests of both versions."""
        return sum(sum(step.requests) for step in self.steps)

    @property
    def challenger_requests(self) -> int:
        """Requests of the challenger."""
        return sum(step.requests.challenger for step in self.steps)

    def at(self, weight: float) -> Step:
        """What happened at this share; an empty step where nothing has."""
        return next((step for step in self.steps if math.isclose(step.weight, weight)), Step(weight))


@dataclass(frozen=True)
class Position:
    """Where a rollout is: the challenger's share now, seconds since it has it, seconds since the start, and the guards (`ratio`,
    `distribution`) whose doubts a person has overruled."""

    weight: float
    step_s: float
    total_s: float
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """What a guard says so far.

    `harm` is the natural logarithm of an e-value against "no worse than tolerated", `fine` of one against "worse than the margin", or
    None where promotion does not need it. `told` has the figures.
    """

    guard: str
    harm: float
    fine: float | None
    told: str

    def __str__(self) -> str:
        return f"{self.guard}: {self.told}"


def counts(pairs: Sequence[Pair]) -> tuple[Floats, Floats]:
    """Pairs as two arrays, float64 (S,): champion and challenger."""
    table = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def as_facts(evidence: Evidence, position: Position, checks: Sequence[Check]) -> Mapping[str, Any]:
    """Plain values for the record of a decision: totals and checks, not the histograms."""
    return {
        "weight": position.weight,
        "step_s": position.step_s,
        "total_s": position.total_s,
        "requests": evidence.requests,
        "challenger_requests": evidence.challenger_requests,
        "labelled_rows": evidence.loss.rows,
        "checks": [{"guard": check.guard, "harm": check.harm, "fine": check.fine, "told": check.told} for check in checks],
    }
