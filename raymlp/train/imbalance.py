"""What is done about rare classes, to training rows alone: weights in the loss, or resampled rows. Validation is left as it is.

Legend: B rows, K classes. Rows of class k: n_k of n.

Resampling works on the stream of a worker's blocks, so a table of any size passes through. Every class comes out with as many rows
as the rarest (undersample) or the most frequent (oversample, smote). All workers give equally many rows, whatever their share of
the classes, since each takes as many steps as the others: what is too much at the end is cut, what is missing is drawn again from
the rows that were given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlp.config.train import Resample
from raymlp.core.records import has_classes
from raymlp.data.profile import Profile
from raymlp.data.target import Target
from raymlp.train.blocks import Block, joined

Counts = NDArray[np.int64]
PARTITION_ROWS = 8_192
"""Rows among which SMOTE looks for neighbours."""
SPARE_ROWS = 8_192
"""Rows, drawn evenly from all that were given, that fill up a worker's last steps."""
NEIGHBOURS = 5


def class_counts_of(target: Target, profile: Profile) -> tuple[float, ...]:
    """Training rows of each class (K,), from the profile of the training split; empty where there are none."""
    if target.column is None or not has_classes(target.task):
        return ()
    column = profile.columns[target.column]
    return tuple(max(1.0, share * column.values) for share in target.class_shares(column))


def balanced_weights(counts: Sequence[float]) -> tuple[float, ...]:
    """Weight of each class, n / (K n_k): all classes weigh the same, and the mean weight of a row is 1. Every class has rows."""
    total = sum(counts)
    return tuple(total / (len(counts) * count) for count in counts)


