"""Rows as the net takes them, in blocks: made from Arrow by the feature plan, kept as flat Arrow columns on the way.

Legend: B rows. One block holds the plan's tensors as they travel (ids in int32, pixels in uint8) and `target` float32 (B,). Rows
without a usable answer are left out: a missing one, or a class unseen in training. Where a task needs none, all rows stay, and `target`
is NaN unless there is a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymlp.config.distil import Distil
from raymlp.core.records import needs_target
from raymlp.data import parquet
from raymlp.data.target import Target
from raymlp.features.plan import PACKED, FeaturePlan
from raymlp.features.target import folds_of
from raymlp.train.distil import SOFT, Teacher, teacher_of

PACK_ROWS = 65_536
"""Rows that are transformed at a time; fewer where they hold images."""
PACK_BYTES = 64 << 20
"""Bytes of text ids and pixels that are made at a time."""
GROUP_ROWS = 8_192
"""Rows of the groups whose order is drawn anew each epoch."""


@dataclass(frozen=True)
class Block:
    """B transformed rows. Among `tensors` are, where a teacher was asked, its soft targets."""

    tensors: Mapping[str, NDArray[Any]]
    target: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.target)

    def slice(self, start: int, stop: int) -> Block:
        """Rows from `start` up to `stop`, without a copy."""
        return Block({name: values[start:stop] for name, values in self.tensors.items()}, self.target[start:stop])

    def take(self, rows: NDArray[np.int64]) -> Block:
        """Some rows, copied."""
        return Block({name: values[rows] for name, values in self.tensors.items()}, self.target[rows])

    def pieces(self, rows: int) -> Iterator[Block]:
        """The same rows in blocks of at most `rows`, without a copy."""
        return (self.slice(start, start + rows) for start in range(0, len(self), rows))


Source = Callable[[np.random.Generator | None], Iterator[Block]]
"""One pass over a worker's blocks; with a generator, in an order that it draws where the source can."""


def joined(blocks: Iterable[Block]) -> Block:
    """All rows of one or more blocks in one."""
    parts = list(blocks)
    if len(parts) == 1:
        return parts[0]
    tensors = {name: np.concatenate([part.tensors[name] for part in parts]) for name in parts[0].tensors}
    return Block(tensors, np.concatenate([part.target for part in parts]))


def grouped(blocks: Iterable[Block], rows: int = GROUP_ROWS) -> Iterator[list[Block]]:
    """Blocks cut into groups of exactly `rows` rows (the last has fewer), without a copy. How the rows came in blocks leaves no trace."""
    group: list[Block] = []
    room = rows
    for block in blocks:
        start = 0
        while start < len(block):
            part = block.slice(start, min(start + room, len(block)))
            group.append(part)
            start, room = start + len(part), room - len(part)
            if not room:
                yield group
                group, room = [], rows
    if group:
        yield group


def columns_of(plan: FeaturePlan, teacher: Teacher | None = None) -> list[str]:
    """Columns that `pack` reads."""
    return list(dict.fromkeys([*plan.inputs, *plan.target.columns, *(teacher.inputs if teacher else ())]))


def row_bytes(plan: FeaturePlan, *, taught: bool = False) -> int:
    """Bytes of one packed row; `taught` ones have soft targets."""
    return (
        4
        + (4 * plan.target.outputs if taught else 0)
        + sum(math.prod(shape) * PACKED[name].itemsize for name, shape in plan.shapes.items())
    )


def pack(table: pa.Table, plan: FeaturePlan, folds: NDArray[np.int64] | None = None, *, teacher: Teacher | None = None) -> pa.Table:
    """Transform rows into flat Arrow columns that travel between processes without copies. Training rows come with their folds, and
    leave with what the `teacher` says of them."""
    answers, usable = plan.target.answers(table)
    if not usable.all():
        table, answers, folds = table.filter(pa.array(usable)), answers[usable], None if folds is None else folds[usable]
    tensors = plan.transform(table, folds=folds)
    columns: dict[str, Any] = {"target": pa.array(plan.target.scaled(answers))}
    for name, shape in plan.shapes.items():
        if width := math.prod(shape):
            values = tensors[name].astype(PACKED[name], copy=False)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
    if teacher is not None:
        columns[SOFT] = pa.FixedSizeListArray.from_arrays(pa.array(teacher.soft(table).ravel()), plan.target.outputs)
    return pa.table(columns)


def packed_files(files: pa.Table, plan: FeaturePlan, *, training: bool, distil: Distil | None = None) -> Iterator[pa.Table]:
    """Packed rows of the Parquet files named in the column `file`, a part at a time; `training` ones are encoded out of fold, and a
    teacher is asked about them where there is one."""
    teacher = teacher_of(distil, plan.target) if training else None
    rows = plan.rows_within(PACK_BYTES, PACK_ROWS)
    for name in files.column("file").to_pylist():
        start = 0
        for table in parquet.batches(name, columns_of(plan, teacher), rows=rows):
            yield pack(table, plan, folds_of(name, start, table.num_rows) if training else None, teacher=teacher)
            start += table.num_rows


def usable_in_files(files: pa.Table, target: Target) -> Iterator[pa.Table]:
    """Number of rows with a usable answer, as `rows`, in parts of the Parquet files named in the column `file`."""
    for name in files.column("file").to_pylist():
        if not needs_target(target.task):
            yield pa.table({"rows": [parquet.num_rows(name)]})
            continue
        for table in parquet.batches(name, target.columns, rows=PACK_ROWS):
            yield pa.table({"rows": [int(target.answers(table)[1].sum())]})


def num_rows(table: pa.Table) -> int:
    """Rows of a packed table."""
    return int(table.num_rows)


def unpack(table: pa.Table, plan: FeaturePlan) -> Iterator[Block]:
    """The rows of a packed table, one block a chunk, read in place."""
    for batch in table.to_batches():
        if batch.num_rows:
            shapes = plan.shapes | ({SOFT: (plan.target.outputs,)} if SOFT in batch.schema.names else {})
            tensors = {name: _tensor(batch, name, shape) for name, shape in shapes.items()}
            yield Block(tensors, batch.column("target").to_numpy())


def _tensor(batch: pa.RecordBatch, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if not math.prod(shape):
        return np.zeros((batch.num_rows, *shape), PACKED[name])
    values = batch.column(name).flatten().to_numpy()
    return np.asarray(values.reshape(-1, *shape))
