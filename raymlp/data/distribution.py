"""One column's distribution, read from its digest: the share of values below a point and up to it.

A value that many rows share keeps its step. Between values the share is interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from raymlp.data.digest import Digest, Floats


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
    def of(cls, digest: Digest, low: float, high: float) -> Self | None:
        """The distribution of a digest whose rows lie between `low` and `high`; None without rows."""
        if not len(digest.means):
            return None
        x, total = digest.means, digest.rows
        left, right = digest.steps()
        if low < x[0]:
            x, left, right = np.r_[low, x], np.r_[0.0, left], np.r_[0.0, right]
        if high > x[-1]:
            x, left, right = np.r_[x, high], np.r_[left, total], np.r_[right, total]
        return cls(x, left / total, right / total)

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
