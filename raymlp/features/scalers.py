"""Fitted scalers: a filled number in, one number or several out, for whole arrays and for single values with equal results.

Legend: B rows, W outputs.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raymlp.config.section import Section

Floats = NDArray[np.float64]
LARGEST = float(np.finfo(np.float32).max)
"""Scaled numbers stay finite in float32."""
One = Callable[[float], float]


class Standard(Section):
    """(x - mean) / scale: standard, robust and min-max scaling alike."""

    kind: Literal["standard"] = "standard"
    mean: float
    """Value that becomes 0: the mean, the median or the minimum of the training values."""
    scale: float
    """Width that becomes 1: their deviation, interquartile range or range; 1 for a constant."""

    def batch(self, values: Floats) -> Floats:
        with np.errstate(over="ignore"):
            return np.asarray((values - self.mean) / self.scale)

    def one(self) -> One:
        mean, scale = self.mean, self.scale
        return lambda value: (value - mean) / scale


class Quantile(Section):
    """x through its training distribution to a standard normal one, linear between knots, flat beyond them."""

    kind: Literal["quantile"] = "quantile"
    knots: tuple[float, ...] = Field(min_length=1)
    """Distinct training quantiles, rising."""
    heights: tuple[float, ...] = Field(min_length=1)
    """Normal score of each knot."""

    def batch(self, values: Floats) -> Floats:
        return np.interp(values, self.knots, self.heights)

    def one(self) -> One:
        knots, heights = list(self.knots), list(self.heights)
        last = len(knots) - 1

        def scale(value: float) -> float:
            right = bisect.bisect_right(knots, value)
            if right == 0:
                return heights[0]
            if right > last:
                return heights[last]
            left = right - 1
            slope = (heights[right] - heights[left]) / (knots[right] - knots[left])
            return slope * (value - knots[left]) + heights[left]

        return scale


class Log(Section):
    """sign(x) log(1 + |x|), then standardised."""

    kind: Literal["log"] = "log"
    mean: float
    """Mean of the logarithms over the training distribution."""
    scale: float
    """Their standard deviation."""

    def batch(self, values: Floats) -> Floats:
        return np.asarray((np.sign(values) * np.log1p(np.abs(values)) - self.mean) / self.scale)

    def one(self) -> One:
        mean, scale = self.mean, self.scale
        return lambda value: (math.copysign(math.log1p(abs(value)), value) - mean) / scale


class YeoJohnson(Section):
    """The power transform of Yeo and Johnson (2000), then standardised."""

    kind: Literal["yeo_johnson"] = "yeo_johnson"
    power: float = Field(ge=-5, le=5)
    """Its lambda: 1 leaves x as it is, 0 is log(1 + x) for x >= 0."""
    mean: float
    """Mean of the powers over the training distribution."""
    scale: float
    """Their standard deviation."""

    def batch(self, values: Floats) -> Floats:
        with np.errstate(over="ignore"):
            return np.asarray((power_transform(values, self.power) - self.mean) / self.scale)

    def one(self) -> One:
        power, mean, scale = self.power, self.mean, self.scale

        def run(value: float) -> float:
            size, left = (1 + value, power) if value >= 0 else (1 - value, 2 - power)
            try:
                grown = math.log(size) if left == 0 else math.expm1(left * math.log(size)) / left
            except OverflowError:
                grown = math.inf
            return (math.copysign(grown, value) - mean) / scale

        return run


class Piecewise(Section):
    """One output a bin: 0 below it, 1 above it, linear inside; the outer bins go on beyond their edges."""

    kind: Literal["piecewise"] = "piecewise"
    edges: tuple[float, ...] = Field(min_length=2)
    """Edges of the bins, rising: one more than there are outputs."""

    @property
    def outputs(self) -> int:
        """W."""
        return len(self.edges) - 1

    def batch(self, values: Floats) -> Floats:
        """float64 (B, W)."""
        edges = np.array(self.edges)
        with np.errstate(over="ignore"):
            inside = (values[:, None] - edges[:-1]) / np.diff(edges)
        low, high = np.zeros(self.outputs), np.ones(self.outputs)
        low[0], high[-1] = -np.inf, np.inf
        return np.asarray(np.clip(inside, low, high))

    def many(self) -> Callable[[float], list[float]]:
        low, width = list(self.edges[:-1]), [high - low for low, high in zip(self.edges, self.edges[1:], strict=False)]
        last = self.outputs - 1

        def run(value: float) -> list[float]:
            place = min(max(bisect.bisect_right(low, value) - 1, 0), last)
            inside = (value - low[place]) / width[place]
            return [1.0] * place + [inside] + [0.0] * (last - place)

        return run


Scaler = Annotated[Standard | Quantile | Log | YeoJohnson | Piecewise, Field(discriminator="kind")]


def power_transform(values: Floats, power: float) -> Floats:
    """The transform of Yeo and Johnson, without standardising: float64 of the same shape."""
    size = np.log1p(np.abs(values))
    left = np.where(values >= 0, power, 2 - power)
    grown = np.where(left == 0, size, np.expm1(left * size) / np.where(left == 0, 1.0, left))
    return np.copysign(grown, values)
