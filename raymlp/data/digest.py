"""The distribution of a column's numbers in little room: a mergeable, deterministic quantile sketch.

A t-digest (Dunning and Ertl 2019, scale function k1), written over whole arrays: a batch is sorted once, and its rows
fall into clusters that are small at both ends and hold at most .31 % of the rows in the middle. Up to 1,024 distinct
values the digest is a table of values and counts, and everything it says is exact. The same rows in the same order
give the same bytes, which a sketch that flips coins (KLL) does not.

Legend: K support points.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
EXACT = 1_024
"""Distinct values up to which nothing is merged."""
CLUSTERS = 512
"""Clusters of a digest that is full; the widest holds a share of pi / (2 CLUSTERS)."""


@dataclass
class Digest:
    """Clusters of values by `means`, rising, float64 (K,), their `weights` in rows (K,), and whether each is one value (`pure`)."""

    means: Floats = field(default_factory=lambda: np.zeros(0))
    weights: Floats = field(default_factory=lambda: np.zeros(0))
    pure: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    @property
    def is_exact(self) -> bool:
        """Whether every row is still there, as a value and its count."""
        return bool(self.pure.all())

    @property
    def rows(self) -> float:
        return float(self.weights.sum())

    def add(self, values: Floats, counts: NDArray[Any]) -> None:
        """Take in distinct finite values, rising, and how many rows have each."""
        batch = Digest(values, counts.astype(np.float64), np.ones(len(values), bool))._compressed()
        self.merge(batch)

    def merge(self, other: Digest) -> None:
        """Take in the rows of another digest."""
        means = np.concatenate([self.means, other.means])
        order = np.lexsort((~np.concatenate([self.pure, other.pure]), means))
        both = Digest(means[order], np.concatenate([self.weights, other.weights])[order], np.concatenate([self.pure, other.pure])[order])
        result = both._with_equal_values_joined()._compressed()
        self.means, self.weights, self.pure = result.means, result.weights, result.pure

    def _with_equal_values_joined(self) -> Digest:
        """One point for pure values that are equal."""
        if len(self.means) < 2:
            return self
        same = (self.means[1:] == self.means[:-1]) & self.pure[1:] & self.pure[:-1]
        first = np.flatnonzero(np.r_[True, ~same])
        return Digest(self.means[first], np.add.reduceat(self.weights, first), self.pure[first])

    def _compressed(self) -> Digest:
        if len(self.means) <= EXACT:
            return self
        middle = (np.cumsum(self.weights) - self.weights / 2) / self.weights.sum()
        cell = np.floor(CLUSTERS * (np.arcsin(2 * middle - 1) / np.pi + 0.5))
        first = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
        weights = np.add.reduceat(self.weights, first)
        members = np.diff(np.r_[first, len(cell)])
        shares = self.weights / np.repeat(weights, members)
        means = np.maximum.accumulate(np.add.reduceat(self.means * shares, first))
        return Digest(means, weights, (members == 1) & self.pure[first])

    def quantile(self, share: float) -> float:
        """Value below which `share` (in [0, 1]) of the rows lie, linear between values; NaN without rows.

        With every value once it is Hazen's quantile, type 5 of Hyndman and Fan 1996: the median of an even number of rows is
        the mean of the middle two. A value that many rows share holds all of their ranks.
        """
        if not len(self.means):
            return float("nan")
        end = np.cumsum(self.weights)
        low = np.where(self.pure, end - self.weights + 0.5, end - self.weights / 2)
        high = np.where(self.pure, end - 0.5, end - self.weights / 2)
        ranks = np.stack([low, high], axis=1).ravel()
        return float(np.interp(share * end[-1], ranks, np.repeat(self.means, 2)))

    def steps(self) -> tuple[Floats, Floats]:
        """Rows below and up to each support point, float64 (K,) each; equal for a cluster, since it lies around its mean."""
        end = np.cumsum(self.weights)
        middle = end - self.weights / 2
        return np.where(self.pure, end - self.weights, middle), np.where(self.pure, end, middle)

    def to_dict(self) -> dict[str, str]:
        return {"means": _text(self.means), "weights": _text(self.weights), "pure": _text(self.pure)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, str]) -> Self:
        return cls(_array(plain["means"], np.float64), _array(plain["weights"], np.float64), _array(plain["pure"], np.bool_))


def _text(array: NDArray[Any]) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def _array(text: str, kind: Any) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), np.dtype(kind).newbyteorder("<")).astype(kind)
