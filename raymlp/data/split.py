"""Which split each row belongs to. Pure: arrays in, codes out; the same rows and seed give the same split.

Legend: N rows, K folds. Codes: index into SPLITS, or OUTSIDE, PURGED, REPEATED.

Keys, `(N,)`, by kind of rule: microseconds since 1970 (time), uint64 from `key_hashes` (group, hash), the class (stratified),
text (column), anything of the right length (random).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.config.split import ColumnSplit, GroupSplit, HashSplit, RandomSplit, StratifiedSplit, TimeSplit
from raymlp.core.errors import DataError

SPLITS = ("train", "valid", "test", "live")
OUTSIDE = -1
"""Code of a row in no split: before `train_start`, or after the fold's window."""
PURGED = -2
"""Code of a row in the gap between training and validation."""
REPEATED = -3
"""Code of a row that repeats a unique key."""
Codes = NDArray[np.int8]
Rule = RandomSplit | StratifiedSplit | GroupSplit | HashSplit | ColumnSplit | TimeSplit


def assign(rule: Rule, keys: NDArray[Any]) -> Codes:
    """Codes int8 (N,). Raises DataError when a value names no split."""
    return _whole(rule, keys) if rule.folds is None else _one_fold(rule, keys)


def hold_filled(rule: Rule, rows: Mapping[str, int]) -> None:
    """Raise DataError when training or validation is empty. `rows` counts them by split."""
    for name in SPLITS[:2]:
        if not rows.get(name):
            raise DataError(f"the {name} split is empty ({sum(rows.values()):,} rows, rule {rule.kind}); expected rows. Set data.split.")


def is_lasting(rule: Rule) -> bool:
    """Whether a row keeps its split whatever other rows come: by its key, its moment or its column alone."""
    return isinstance(rule, GroupSplit | HashSplit | ColumnSplit) or (isinstance(rule, TimeSplit) and rule.folds is None)


def folds(rule: Rule, keys: NDArray[Any], k: int) -> Codes:
    """The fold each row validates in, int8 (N,), 0 to k - 1; -1 where it never does (time: rows outside the windows).

    Random and stratified folds differ by one row at most, stratified ones also within each class; group and hash folds
    are equal on average; time folds are successive windows, cut between different moments.
    """
    if isinstance(rule, TimeSplit):
        return _windows(rule, keys, k)
    if isinstance(rule, ColumnSplit):
        return _numbered(rule, keys, k)
    if isinstance(rule, GroupSplit | HashSplit):
        return _scaled(keys.astype(np.uint64) & np.uint64(0xFFFFFFFF), k)
    rng = np.random.default_rng(rule.seed)
    if isinstance(rule, StratifiedSplit):
        order, _ = _by_class(keys, rng)
    else:
        order = rng.permutation(len(keys))
    codes = np.empty(len(keys), np.int8)
    codes[order] = np.arange(len(keys)) % k
    return codes


def key_hashes(columns: Sequence[Sequence[str]], *, seed: int) -> NDArray[np.uint64]:
    """Keyed hash of each row's key, uint64 (N,). `columns` are text, without nulls.

    BLAKE2b with the seed as key: the same key gives the same number on any machine, in any order, among any other rows.
    """
    state = hashlib.blake2b(key=str(seed).encode(), digest_size=8)
    known: dict[Any, int] = {}
    hashes = np.empty(len(columns[0]), np.uint64)
    for i, parts in enumerate(zip(*columns, strict=True)):
        value = known.get(parts)
        if value is None:
            one = state.copy()
            one.update((parts[0] if len(parts) == 1 else "".join(f"{len(part)}:{part}" for part in parts)).encode())
            value = known[parts] = int.from_bytes(one.digest())
        hashes[i] = value
    return hashes


def _whole(rule: Rule, keys: NDArray[Any]) -> Codes:
    if isinstance(rule, TimeSplit):
        return _by_time(rule, keys)
    if isinstance(rule, ColumnSplit):
        return _by_column(rule, keys)
    if isinstance(rule, GroupSplit | HashSplit):
        return _by_hash(rule, keys)
    if isinstance(rule, StratifiedSplit):
        return _stratified(rule, keys)
    return _shuffled(rule, len(keys))


def _one_fold(rule: Rule, keys: NDArray[Any]) -> Codes:
    assert rule.folds is not None
    if isinstance(rule, TimeSplit):
        return _one_window(rule, keys, rule.folds)
    if isinstance(rule, ColumnSplit):
        codes = _by_column(rule, keys, others=True)
        numbers = folds(rule, keys, rule.folds)
        return np.where(codes == OUTSIDE, np.where(numbers == rule.fold, 1, 0), codes).astype(np.int8)
    codes = np.where(_whole(rule, keys) == 2, 2, 0).astype(np.int8)
    rest = np.flatnonzero(codes == 0)
    codes[rest[folds(rule, keys[rest], rule.folds) == rule.fold]] = 1
    return codes


def _shuffled(rule: RandomSplit, rows: int) -> Codes:
    """Exact shares, rounded; each split gets a row where there are enough."""
    num_valid, num_test = _share(rows, rule.valid), _share(rows, rule.test)
    codes = np.zeros(rows, np.int8)
    order = np.random.default_rng(rule.seed).permutation(rows)
    codes[order[:num_valid]] = 1
    codes[order[num_valid : num_valid + num_test]] = 2
    return codes


def _share(rows: int, share: float) -> int:
    """Rows for a held-out split: rounded, one at least when training keeps one, too."""
    return max(round(rows * share), 1 if share and rows >= 3 else 0)


