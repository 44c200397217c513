"""How the target moves with each column, and which numeric columns move together: mergeable, from one pass over the training rows.

The pass needs an outline, which is read off the profile of the same rows: bins, categories, and the mean and deviation
that values are standardised by. Under one outline everything is a sum, so parts merge by addition, in any grouping.

Limits: sums are exact for the bins of the outline, whose edges come from a t-digest (about 1 % of the rows off a true
quantile). A column has at most 20 numeric bins, or 24 categories and one for all others. Correlations are kept for the
first 200 numeric columns that vary. Multiclass targets keep the 8 most frequent classes and one for all others.

Legend: N rows, P paired columns, B bins of a column, K kept classes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.data.profile import ColumnProfile, Profile, to_float, to_text
from raymlp.data.target import Target

Floats = NDArray[np.float64]
MAX_BINS, BIN_ROWS = 20, 200
"""Most bins of a numeric column, and the rows that a bin should have."""
MAX_CATEGORIES = 24
MAX_PAIRED = 200
MAX_CLASSES = 8
Z_95 = 1.96


@dataclass(frozen=True)
class Outline:
    """What is fixed before the pass. `edges` are inclusive upper ends; `scales` hold mean and deviation of the paired columns.

    `answer` is (mean, deviation) of the target (binary and regression), `classes` the indices of the kept classes.
    """

    target: Target
    answer: tuple[float, float]
    classes: tuple[int, ...]
    edges: Mapping[str, tuple[float, ...]]
    categories: Mapping[str, tuple[str, ...]]
    scales: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, profile: Profile, target: Target) -> Self:
        """Read the outline off the profile of the training rows. Without a target no column has bins, and the pairs are left."""
        others = {name: column for name, column in profile.columns.items() if name != target.column and column.values}
        answers = profile.columns[target.column] if target.column is not None else None
        if answers is None:
            others = {}
        numbers = {name: column for name, column in profile.columns.items() if column.type in ("int", "float") and column.std > 0}
        return cls(
            target,
            (answers.mean, answers.std) if answers and target.task == "regression" else (0.0, 1.0),
            _frequent_classes(target, answers) if answers else (),
            {name: edges_of(column) for name, column in others.items() if column.is_number},
            {name: tuple(column.counts())[:MAX_CATEGORIES] for name, column in others.items() if not column.is_number},
            {name: (column.mean, column.std) for name, column in list(numbers.items())[:MAX_PAIRED]},
        )

    @property
    def columns(self) -> list[str]:
        """Columns that have bins."""
        return [*self.edges, *self.categories]

    @property
    def width(self) -> int:
        """Numbers a bin keeps: rows of each class and of the others, or rows, sum and sum of squares of the answers."""
        return len(self.classes) + 1 if self.target.task == "multiclass" else 3

    def bins(self, name: str) -> int:
        """Bins of a column: the last one is for missing values; categories have one before it for all others."""
        return len(self.edges[name]) + 2 if name in self.edges else len(self.categories[name]) + 2

    def to_dict(self) -> dict[str, Any]:
        return {
            "target": self.target.model_dump(mode="json"),
            "answer": list(self.answer),
            "classes": list(self.classes),
            "edges": [[name, list(edges)] for name, edges in self.edges.items()],
            "categories": [[name, list(categories)] for name, categories in self.categories.items()],
            "scales": [[name, list(scale)] for name, scale in self.scales.items()],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        maps = ({name: tuple(values) for name, values in plain[key]} for key in ("edges", "categories", "scales"))
        return cls(Target(**plain["target"]), tuple(plain["answer"]), tuple(plain["classes"]), *maps)


@dataclass(frozen=True)
class Answers:
    """The target within one bin: its upper edge or category and its rows; the mean answer with its 95 % interval, or the
    shares of the classes, which sum to 1."""

    of: Literal["values", "other", "missing"]
    bin: float | str
    rows: int
    mean: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    shares: tuple[float, ...] = ()


@dataclass
class Association:
    """Sums over rows under one outline. `tables` are float64 (B, outline.width); `pairs` float64 (4, P, P)."""

    outline: Outline
    tables: dict[str, Floats] = field(default_factory=dict)
    pairs: Floats = field(default_factory=lambda: np.zeros((4, 0, 0)))

    def __post_init__(self) -> None:
        if not self.tables:
            self.tables = {name: np.zeros((self.outline.bins(name), self.outline.width)) for name in self.outline.columns}
            self.pairs = np.zeros((4, len(self.outline.scales), len(self.outline.scales)))

    def update(self, table: pa.Table) -> Self:
        """Take in more rows. Rows without an answer count for the correlations alone."""
        if not table.num_rows:
            return self
        answers, _ = self.outline.target.answers(table)
        known = ~np.isnan(answers)
        numbers = {name: to_float(table.column(name)) for name in {**self.outline.edges, **self.outline.scales}}
        for name, edges in self.outline.edges.items():
            values = numbers[name]
            self._count(name, np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values)), answers, known)
        for name, categories in self.outline.categories.items():
            self._count(name, _category_bins(table.column(name), categories), answers, known)
        if self.outline.scales:
            self.pairs += _pair_sums(numbers, self.outline.scales)
        return self

    def _count(self, name: str, bins: NDArray[np.int64], answers: Floats, known: NDArray[np.bool_]) -> None:
        bins, answers = bins[known], answers[known]
        size, width = self.outline.bins(name), self.outline.width
        if self.outline.target.task == "multiclass":
            lookup = np.full(len(self.outline.target.classes) + 1, len(self.outline.classes))
            lookup[list(self.outline.classes)] = np.arange(len(self.outline.classes))
            self.tables[name] += np.bincount(bins * width + lookup[answers.astype(int)], minlength=size * width).reshape(size, width)
            return
        centred = (answers - self.outline.answer[0]) / self.outline.answer[1]
        for place, weights in enumerate((None, centred, centred * centred)):
            self.tables[name][:, place] += np.bincount(bins, weights=weights, minlength=size)

    def merge(self, other: Association) -> Self:
        """Take in the rows of another, made under an equal outline."""
        assert self.outline == other.outline, "two outlines"
        for name, sums in other.tables.items():
            self.tables[name] = self.tables[name] + sums
        self.pairs = self.pairs + other.pairs
        return self

    def answers(self, name: str) -> list[Answers]:
        """The target in each bin of a column that has rows, in the order of the bins; missing values last."""
        ends = [*self.outline.edges[name], float("inf")] if name in self.outline.edges else self.outline.categories[name]
        places: list[tuple[Literal["values", "other", "missing"], float | str]] = [("values", end) for end in ends]
        places += [("missing", "")] if name in self.outline.edges else [("other", ""), ("missing", "")]
        return [self._answers(*place, sums) for place, sums in zip(places, self.tables[name], strict=True) if self._rows(sums)]

    def _rows(self, sums: Floats) -> int:
        return int(sums.sum() if self.outline.target.task == "multiclass" else sums[0])

    def _answers(self, of: Literal["values", "other", "missing"], end: float | str, sums: Floats) -> Answers:
        rows = self._rows(sums)
        if self.outline.target.task == "multiclass":
            return Answers(of, end, rows, shares=tuple(float(share) for share in sums / rows))
        centre, scale = self.outline.answer
        mean = sums[1] / rows
        variance = max(0.0, (sums[2] - rows * mean * mean) / max(rows - 1, 1))
        margin = Z_95 * float(np.sqrt(variance / rows))
        middle, spread = float(centre + scale * mean), scale * margin
        return Answers(of, end, rows, middle, middle - spread, middle + spread)

    def strength(self, name: str) -> float:
        """How well the column's bins tell the target, in [0, 1], corrected for chance: the correlation ratio
        (binary, regression; epsilon squared of Kelley 1935, its root), or Cramer's V (multiclass; Bergsma 2013). NaN without rows.
        """
        sums = self.tables[name]
        if self.outline.target.task == "multiclass":
            return cramers_v(sums)
        return correlation_ratio(sums)

    def correlations(self) -> tuple[list[str], Floats, Floats]:
        """Names of the P paired columns, Pearson's r float64 (P, P) and the rows (P, P) in which both have a value.

        Each pair uses the rows that have both values; NaN where fewer than two, or where one does not vary in them.
        """
        rows, sums, squares, products = self.pairs
        with np.errstate(invalid="ignore", divide="ignore"):
            covariance = products / rows - (sums / rows) * (sums.T / rows)
            variance = squares / rows - (sums / rows) ** 2
            r = covariance / np.sqrt(variance * variance.T)
        r = np.where((variance > 1e-12) & (variance.T > 1e-12) & (rows > 1), np.clip(r, -1, 1), np.nan)
        return list(self.outline.scales), r, rows

    def to_dict(self) -> dict[str, Any]:
        return {
            "outline": self.outline.to_dict(),
            "tables": [[name, sums.tolist()] for name, sums in self.tables.items()],
            "pairs": base64.b64encode(self.pairs.astype("<f8").tobytes()).decode(),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        outline = Outline.from_dict(plain["outline"])
        size = len(outline.scales)
        pairs = np.frombuffer(base64.b64decode(plain["pairs"]), "<f8").astype(np.float64).reshape(4, size, size)
        tables = {name: np.array(sums, np.float64).reshape(outline.bins(name), outline.width) for name, sums in plain["tables"]}
        return cls(outline, tables, pairs)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls.from_dict(json.loads(text))


def merged_associations(parts: Iterable[Association]) -> Association:
    """One of all; at least one is expected."""
    return reduce(lambda left, right: left.merge(right), parts)


def edges_of(column: ColumnProfile) -> tuple[float, ...]:
    """Inclusive upper ends of a numeric column's bins but the last: its values where they are few, else its quantiles."""
    distribution = column.distribution()
    if distribution is None:
        return ()
    if len(distribution.x) <= MAX_BINS:
        values = distribution.x
    else:
        bins = int(np.clip(column.values // BIN_ROWS, 4, MAX_BINS))
        values = np.unique(np.r_[distribution.quantiles(np.arange(1, bins) / bins), column.maximum])
    return tuple(float(value) for value in values[:-1])


def correlation_ratio(sums: Floats) -> float:
    """Root of the share of the answers' variance that the bins explain, less what chance alone gives, in [0, 1].

    `sums` float64 (B, 3): rows, sum and sum of squares of the answers, centred near their mean.
    """
    used = sums[sums[:, 0] > 0]
    rows, total, squares = used.sum(axis=0) if len(used) else (0.0, 0.0, 0.0)
    whole = squares - total * total / max(rows, 1)
    if whole <= 0 or rows <= len(used):
        return float("nan")
    within = squares - float((used[:, 1] ** 2 / used[:, 0]).sum())
    return float(np.sqrt(np.clip(1 - (within / (rows - len(used))) / (whole / (rows - 1)), 0, 1)))


def cramers_v(table: Floats) -> float:
    """Association of two groupings, in [0, 1], corrected for chance (Bergsma 2013). `table` float64 (B, K) counts rows."""
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    rows = table.sum()
    if min(table.shape, default=0) < 2 or rows < 2:
        return float("nan")
    fitted = np.outer(table.sum(axis=1), table.sum(axis=0)) / rows
    phi = float(((table - fitted) ** 2 / fitted).sum()) / rows
    lines, columns = table.shape
    phi = max(0.0, phi - (lines - 1) * (columns - 1) / (rows - 1))
    smaller = min(size - (size - 1) ** 2 / (rows - 1) for size in (lines, columns)) - 1
    return float(np.sqrt(min(1.0, phi / smaller))) if smaller > 0 else float("nan")


def _frequent_classes(target: Target, column: ColumnProfile) -> tuple[int, ...]:
    if target.task != "multiclass":
        return ()
    places = {name: index for index, name in enumerate(target.classes)}
    return tuple(places[name] for name in list(column.counts())[:MAX_CLASSES])


def _category_bins(column: pa.ChunkedArray, categories: tuple[str, ...]) -> NDArray[np.int64]:
    texts = to_text(column)
    found = pc.index_in(texts, value_set=pa.array(categories, texts.type)).fill_null(len(categories))
    missing = texts.is_null().to_numpy(zero_copy_only=False) if isinstance(texts, pa.Array) else texts.is_null().to_numpy()
    return np.where(missing, len(categories) + 1, found.to_numpy()).astype(np.int64)


def _pair_sums(numbers: Mapping[str, Floats], scales: Mapping[str, tuple[float, float]]) -> Floats:
    """Over the rows in which both columns have a value: rows, sum and sum of squares of the first, and sum of products.

    Values are standardised by the whole column, so that sums lose no digits. float64 (4, P, P).
    """
    values = np.stack([(numbers[name] - mean) / deviation for name, (mean, deviation) in scales.items()], axis=1)
    present = ~np.isnan(values)
    if present.all():
        rows = np.full((values.shape[1],) * 2, float(len(values)))
        sums = np.repeat(values.sum(axis=0)[:, None], values.shape[1], axis=1)
        squares = np.repeat((values * values).sum(axis=0)[:, None], values.shape[1], axis=1)
        return np.stack([rows, sums, squares, values.T @ values])
    mask = present.astype(np.float64)
    values = np.where(present, values, 0.0)
    return np.stack([mask.T @ mask, values.T @ mask, (values * values).T @ mask, values.T @ values])