class Resampler:
    """Gives each class the same number of rows. `counts` are the rows of each class over all workers, each above 0."""

    def __init__(self, kind: Resample, counts: Sequence[float], *, world_size: int) -> None:
        level = min(counts) if kind == "undersample" else max(counts)
        self.kind = kind
        self.factors = np.array([level / count for count in counts])
        """Rows that come out for each that goes in, by class."""
        self.rows = max(1, int(level * len(counts)) // world_size)
        """Rows that each worker gives."""

    def __call__(self, blocks: Iterator[Block], rng: np.random.Generator, *, keep_order: bool) -> Iterator[Block]:
        """One epoch: exactly `rows` rows. The blocks are read to their end."""
        wanted = _Quota(self.factors, rng.random(len(self.factors)))
        parts = partitions(blocks, PARTITION_ROWS) if self.kind == "smote" else blocks
        spare = _Spare(rng)
        given = 0
        block: Block | None = None
        for block in parts:
            counts = np.bincount(block.target.astype(np.int64), minlength=len(self.factors))
            target = wanted.of(counts)
            made = self._made(block, counts, target, rng, keep_order).slice(0, self.rows - given)
            given += len(made)
            spare.add(made)
            if len(made):
                yield made
        if not given and block is not None:
            spare.add(block)
        while given < self.rows and len(spare):
            extra = spare.draw(min(self.rows - given, SPARE_ROWS))
            given += len(extra)
            yield extra

    def _made(self, block: Block, counts: Counts, target: Counts, rng: np.random.Generator, keep_order: bool) -> Block:
        if self.kind != "smote":
            return _drawn(block, target, rng, keep_order=keep_order)
        made = _smote(block, counts, target, rng)
        return made if keep_order else made.take(rng.permutation(len(made)))


class _Quota:
    """How many rows of each class are due: over a whole pass within one of factor times rows, in each block as even as can be."""

    def __init__(self, factors: NDArray[np.float64], start: NDArray[np.float64]) -> None:
        self._factors, self._start = factors, start
        self._seen = np.zeros(len(factors))

    def of(self, counts: Counts) -> Counts:
        before = np.floor(self._seen * self._factors + self._start)
        self._seen += counts
        return np.asarray(np.floor(self._seen * self._factors + self._start) - before, dtype=np.int64)


class _Spare:
    """A uniform sample of all rows that passed: those with the smallest random keys."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._rows: Block | None = None
        self._keys = np.zeros(0)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, block: Block) -> None:
        rows = joined([self._rows, block]) if self._rows is not None else block
        keys = np.concatenate([self._keys, self._rng.random(len(block))])
        kept = np.sort(np.argpartition(keys, SPARE_ROWS)[:SPARE_ROWS]) if len(keys) > SPARE_ROWS else np.arange(len(keys))
        self._rows, self._keys = rows.take(kept), keys[kept]

    def draw(self, rows: int) -> Block:
        assert self._rows is not None
        return self._rows.take(self._rng.integers(0, len(self), rows))


def partitions(blocks: Iterator[Block], rows: int) -> Iterator[Block]:
    """The same rows in blocks of exactly `rows`; the last takes the rest and may have up to twice as many, less one."""
    waiting: list[Block] = []
    num_waiting = 0
    for block in blocks:
        waiting.append(block)
        num_waiting += len(block)
        if num_waiting >= 2 * rows:
            whole = joined(waiting)
            full = num_waiting // rows - 1
            yield from (whole.slice(place * rows, (place + 1) * rows) for place in range(full))
            waiting, num_waiting = [whole.slice(full * rows, num_waiting)], num_waiting - full * rows
    if num_waiting:
        yield joined(waiting)


def _drawn(block: Block, target: Counts, rng: np.random.Generator, *, keep_order: bool) -> Block:
    """`target` rows of each class: every row as often as it divides, and the rest drawn without replacement."""
    chosen = []
    for label, wanted in enumerate(target):
        rows = np.flatnonzero(block.target == label)
        if len(rows) and wanted:
            times, rest = divmod(int(wanted), len(rows))
            chosen += [np.repeat(rows, times), rng.choice(rows, rest, replace=False)]
    order = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    return block.take(np.sort(order) if keep_order else rng.permutation(order))


def _smote(block: Block, counts: Counts, target: Counts, rng: np.random.Generator) -> Block:
    """The rows of a partition and, for each class, new ones up to `target` (never fewer rows than there are).

    SMOTE (Chawla et al. 2002) puts new rows between near ones; categories, and numbers that are only 0 or 1, take the value that
    most neighbours have (SMOTENC, SMOTEN). A class with one row has no neighbour and is repeated; so is a partition of one class.
    The rarest class that grows decides how many neighbours all classes look at, 5 at most.
    """
    alone = np.where((counts == 1) & (target > 1), target, counts)
    grown = {label: int(wanted) for label, wanted in enumerate(target) if alone[label] > 1 and wanted > alone[label]}
    if not grown or np.count_nonzero(counts) < 2:
        return _drawn(block, target, rng, keep_order=True)
    block = _drawn(block, alone, rng, keep_order=True)
    numeric, categorical = block.tensors["numeric"], block.tensors["categorical"]
    width = numeric.shape[1]
    table = np.concatenate([numeric, categorical.astype(np.float32)], axis=1)
    fixed = [*np.flatnonzero(np.isin(numeric, (0, 1)).all(axis=0)), *range(width, table.shape[1])]
    nearest = min(NEIGHBOURS, min(int(alone[label]) for label in grown) - 1)
    settings = {"sampling_strategy": grown, "random_state": int(rng.integers(2**31)), "k_neighbors": nearest}
    rows, labels = _method(fixed, table.shape[1], settings).fit_resample(table, block.target.astype(np.int64))
    made = {"numeric": np.ascontiguousarray(rows[:, :width], np.float32), "categorical": rows[:, width:].astype(np.int32)}
    return Block(made, np.asarray(labels, np.float32))


def _method(fixed: Sequence[int], columns: int, settings: dict[str, Any]) -> Any:
    from imblearn.over_sampling import SMOTE, SMOTEN, SMOTENC

    if not fixed:
        return SMOTE(**settings)
    return SMOTEN(**settings) if len(fixed) == columns else SMOTENC(categorical_features=list(fixed), **settings)
