"""One column's distribution, read from its profile: the share of values below a point and up to it.

A t-digest keeps the rows as centroids (mean, weight). Its own rank function spreads a value that many rows share over
the gap to the next value; here such a value keeps its step. Whole numbers with few distinct values are counted exactly.
Between values the share is interpolated, within about 1 % of the rows (the largest centroid weighs 3 %).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raymlp.data.profile import ColumnProfile

Floats = NDArray[np.float64]
SINGLE_VALUE = 2
"""Bit of a serialised t-digest that says: one value, stored in place of the centroids."""


@dataclass(frozen=True)
class Distribution:
    """A cumulative distribution as steps and slopes. K support points `x`, rising, float64 (K,).

    `left` and `right`, float64 (K,): share of values below and up to each point. They differ where many rows share
    the value; from `right` of a point to `left` of the next the share rises in a line.
    """

    x: Floats
    left: Floats
    right: Floats

    @classmethod
    def of(cls, column: ColumnProfile) -> Self | None:
        """The distribution of a numeric column's values; None without values."""
        if not column.values:
            return None
        counts = column.counts() if column.type == "int" else {}
        if counts and sum(counts.values()) == column.values:
            pairs = sorted((float(value), count) for value, count in counts.items())
            return cls.steps(np.array([value for value, _ in pairs]), np.array([float(count) for _, count in pairs]))
        return cls._from_centroids(*_centroids(column.digest.serialize()), column.minimum, column.maximum)

    @classmethod
    def steps(cls, x: Floats, weights: Floats) -> Self:
        """Exact: every point is a value that `weights` rows have."""
        right = np.cumsum(weights) / weights.sum()
        return cls(x, np.r_[0.0, right[:-1]], right)

    @classmethod
    def _from_centroids(cls, means: Floats, weights: Floats, low: float, high: float) -> Self:
        """Centroids that weigh one row, or share their mean with others, are values; the rest are stretches around it."""
        x, first, members = np.unique(means, return_index=True, return_counts=True)
        mass = np.add.reduceat(weights, first)
        right = np.cumsum(mass)
        left = right - mass
        is_value = (mass == members) | (members > 1) | (low == high)
        middle = (left + right) / 2
        left, right = np.where(is_value, left, middle), np.where(is_value, right, middle)
        if low < x[0]:
            x, left, right = np.r_[low, x], np.r_[0.0, left], np.r_[0.0, right]
        if high > x[-1]:
            total = weights.sum()
            x, left, right = np.r_[x, high], np.r_[left, total], np.r_[right, total]
        return cls(x, left / weights.sum(), right / weights.sum())

    def below(self, points: Floats) -> Floats:
        """Share of values smaller than each point, in [0, 1]."""
        return self._share(points, self.left)

    def up_to(self, points: Floats) -> Floats:
        """Share of values smaller than or equal to each point, in [0, 1]."""
        return self._share(points, self.right)

    def quantiles(self, shares: Floats) -> Floats:
        """For each share the support point at which it is reached, without interpolation."""
        return np.asarray(self.x[np.minimum(np.searchsorted(self.right, shares - 1e-12), len(self.x) - 1)])

    def _share(self, points: Floats, at_support: Floats) -> Floats:
        place = np.searchsorted(self.x, points)
        inside = np.minimum(place, len(self.x) - 1)
        before = np.maximum(place - 1, 0)
        width = np.where(inside > before, self.x[inside] - self.x[before], 1.0)
        slope = (self.left[inside] - self.right[before]) / width
        between = self.right[before] + slope * (points - self.x[before])
        between = np.where(place == 0, 0.0, np.where(place == len(self.x), 1.0, between))
        return np.asarray(np.where(self.x[inside] == points, at_support[inside], between))


def _centroids(data: bytes) -> tuple[Floats, Floats]:
    """Means and weights in a serialised t-digest of doubles (Apache DataSketches, format 1)."""
    if data[5] & SINGLE_VALUE:
        return np.array(struct.unpack_from("<d", data, 8)), np.ones(1)
    num_centroids, num_waiting = struct.unpack_from("<II", data, 8)
    pairs = np.frombuffer(data, dtype=[("mean", "<f8"), ("weight", "<u8")], count=num_centroids, offset=32)
    waiting = np.frombuffer(data, dtype="<f8", count=num_waiting, offset=32 + 16 * num_centroids)
    means = np.r_[pairs["mean"], waiting].astype(np.float64)
    weights = np.r_[pairs["weight"].astype(np.float64), np.ones(num_waiting)]
    order = np.argsort(means, kind="stable")
    return means[order], weights[order]
