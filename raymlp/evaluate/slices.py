"""The metric on parts of the rows: one record a value of a column. Legend: N rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.core.metrics import METRICS, SHUFFLED, resample
from raymlp.core.records import Task
from raymlp.data.profile import column_type, to_float, to_text

Floats = NDArray[np.float64]
MAX_VALUES = 40
"""Values of a column that are reported, those with the most rows first."""
MAX_WHOLE = 20
"""A number with more distinct values than this is cut into quarters."""
MISSING = "(missing)"


def slices_of(
    table: pa.Table, y: Floats, p: Floats, *, task: Task, metric: str, plain: Iterable[str], sensitive: Iterable[str],
    min_rows: int, samples: int, seed: int,
) -> tuple[Mapping[str, Any], ...]:  # fmt: skip
    """One record for each value with at least `min_rows` rows, columns in the given order, sensitive ones first.

    Keys: column, value, rows (real ones: of anomalies some are made up), sensitive, base_rate (mean answer; binary and regression, else
    None), metric, estimate, low, high, and for a sensitive column of a binary problem selection_rate (share predicted positive at
    threshold .5), else None.
    """
    found: list[Mapping[str, Any]] = []
    protected = list(dict.fromkeys(sensitive))
    for name in (*protected, *(name for name in dict.fromkeys(plain) if name not in protected)):
        for value, rows in groups(table.column(name)):
            count = int((y[rows] != SHUFFLED).sum()) if task == "anomaly" else len(rows)
            if count < min_rows:
                continue
            interval = resample(METRICS[task][metric], y[rows], p[rows], samples=samples, seed=seed)
            found.append({
                "column": name, "value": value, "rows": count, "sensitive": name in protected,
                "base_rate": float(y[rows].mean()) if task in ("binary", "regression") else None,
                "metric": metric, "estimate": interval.value, "low": interval.low, "high": interval.high,
                "selection_rate": float((p[rows] >= 0.5).mean()) if task == "binary" and name in protected else None,
            })  # fmt: skip
    return tuple(found)


def groups(column: pa.ChunkedArray) -> list[tuple[str, NDArray[np.int64]]]:
    """Each value as text with its row indices: the `MAX_VALUES` largest groups, numbers in rising order."""
    if column_type(column.type) in ("float", "int", "timestamp") and pc.count_distinct(column).as_py() > MAX_WHOLE:
        return _quarters(to_float(column))
    encoded = to_text(column).fill_null(MISSING).combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    names = encoded.dictionary.to_pylist()
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=len(names)))[:-1])
    largest = sorted(zip(names, members, strict=True), key=lambda pair: (-len(pair[1]), pair[0]))[:MAX_VALUES]
    return sorted(largest, key=lambda pair: float(pair[0])) if all(map(_is_number, (name for name, _ in largest))) else largest


def _quarters(values: Floats) -> list[tuple[str, NDArray[np.int64]]]:
    known = values[~np.isnan(values)]
    cuts = np.unique(np.quantile(known, [0.25, 0.5, 0.75]))
    place = np.where(np.isnan(values), -1, np.searchsorted(cuts, values, side="left"))
    found = [(MISSING, np.flatnonzero(place == -1))] if (place == -1).any() else []
    for index in range(len(cuts) + 1):
        rows = np.flatnonzero(place == index)
        if len(rows):
            found.append((f"{values[rows].min():.6g} to {values[rows].max():.6g}", rows))
    return found


def _is_number(text: str) -> bool:
    return text.lstrip("-").isdigit()
