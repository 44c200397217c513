"""Has a column changed? Two profiles in, one finding a column out.

Two questions, both of which must be answered yes. How large is the change: the population stability index. Could it be
chance: a Kolmogorov-Smirnov test (numbers) or a chi-square test (categories), with Holm's correction over the columns.
A small sample passes the first by luck and a large one the second by a trifle; together they do neither.

Legend: B bins, n baseline rows, m live rows, p and q the shares of a bin in baseline and live.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, kolmogorov

from raymlp.config.monitor import Monitor
from raymlp.core.records import Finding
from raymlp.data.distribution import Distribution
from raymlp.data.profile import ColumnProfile, Profile

Floats = NDArray[np.float64]
NUM_BINS = 10
"""Bins of a numeric column: tenths of the baseline, and one more for missing values."""
NUM_CATEGORIES = 30
"""Most frequent baseline categories with a bin of their own; the others share one."""
ATOM = 0.02
"""A value that at least this share of the baseline has gets a bin of its own."""
MIN_EXPECTED = 5.0
"""Rows a chi-square cell must be expected to have (Cochran 1954); smaller ones are pooled."""


@dataclass(frozen=True)
class Change:
    """How one column differs. `psi` is corrected for sample size; `p_value` is not yet corrected for the number of columns."""

    psi: float
    p_value: float
    test: str
    note: str


def drift(
    baseline: Profile, live: Profile, settings: Monitor, *, kind: Literal["feature drift", "prediction drift"] = "feature drift"
) -> tuple[Finding, ...]:
    """One finding for each column that both profiles have, largest change first.

    A finding alerts when the index is at least `settings.psi`, the corrected p-value at most `settings.p_value`, and
    there are `settings.min_rows` live rows. A timestamp moves on by nature: it is reported and never alerts.
    """
    names = [name for name in baseline.columns if name in live.columns and name not in settings.ignore]
    changes = [compare(baseline.columns[name], live.columns[name]) for name in names]
    corrected = holm([change.p_value for change in changes])
    found = []
    for name, change, p_value in zip(names, changes, corrected, strict=True):
        rows = live.columns[name].rows
        clock = baseline.columns[name].type == "timestamp"
        large = change.psi >= settings.psi and p_value <= settings.p_value
        notes = [f"{change.test}, {shown(p_value)}", change.note]
        notes += ["a clock: expected to move"] if clock else []
        notes += [f"not judged: fewer than {settings.min_rows} rows"] if rows < settings.min_rows else []
        alert = large and rows >= settings.min_rows and not clock
        found.append(Finding(kind, name, "psi", change.psi, settings.psi, rows, alert, "; ".join(filter(None, notes))))
    return tuple(sorted(found, key=lambda finding: (-finding.alert, -finding.value)))


def compare(baseline: ColumnProfile, live: ColumnProfile) -> Change:
    """The change of one column. Nothing to compare (no rows on a side) is no change: index 0, p-value 1.

    Raises ValueError when one side holds numbers and the other categories.
    """
    if not baseline.rows or not live.rows:
        return Change(0.0, 1.0, "no rows", "")
    if baseline.is_number != live.is_number:
        raise ValueError(f"a column of type {live.type} cannot be compared with one of type {baseline.type}; expected the same kind.")
    return _compare_numbers(baseline, live) if baseline.is_number else _compare_categories(baseline, live)


def psi(expected: Floats, found: Floats) -> float:
    """Population stability index of two tables of counts, float64 (B,) each, less what chance alone gives.

    Sum of (q - p) ln(q / p); 0 for equal shares, no upper limit, .1 is slight and .25 is strong. Half a row is added to
    each bin, so that an empty one stays finite. Two samples of one distribution give (B - 1) (1/n + 1/m) on average
    (the index is close to a chi-square statistic, Yurdakul 2018); that much is subtracted, and the result is at least 0.
    """
    used = (expected > 0) | (found > 0)
    expected, found = expected[used] + 0.5, found[used] + 0.5
    if len(expected) < 2:
        return 0.0
    p, q = expected / expected.sum(), found / found.sum()
    chance = (len(p) - 1) * (1 / expected.sum() + 1 / found.sum())
    return max(0.0, float(np.sum((q - p) * np.log(q / p)) - chance))


def ks_test(baseline: Distribution, live: Distribution, *, n: int, m: int) -> tuple[float, float]:
    """Largest distance of two distributions, in [0, 1], and its p-value (two-sample Kolmogorov-Smirnov, asymptotic).

    The p-value is too large, never too small, where values are tied.
    """
    points = np.union1d(baseline.x, live.x)
    below = np.abs(baseline.below(points) - live.below(points)).max()
    up_to = np.abs(baseline.up_to(points) - live.up_to(points)).max()
    distance = float(max(below, up_to))
    return distance, float(kolmogorov(distance * np.sqrt(n * m / (n + m))))


def chi_square_test(expected: Floats, found: Floats) -> tuple[float, float]:
    """Statistic and p-value of two tables of counts, float64 (B,) each, being of one distribution (Pearson 1900).

    Bins that either sample is expected to have fewer than five rows in are pooled. One bin left: statistic 0, p-value 1.
    """
    total = expected + found
    n, m = expected.sum(), found.sum()
    if not n or not m:
        return 0.0, 1.0
    small = total * min(n, m) / (n + m) < MIN_EXPECTED
    pooled = [np.r_[counts[~small], counts[small].sum()] for counts in (expected, found)]
    table = np.array(pooled)[:, pooled[0] + pooled[1] > 0]
    if table.shape[1] < 2:
        return 0.0, 1.0
    fitted = np.outer(table.sum(axis=1), table.sum(axis=0)) / (n + m)
    statistic = float(np.sum((table - fitted) ** 2 / fitted))
    return statistic, float(chdtrc(table.shape[1] - 1, statistic))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values after Holm's step-down correction (1979), in [0, 1]: the chance of any false alarm among all columns."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.ones(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return [float(value) for value in corrected]


def shown(p_value: float) -> str:
    """A p-value for people: `p 0.034`, or `p < 1e-12`."""
    return f"p {p_value:.2g}" if p_value >= 1e-12 else "p < 1e-12"


def bins_of(baseline: Distribution) -> list[tuple[float, bool]]:
    """Cuts at the tenths of the baseline, rising: (value, whether the value itself is on the lower side).

    A value that many rows have is cut off on both sides, so that leaving it in either direction shows.
    """
    cuts: set[tuple[float, bool]] = set()
    for value in np.unique(baseline.quantiles(np.arange(1, NUM_BINS) / NUM_BINS)):
        point = np.array([value])
        cuts.add((float(value), True))
        if baseline.up_to(point)[0] - baseline.below(point)[0] >= ATOM:
            cuts.add((float(value), False))
    return sorted(cuts)


def shares_in(distribution: Distribution, cuts: Sequence[tuple[float, bool]]) -> Floats:
    """Share of values in each bin between cuts, float64 (len(cuts) + 1,), summing to 1."""
    points = np.array([value for value, _ in cuts])
    with_value = np.array([inclusive for _, inclusive in cuts], dtype=bool)
    reached = np.where(with_value, distribution.up_to(points), distribution.below(points))
    return np.asarray(np.diff(np.r_[0.0, reached, 1.0]), dtype=np.float64)


def _compare_numbers(baseline: ColumnProfile, live: ColumnProfile) -> Change:
    before, now = baseline.distribution(), live.distribution()
    reference = before or now
    cuts = bins_of(reference) if reference else []
    expected, found = (_counts(d, column, cuts) for d, column in ((before, baseline), (now, live)))
    distance, p_values = 0.0, []
    if before and now:
        distance, p_value = ks_test(before, now, n=baseline.values, m=live.values)
        p_values.append(p_value)
    if baseline.nulls or live.nulls:
        p_values.append(chi_square_test(*_presence(baseline, live))[1])
    p_value = min(1.0, len(p_values) * min(p_values, default=1.0))
    return Change(psi(expected, found), p_value, f"KS {distance:.3f}", _missing_note(baseline, live))


def _compare_categories(baseline: ColumnProfile, live: ColumnProfile) -> Change:
    before, now = baseline.counts(), live.counts()
    named = list(before)[:NUM_CATEGORIES]
    expected = np.array([before[name] for name in named] + [0.0, baseline.nulls])
    found = np.array([now.get(name, 0) for name in named] + [0.0, live.nulls], dtype=np.float64)
    expected[-2], found[-2] = max(0.0, baseline.rows - expected.sum()), max(0.0, live.rows - found.sum())
    statistic, p_value = chi_square_test(expected, found)
    unseen = sum(count for name, count in now.items() if name not in before) / live.rows
    notes = [_missing_note(baseline, live), f"{unseen:.1%} of rows have a value unseen in training" if unseen else ""]
    return Change(psi(expected, found), p_value, f"chi-square {statistic:.1f}", "; ".join(filter(None, notes)))


def _counts(distribution: Distribution | None, column: ColumnProfile, cuts: Sequence[tuple[float, bool]]) -> Floats:
    """Rows in each bin, the missing ones last."""
    shares = shares_in(distribution, cuts) if distribution else np.zeros(len(cuts) + 1)
    return np.asarray(np.r_[shares * column.values, float(column.nulls)], dtype=np.float64)


def _presence(baseline: ColumnProfile, live: ColumnProfile) -> tuple[Floats, Floats]:
    before, now = (np.array([column.values, column.nulls], dtype=np.float64) for column in (baseline, live))
    return before, now


def _missing_note(baseline: ColumnProfile, live: ColumnProfile) -> str:
    before, now = baseline.nulls / baseline.rows, live.nulls / live.rows
    return f"missing {before:.1%} to {now:.1%}" if before or now else ""
