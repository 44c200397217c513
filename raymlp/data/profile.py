"""Column statistics from one pass, mergeable in any grouping: the source of imputation, scaling, vocabularies,
the inferred contract, the data report and the drift baseline.

Numbers go into a digest (`raymlp.data.digest`), exact up to 1,024 distinct values. Frequent texts are exact up to about
12,000 distinct values, then undercounted by at most `error` rows each (Misra and Gries 1982). Distinct counts beyond what
is exact use HyperLogLog with 2^12 registers, standard error 1.6 %. Both sketches are Apache DataSketches.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self

import datasketches
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.config.sources import ColumnType
from raymlp.core.errors import DataError
from raymlp.data.digest import Digest, Floats
from raymlp.data.distribution import Distribution

FREQUENT_LG = 14
DISTINCT_LG = 12
LARGEST_WHOLE = 2.0**53
"""Whole numbers beyond it are not told apart as float64."""
MIN_IDS = 101
"""Values below which a column is not called id-like."""
PROSE, PROSE_WORDS, PROSE_SEEN = 0.5, 5.0, 1_000
"""Share of distinct values, and mean number of words of the most frequent ones, from which texts are to be read rather than told apart."""
CLOSE = 4
"""Whole numbers whose range is less than this many times their number are counted by place."""


def column_type(arrow_type: pa.DataType) -> ColumnType | None:
    """Our word for an Arrow type; None for nested and other types that no feature step takes."""
    if pa.types.is_dictionary(arrow_type):
        return column_type(arrow_type.value_type)
    if pa.types.is_boolean(arrow_type):
        return "bool"
    if pa.types.is_integer(arrow_type):
        return "int"
    if pa.types.is_floating(arrow_type) or pa.types.is_decimal(arrow_type):
        return "float"
    if pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type) or pa.types.is_string_view(arrow_type):
        return "string"
    if pa.types.is_timestamp(arrow_type) or pa.types.is_date(arrow_type):
        return "timestamp"
    if pa.types.is_binary(arrow_type) or pa.types.is_large_binary(arrow_type):
        return "bytes"
    return None


def to_float(array: pa.Array | pa.ChunkedArray) -> NDArray[np.float64]:
    """Numbers, booleans and timestamps (seconds since 1970, UTC) as float64; null and infinity become NaN."""
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        micros = array.cast(pa.timestamp("us")).cast(pa.int64())
        values = pc.cast(micros, pa.float64(), safe=False).to_numpy(zero_copy_only=False) / 1e6
    else:
        values = pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(values), values, np.nan)


def to_text(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Text of categories: `true`/`false`, decimal integers, strings as they are, bytes by their CRC-32; null stays null."""
    if column_type(array.type) == "bytes":
        marks = pa.array([None if value is None else f"{zlib.crc32(value):08x}" for value in array.to_pylist()], pa.string())
        return pa.chunked_array([marks]) if isinstance(array, pa.ChunkedArray) else marks
    return array if pa.types.is_string(array.type) else pc.cast(array, pa.string())


