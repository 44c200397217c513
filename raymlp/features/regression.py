"""A missing number predicted from the others: one step of chained equations (van Buuren and Groothuis-Oudshoorn 2011) with a Bayesian
ridge regression (MacKay 1992), whose penalty follows from the data. Deterministic: the mean is predicted, nothing is drawn.

Legend: n sampled rows, C columns, B rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymlp.config.section import Section
from raymlp.data.profile import ColumnProfile
from raymlp.features.reading import number_reader, numbers

Floats = NDArray[np.float64]
ROUNDS = 300
SETTLED = 1e-8
"""Change of the penalty, relative, at which it is taken as found."""
VAGUE = 1e-6
"""Shape and rate of the Gamma priors on both precisions: they keep a perfect fit finite."""
MAX_TERMS = 25
"""Columns that a prediction is made of at most, those that correlate most with it; van Buuren (2018) advises 15 to 25."""
MIN_ROWS = 10
"""Sampled rows with a value that a regression asks for."""


class Term(Section):
    """What one other column adds: weight x (value - centre)."""

    column: str
    """Column read."""
    fill: float
    """Value that stands for a missing one: the median of the training rows."""
    low: float
    """Smallest value in training; smaller ones are taken as it."""
    high: float
    """Largest value in training; larger ones are taken as it."""
    centre: float
    """Value that adds nothing: the mean of the sampled rows."""
    weight: float
    """Change of the prediction with one unit of the column."""


class Regression(Section):
    """Prediction of a column from others, kept within the column's training range."""

    terms: tuple[Term, ...]
    """Other columns, at least one."""
    base: float
    """Prediction where every term adds nothing."""
    low: float
    """Smallest prediction: the smallest value in training."""
    high: float
    """Largest prediction."""

    def batch(self, table: pa.Table) -> Floats:
        """float64 (B,). Terms are added in their order, as for one row, so that both sums are equal to the last bit."""
        total = np.full(table.num_rows, self.base)
        for term in self.terms:
            values = numbers(table.column(term.column), None)
            values = np.clip(np.where(np.isnan(values), term.fill, values), term.low, term.high)
            total += term.weight * (values - term.centre)
        return np.clip(total, self.low, self.high)

    def one(self) -> Callable[[Mapping[str, Any]], float]:
        """A function from the typed values of a row to the prediction."""
        facts = [(term.column, term.fill, term.low, term.high, term.centre, term.weight) for term in self.terms]
        base, bottom, top, read, isfinite = self.base, self.low, self.high, number_reader(None), math.isfinite

        def run(row: Mapping[str, Any]) -> float:
            total = base
            for column, fill, low, high, centre, weight in facts:
                value = row[column]
                number = fill if value is None else read(value)
                if not isfinite(number):
                    number = fill
                total += weight * ((low if number < low else high if number > high else number) - centre)
            return bottom if total < bottom else top if total > top else total

        return run


