"""Columns that know the answer: a single column that, alone, predicts the target almost perfectly on rows it was not fitted to."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.core.metrics import auc, r2
from raymlp.core.records import Task
from raymlp.data.profile import column_type, to_float, to_text

BINS = 50


def single_column_score(column: pa.ChunkedArray, y: NDArray[np.float64], task: Task) -> float:
    """How well one column alone predicts `y` (N,), in [0, 1]: AUC, share of the majority's errors that it avoids, or R squared.

    The column is cut into at most 50 quantile bins (or its categories; no value is a bin of its own). Bin means from even
    rows predict odd rows, so that a column which merely names rows scores nothing.
    """
    bins = _bins(column)
    fit, check = np.arange(len(y)) % 2 == 0, np.arange(len(y)) % 2 == 1
    if task == "multiclass":
        return _class_score(bins, y, fit, check)
    size = int(bins.max()) + 1
    count = np.bincount(bins[fit], minlength=size)
    overall = float(y[fit].mean())
    mean = (np.bincount(bins[fit], weights=y[fit], minlength=size) + overall) / (count + 1)
    value = auc(y[check], mean[bins[check]]) if task == "binary" else r2(y[check], mean[bins[check]])
    return float(np.nan_to_num(np.clip(value, 0, 1)))


def _class_score(bins: NDArray[np.int64], y: NDArray[np.float64], fit: NDArray[np.bool_], check: NDArray[np.bool_]) -> float:
    classes = int(y.max()) + 1
    table = np.zeros((int(bins.max()) + 1, classes))
    np.add.at(table, (bins[fit], y[fit].astype(int)), 1)
    majority = int(table.sum(axis=0).argmax())
    table[:, majority] += 0.5
    wrong = float(np.mean(table.argmax(axis=1)[bins[check]] != y[check]))
    base = float(np.mean(y[check] != majority))
    return max(0.0, 1 - wrong / base) if base else 0.0


def _bins(column: pa.ChunkedArray) -> NDArray[np.int64]:
    if column_type(column.type) in ("int", "float", "timestamp"):
        values = to_float(column)
        known = values[~np.isnan(values)]
        edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1])) if len(known) else np.array([])
        return np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="right")).astype(np.int64)
    codes = pc.dictionary_encode(to_text(column), null_encoding="encode").combine_chunks()
    return np.asarray(codes.indices.to_numpy(zero_copy_only=False).astype(np.int64))
