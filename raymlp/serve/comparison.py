"""A shadow's answers beside the champion's for the same rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.data.labels import row_ids
from raymlp.data.target import Target

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class ShadowReport:
    """One shadow beside one champion. `difference` is shadow minus champion of the logged answers, by quantile; NaN where answers are
    classes or clusters. Latencies in ms by quantile; the shadow's begins when its turn comes and is that of the model alone, the
    champion's is from request to answer."""

    champion: str
    shadow: str
    rows: int
    failed: int
    refused: int
    mean: float
    quantiles: dict[float, float]
    changed: float
    """Share of rows with another label, in [0, 1]; NaN where answers have no labels."""
    champion_ms: dict[float, float]
    shadow_ms: dict[float, float]


def compare(log: pa.Table, shadows: pa.Table, champion: Target | None, shadow: Target | None) -> list[ShadowReport]:
    """A report for each pair of versions in the logs, on rows that both have. `champion` and `shadow` say what answers mean; None of either
    compares them as numbers."""
    shadows = shadows.filter(pc.is_in(row_ids(shadows), value_set=row_ids(log).combine_chunks()))
    if not shadows.num_rows:
        return []
    beside = log.take(pc.index_in(row_ids(shadows), value_set=row_ids(log).combine_chunks()))
    pairs = sorted(set(zip(beside.column("version").to_pylist(), shadows.column("version").to_pylist(), strict=True)))
    found = []
    for old, new in pairs:
        some = pc.and_(pc.equal(beside.column("version"), old), pc.equal(shadows.column("version"), new))
        found.append(_report(old, new, beside.filter(some), shadows.filter(some), champion, shadow))
    return found


def _report(old: str, new: str, log: pa.Table, shadows: pa.Table, champion: Target | None, shadow: Target | None) -> ShadowReport:
    status = shadows.column("status").to_numpy()
    both = (status == 200) & (log.column("status").to_numpy() == 200)
    a, b = (table.column("prediction").to_numpy(zero_copy_only=False).astype(np.float64)[both] for table in (log, shadows))
    names_classes = champion is not None and champion.task in ("multiclass", "clustering")
    difference = np.zeros(0) if names_classes else b - a
    return ShadowReport(
        old,
        new,
        len(status),
        int((status >= 500).sum()),
        int((status == 422).sum()),
        float(difference.mean()) if len(difference) else float("nan"),
        _quantiles(difference),
        float(_changed(a, b, champion, shadow).mean()) if champion and shadow and len(a) and champion.classes else float("nan"),
        _quantiles(log.column("latency_ms").to_numpy()[both]),
        _quantiles(shadows.column("latency_ms").to_numpy()[both]),
    )


def _changed(a: NDArray[np.float64], b: NDArray[np.float64], champion: Target, shadow: Target) -> NDArray[np.bool_]:
    """Whether the label is another: binary by the threshold .5, several classes by name."""
    if champion.task == "binary":
        return np.asarray((a >= 0.5) != (b >= 0.5))
    old, new = np.array(champion.classes), np.array(shadow.classes)
    return np.asarray(old[a.astype(int)] != new[b.astype(int)])


def _quantiles(values: NDArray[np.float64]) -> dict[float, float]:
    found = np.quantile(values, QUANTILES) if len(values) else np.full(len(QUANTILES), np.nan)
    return dict(zip(QUANTILES, found.tolist(), strict=True))