@dataclass
class ColumnProfile:
    """Statistics of one column. `mean`, `m2`, `minimum`, `maximum` and quantiles are those of numbers and timestamps, and of
    the length in characters of texts; frequent values are those of texts, booleans and integers."""

    type: ColumnType
    rows: int = 0
    nulls: int = 0
    mean: float = 0.0
    m2: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf
    digest: Digest = field(default_factory=Digest, repr=False)
    frequent: Any = field(default_factory=lambda: datasketches.frequent_strings_sketch(FREQUENT_LG), repr=False)
    distinct: Any = field(default_factory=lambda: datasketches.hll_sketch(DISTINCT_LG), repr=False)

    @property
    def is_number(self) -> bool:
        return self.type in ("int", "float", "timestamp")

    @property
    def is_measured(self) -> bool:
        """Whether it has moments and quantiles: of its numbers, or of the lengths of its texts."""
        return self.is_number or self.type == "string"

    @property
    def values(self) -> int:
        """Rows that are not null."""
        return self.rows - self.nulls

    @property
    def is_constant(self) -> bool:
        """One value in every row, or none in any; a value that is sometimes missing still says something."""
        return self.num_distinct <= 1 and not (self.nulls and self.values)

    def is_id_like(self, share: float) -> bool:
        """Text or whole numbers with more distinct values than this share of them: they name a row. Free text does not."""
        many = self.type in ("string", "int") and self.values >= MIN_IDS and self.num_distinct > share * self.values
        return many and not self.is_prose

    @property
    def is_prose(self) -> bool:
        """Whether it holds free text: most values differ, and those that are kept have several words."""
        if self.type != "string" or self.num_distinct <= PROSE * self.values:
            return False
        words = [len(text.split()) for text in islice(self.counts(), PROSE_SEEN)]
        return bool(words) and sum(words) >= PROSE_WORDS * len(words)

    @property
    def std(self) -> float:
        """Population standard deviation; 0 without values."""
        return math.sqrt(max(self.m2, 0.0) / self.values) if self.values else 0.0

    @property
    def is_exact(self) -> bool:
        """Whether the digest alone tells every number and how often it comes."""
        told_apart = self.type != "int" or not self.values or max(-self.minimum, self.maximum) < LARGEST_WHOLE
        return self.is_number and self.digest.is_exact and told_apart

    @property
    def num_distinct(self) -> int:
        """Number of distinct values, null not counted; an estimate beyond 1,024 numbers or 12,000 texts."""
        if self.is_exact:
            return len(self.digest.means)
        undercounted = self.frequent.get_upper_bound("") - self.frequent.get_lower_bound("")
        if self.type in ("string", "bool") and not undercounted:
            return int(self.frequent.num_active_items)
        return round(float(self.distinct.get_estimate()))

    def update(self, array: pa.ChunkedArray) -> None:
        """Take in more rows."""
        self.rows += len(array)
        if self.is_number:
            self._update_numbers(array)
            return
        self.nulls += array.null_count
        known = to_text(array).drop_null()
        self._count(pc.value_counts(known))
        if self.type == "string":
            self._measure(to_float(pc.utf8_length(known)))

    def _update_numbers(self, array: pa.ChunkedArray) -> None:
        numbers = to_float(array)
        numbers = numbers[~np.isnan(numbers)]
        self.nulls += len(array) - len(numbers)
        before = self._table()
        values = self._measure(numbers)
        if self.is_exact:
            return
        self._leave_exact(before)
        if self.type == "int":
            self._count(pc.value_counts(array.drop_null()))
        else:
            _feed(self.distinct, values)

    def _measure(self, numbers: Floats) -> Floats:
        """Moments, extremes and digest take in finite numbers; gives their distinct values, rising. `rows` and `nulls` are up to date."""
        values, counts = counted_values(numbers, whole=self.type in ("int", "string"))
        if len(values):
            mean = float(counts @ (values / len(numbers)))
            self._add_moments(len(numbers), mean, float(counts @ (values - mean) ** 2))
            self.minimum, self.maximum = min(self.minimum, float(values[0])), max(self.maximum, float(values[-1]))
            self.digest.add(values, counts)
        return values

    def _table(self) -> Digest | None:
        """The numbers so far and their counts, while they are exact."""
        return Digest(self.digest.means, self.digest.weights, self.digest.pure) if self.is_exact else None

    def _leave_exact(self, before: Digest | None) -> None:
        """Give what was counted exactly to the sketches that count from now on."""
        if before is None:
            return
        if self.type == "int":
            for value, count in zip(before.means, before.weights, strict=True):
                self.frequent.update(str(int(value)), int(count))
                self.distinct.update(str(int(value)))
        else:
            _feed(self.distinct, before.means)

    def _count(self, counted: pa.StructArray) -> None:
        values = pc.cast(counted.field("values"), pa.string()).to_pylist()
        for value, count in zip(values, counted.field("counts").to_pylist(), strict=True):
            self.distinct.update(value)
            if self.type != "bytes":
                self.frequent.update(value, count)

    def _add_moments(self, count: int, mean: float, m2: float) -> None:
        """Pairwise update of mean and sum of squared deviations (Chan, Golub, LeVeque 1979). `nulls` is up to date."""
        total = self.values
        before = total - count
        delta = mean - self.mean
        self.mean += delta * count / total
        self.m2 += m2 + delta * delta * before * count / total

    def merge(self, other: ColumnProfile) -> None:
        """Take in the rows of another profile of the same column."""
        if other.type != self.type:
            raise DataError(f"cannot merge a profile of type {other.type} into one of type {self.type}.")
        mine, theirs = self._table(), other._table()
        self.rows += other.rows
        self.nulls += other.nulls
        if other.values and self.is_measured:
            self._add_moments(other.values, other.mean, other.m2)
            self.minimum = min(self.minimum, other.minimum)
            self.maximum = max(self.maximum, other.maximum)
            self.digest.merge(other.digest)
        if not self.is_exact:
            self._leave_exact(mine)
            self._leave_exact(theirs)
        self.frequent.merge(other.frequent)
        union = datasketches.hll_union(DISTINCT_LG)
        union.update(self.distinct)
        union.update(other.distinct)
        self.distinct = union.get_result(datasketches.tgt_hll_type.HLL_4)

    def quantile(self, share: float) -> float:
        """Value below which `share` (in [0, 1]) of the values lie; NaN without values."""
        return self.digest.quantile(share)

    def distribution(self) -> Distribution | None:
        """How the numbers are distributed; None without values."""
        return Distribution.of(self.digest, self.minimum, self.maximum)

    def share_up_to(self, point: float) -> float:
        """Share of the numbers that are at most `point`, in [0, 1]; 0 without values."""
        distribution = self.distribution()
        return float(distribution.up_to(np.array([point]))[0]) if distribution else 0.0

    def counts(self) -> dict[str, int]:
        """Frequent texts, booleans or whole numbers and their counts, most frequent first, ties by value."""
        if self.type == "int" and self.is_exact:
            items = [(str(int(value)), int(count)) for value, count in zip(self.digest.means, self.digest.weights, strict=True)]
        else:
            kind = datasketches.frequent_items_error_type.NO_FALSE_NEGATIVES
            items = [(item[0], int(item[1])) for item in self.frequent.get_frequent_items(kind, 0)]
        return dict(sorted(items, key=lambda pair: (-pair[1], pair[0])))

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"type": self.type, "rows": self.rows, "nulls": self.nulls}
        if self.is_measured:
            plain |= {"mean": self.mean, "m2": self.m2, "minimum": self.minimum, "maximum": self.maximum}
            plain["digest"] = self.digest.to_dict()
        if not self.is_exact:
            plain["distinct"] = base64.b64encode(self.distinct.serialize_compact()).decode()
            if self.type not in ("float", "timestamp"):
                plain["frequent"] = self.counts()
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        profile = cls(plain["type"], plain["rows"], plain["nulls"])
        if profile.is_measured:
            profile.mean, profile.m2 = plain["mean"], plain["m2"]
            profile.minimum = math.inf if plain["minimum"] is None else plain["minimum"]
            profile.maximum = -math.inf if plain["maximum"] is None else plain["maximum"]
            profile.digest = Digest.from_dict(plain["digest"])
        for value, count in plain.get("frequent", {}).items():
            profile.frequent.update(value, count)
        if "distinct" in plain:
            profile.distinct = datasketches.hll_sketch.deserialize(base64.b64decode(plain["distinct"]))
        return profile


