"""Which split each row belongs to. Pure: arrays in, codes out; the same rows and seed give the same split.

Legend: N rows. Codes: -1 in no split, else the index into SPLITS.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.config.data import GroupSplit, RandomSplit, StratifiedSplit, TimeSplit
from raymlp.core.errors import DataError

SPLITS = ("train", "valid", "test", "live")
Codes = NDArray[np.int8]


def assign(rule: RandomSplit | StratifiedSplit | GroupSplit | TimeSplit, keys: NDArray[Any]) -> Codes:
    """Codes int8 (N,). `keys` (N,): microseconds since 1970 (time), group or class as text, or anything (random).

    Raises DataError when training or validation would be empty.
    """
    if isinstance(rule, TimeSplit):
        codes = _by_time(rule, keys)
    elif isinstance(rule, GroupSplit):
        codes = _by_group(rule, keys)
    elif isinstance(rule, StratifiedSplit):
        codes = _stratified(rule, keys)
    else:
        codes = _shuffled(len(keys), rule, np.random.default_rng(rule.seed))
    for code, name in enumerate(SPLITS[:2]):
        if not np.any(codes == code):
            raise DataError(f"the {name} split is empty ({len(keys)} rows, rule {rule.kind}); expected rows. Set data.split.")
    return codes


def _shuffled(rows: int, rule: RandomSplit, rng: np.random.Generator) -> Codes:
    """Exact shares, rounded; each split gets a row where there are enough."""
    num_valid, num_test = _share(rows, rule.valid), _share(rows, rule.test)
    codes = np.zeros(rows, np.int8)
    order = rng.permutation(rows)
    codes[order[:num_valid]] = 1
    codes[order[num_valid : num_valid + num_test]] = 2
    return codes


def _share(rows: int, share: float) -> int:
    """Rows for a held-out split: rounded, one at least when training keeps one, too."""
    return max(round(rows * share), 1 if share and rows >= 3 else 0)


def _stratified(rule: StratifiedSplit, keys: NDArray[Any]) -> Codes:
    codes = np.zeros(len(keys), np.int8)
    rng = np.random.default_rng(rule.seed)
    for label in np.unique(keys):
        rows = np.flatnonzero(keys == label)
        codes[rows] = _shuffled(len(rows), rule, rng)
    return codes


def _by_group(rule: GroupSplit, keys: NDArray[Any]) -> Codes:
    """A group's place in [0, 1) is a keyed hash, so that a group keeps its split when the data grows."""
    groups, index = np.unique(keys.astype(str), return_inverse=True)
    key = str(rule.seed).encode()
    places = np.array([int.from_bytes(hashlib.blake2b(group.encode(), key=key, digest_size=8).digest()) / 2**64 for group in groups])
    codes = np.where(places < rule.valid, 1, np.where(places < rule.valid + rule.test, 2, 0))
    return codes.astype(np.int8)[index]


def _by_time(rule: TimeSplit, keys: NDArray[np.int64]) -> Codes:
    codes = np.zeros(len(keys), np.int8)
    codes[keys >= _micros(rule.valid_start)] = 1
    if rule.valid_end is not None:
        codes[keys >= _micros(rule.valid_end)] = 3
    if rule.train_start is not None:
        codes[keys < _micros(rule.train_start)] = -1
    return codes


def _micros(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)