def _by_class(keys: NDArray[Any], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in order of their class, shuffled within it, and the number of rows of each class."""
    _, index, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    shuffled = rng.permutation(len(keys))
    return shuffled[np.argsort(index[shuffled], kind="stable")], sizes


def _stratified(rule: StratifiedSplit, keys: NDArray[Any]) -> Codes:
    """Per class: its share to the nearest row, with what rounding leaves carried to the next class, so that the total is right.

    A class gives a row to training first, then to validation, then to test, as far as its rows go.
    """
    order, sizes = _by_class(keys, np.random.default_rng(rule.seed))
    num_valid, num_test = _carried(sizes, rule.valid), _carried(sizes, rule.test)
    num_test = np.clip(num_test, (sizes >= 3) * (rule.test > 0), np.maximum(sizes - 2, 0))
    num_valid = np.clip(num_valid, sizes >= 2, np.maximum(sizes - 1 - num_test, 0))
    place = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    valid, test = np.repeat(num_valid, sizes), np.repeat(num_valid + num_test, sizes)
    codes = np.empty(len(keys), np.int8)
    codes[order] = np.where(place < valid, 1, np.where(place < test, 2, 0))
    return codes


def _carried(sizes: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Whole rows for each class whose running total stays within half a row of its share."""
    totals = np.floor(np.cumsum(sizes) * share + 0.5).astype(np.int64)
    return np.asarray(np.diff(totals, prepend=0))


def _by_hash(rule: GroupSplit | HashSplit, hashes: NDArray[np.uint64]) -> Codes:
    places = hashes / 2.0**64
    return np.where(places < rule.valid, 1, np.where(places < rule.valid + rule.test, 2, 0)).astype(np.int8)


def _scaled(low_bits: NDArray[np.uint64], k: int) -> Codes:
    """Folds from the lower half of the hash: the upper half has decided over validation and test."""
    return ((low_bits * np.uint64(k)) >> np.uint64(32)).astype(np.int8)


def _by_column(rule: ColumnSplit, keys: NDArray[Any], *, others: bool = False) -> Codes:
    meanings = {name: code for code, split in enumerate(SPLITS) for name in getattr(rule, split)}
    values, index = np.unique(keys.astype(str), return_inverse=True)
    unknown = next((value for value in values if value not in meanings), None)
    if unknown is not None and not others:
        raise DataError(
            f"data.split.column '{rule.column}' holds '{unknown}'; expected one of {', '.join(meanings)}. "
            "Set data.split.train, valid, test or live."
        )
    return np.array([meanings.get(value, OUTSIDE) for value in values], np.int8)[index]


def _numbered(rule: ColumnSplit, keys: NDArray[Any], k: int) -> Codes:
    """Folds that the column itself names."""
    named = {name for split in SPLITS for name in getattr(rule, split)}
    values, index = np.unique(keys.astype(str), return_inverse=True)
    numbers = {str(number): number for number in range(k)}
    unknown = next((value for value in values if value not in numbers and value not in named), None)
    if unknown is not None:
        raise DataError(
            f"data.split.column '{rule.column}' holds '{unknown}'; expected a fold from 0 to {k - 1}, or one of "
            f"{', '.join(sorted(named))}. Set data.split.folds."
        )
    return np.array([numbers.get(value, OUTSIDE) for value in values], np.int8)[index]


def _by_time(rule: TimeSplit, keys: NDArray[np.int64]) -> Codes:
    codes = np.zeros(len(keys), np.int8)
    start = _micros(rule.valid_start)
    codes[keys >= start - _gap(rule)] = PURGED
    codes[keys >= start] = 1
    if rule.valid_end is not None:
        codes[keys >= _micros(rule.valid_end)] = 3
    if rule.train_start is not None:
        codes[keys < _micros(rule.train_start)] = OUTSIDE
    return codes


def _windows(rule: TimeSplit, keys: NDArray[np.int64], k: int) -> Codes:
    inside = keys >= _micros(rule.valid_start)
    if rule.valid_end is not None:
        inside &= keys < _micros(rule.valid_end)
    moments = np.sort(keys[inside])
    if len(np.unique(moments)) < k:
        raise DataError(
            f"validation holds {len(np.unique(moments)):,} different moments; expected {k} or more for {k} folds. "
            "Set data.split.folds, valid_start or valid_end."
        )
    starts = _cuts(moments, k)
    codes = np.full(len(keys), OUTSIDE, np.int8)
    codes[inside] = np.searchsorted(starts, keys[inside], side="right") - 1
    return codes


def _cuts(moments: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """First moments of k windows of about equal rows; each moment lies in one window, and no window is empty."""
    different, counts = np.unique(moments, return_counts=True)
    before = np.cumsum(counts) - counts
    chosen: list[int] = []
    for i in range(k):
        nearest = int(np.abs(before - round(i * len(moments) / k)).argmin())
        low = chosen[-1] + 1 if chosen else 0
        chosen.append(min(max(nearest, low), len(different) - (k - i)))
    return different[chosen]


def _one_window(rule: TimeSplit, keys: NDArray[np.int64], k: int) -> Codes:
    windows = _windows(rule, keys, k)
    start = int(keys[windows == rule.fold].min())
    codes = np.full(len(keys), OUTSIDE, np.int8)
    codes[keys < start] = PURGED
    codes[keys < start - _gap(rule)] = 0
    codes[windows == rule.fold] = 1
    if rule.train_start is not None:
        codes[keys < _micros(rule.train_start)] = OUTSIDE
    if rule.valid_end is not None:
        codes[keys >= _micros(rule.valid_end)] = 3
    return codes


def _gap(rule: TimeSplit) -> int:
    return round(rule.purge.total_seconds() * 1_000_000)


def _micros(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)