def counted_values(numbers: Floats, *, whole: bool) -> tuple[Floats, NDArray[np.int64]]:
    """Distinct finite numbers, rising, and how often each comes. Whole numbers that lie close together are counted without a sort."""
    if whole and len(numbers):
        low, high = float(numbers.min()), float(numbers.max())
        if high - low < CLOSE * len(numbers) and max(-low, high) < LARGEST_WHOLE:
            counts = np.bincount((numbers - low).astype(np.int64))
            found = np.flatnonzero(counts)
            return found.astype(np.float64) + low, counts[found]
    values, counts = np.unique(numbers, return_counts=True)
    return values, counts


def _feed(sketch: Any, values: Floats) -> None:
    """Distinct numbers into a distinct sketch, which takes one at a time."""
    update = sketch.update
    for value in values.tolist():
        update(value)


@dataclass
class Profile:
    """Profiles of the columns of a table. Columns of nested types are left out."""

    rows: int = 0
    columns: dict[str, ColumnProfile] = field(default_factory=dict)

    def update(self, table: pa.Table) -> Self:
        """Take in the rows of a table; columns that appear for the first time are added."""
        self.rows += table.num_rows
        for name in table.column_names:
            column = table.column(name)
            kind = column_type(column.type)
            if kind is not None:
                self.columns.setdefault(name, ColumnProfile(kind)).update(column)
        return self

    def merge(self, other: Profile) -> Self:
        """Take in the rows of another profile."""
        self.rows += other.rows
        for name, column in other.columns.items():
            if name in self.columns:
                self.columns[name].merge(column)
            else:
                self.columns[name] = ColumnProfile.from_dict(column.to_dict())
        return self

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "columns": {name: column.to_dict() for name, column in self.columns.items()}}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        columns = {name: ColumnProfile.from_dict(column) for name, column in plain["columns"].items()}
        return cls(plain["rows"], columns)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels between processes as plain values: its sketches cannot."""
        return type(self).from_dict, (self.to_dict(),)


def merged(profiles: Iterable[Profile]) -> Profile:
    """One profile of all, merged pairwise in a tree, so that error does not pile up in one branch."""
    level = list(profiles) or [Profile()]
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [pair[0].merge(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
    return level[0]