@dataclass(frozen=True)
class Sample:
    """Sampled training rows, filled with medians and standardised: `values` float64 (n, C), `known` bool (n, C)."""

    names: tuple[str, ...]
    values: Floats
    known: NDArray[np.bool_]
    centres: Floats
    scales: Floats
    profiles: Mapping[str, ColumnProfile]
    products: Floats

    @classmethod
    def of(cls, table: pa.Table, names: Sequence[str], profiles: Mapping[str, ColumnProfile]) -> Self:
        """Of the columns that vary in the sample; the others tell nothing."""
        raw = np.stack([numbers(table.column(name), None) for name in names], axis=1)
        known = ~np.isnan(raw)
        filled = np.where(known, raw, [profiles[name].quantile(0.5) for name in names])
        with np.errstate(over="ignore", invalid="ignore"):
            centres, scales = filled.mean(axis=0), filled.std(axis=0)
        kept = np.isfinite(scales) & (scales > 0)
        values = (filled[:, kept] - centres[kept]) / scales[kept]
        varying = tuple(name for name, keep in zip(names, kept, strict=True) if keep)
        return cls(varying, values, known[:, kept], centres[kept], scales[kept], profiles, values.T @ values)

    def regression(self, name: str) -> tuple[Regression, float, int] | None:
        """The regression of a column on others, the share of the variance it explains (in [0, 1]) and the rows it was fitted on.

        None when the sample has no other column that varies, or too few values of this one.
        """
        if name not in self.names or len(self.names) < 2:
            return None
        place = self.names.index(name)
        rows = int(self.known[:, place].sum())
        if rows < MIN_ROWS:
            return None
        means, products = self._moments(place, rows)
        others = _strongest(products, place)
        weights, explained = bayesian_ridge(products[np.ix_(others, others)], products[others, place], products[place, place], rows)
        unit = self.scales[place]
        terms = tuple(self._term(i, float(weight * unit / self.scales[i])) for i, weight in zip(others, weights, strict=True))
        base = self.centres[place] + unit * (means[place] - weights @ means[others])
        column = self.profiles[name]
        return Regression(terms=terms, base=float(base), low=column.minimum, high=column.maximum), explained, rows

    def _moments(self, place: int, rows: int) -> tuple[Floats, Floats]:
        """Means (C,), and sums of products about them (C, C), over the rows that know a column. The fewer rows are multiplied."""
        known = self.known[:, place]
        if 2 * rows > len(known):
            lacking = self.values[~known]
            products, sums = self.products - lacking.T @ lacking, self.values.sum(axis=0) - lacking.sum(axis=0)
        else:
            having = self.values[known]
            products, sums = having.T @ having, having.sum(axis=0)
        means = sums / rows
        return means, products - rows * np.outer(means, means)

    def _term(self, i: int, weight: float) -> Term:
        name = self.names[i]
        column = self.profiles[name]
        return Term(
            column=name,
            fill=column.quantile(0.5),
            low=column.minimum,
            high=column.maximum,
            centre=float(self.centres[i]),
            weight=weight,
        )


def _strongest(products: Floats, place: int) -> list[int]:
    """The columns that correlate most with one, in their order; ties go to the first. One without spread comes last."""
    spread = np.sqrt(np.maximum(np.diag(products), 0.0))
    strength = np.divide(np.abs(products[place]), spread, out=np.zeros(len(spread)), where=spread > 0)
    strength[place] = -1.0
    return sorted(np.argsort(-strength, kind="stable")[: min(MAX_TERMS, len(spread) - 1)].tolist())


def bayesian_ridge(gram: Floats, moments: Floats, total: float, rows: int) -> tuple[Floats, float]:
    """Weights (C,) and the share of the variance they explain, in [0, 1].

    `gram` (C, C) and `moments` (C,) are sums of products of the centred inputs with each other and with the centred answer, `total`
    the answer's own. Weights have a normal prior, and its precision and that of the noise are those under which the data is most
    likely, found by MacKay's fixed point.
    """
    spread, axes = np.linalg.eigh(gram)
    spread, along = np.maximum(spread, 0.0), axes.T @ moments
    noise, prior = rows / max(total, VAGUE), 1.0
    weights = np.zeros_like(along)
    for _ in range(ROUNDS):
        penalty = prior / noise
        weights = along / (spread + penalty)
        error = max(total - 2 * along @ weights + weights @ (spread * weights), 0.0)
        used = float(np.sum(spread / (spread + penalty)))
        prior = (used + 2 * VAGUE) / (weights @ weights + 2 * VAGUE)
        noise = (rows - used + 2 * VAGUE) / (error + 2 * VAGUE)
        if abs(prior / noise - penalty) <= SETTLED * penalty:
            break
    explained = 1 - error / total if total > 0 else 0.0
    return axes @ weights, float(np.clip(explained, 0.0, 1.0))
