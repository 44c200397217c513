"""Parquet files over Ray Data, one task a file: a profile from one pass, the sums of target encoding, and tensors as columns.

No row reaches the driver. Tasks read their files themselves: `read_parquet` of Ray 2.60 starts a pool of actors to read the
footers first, which takes seconds, and what one task does from file to result travels through no object store in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raymlp.core.files import to_json
from raymlp.data import parquet
from raymlp.data.profile import Profile, merged
from raymlp.data.target import Target
from raymlp.features import target as encoding
from raymlp.features.ids import IdStep
from raymlp.features.plan import FeaturePlan

BATCH_BYTES = 64 << 20
"""Bytes of text ids and pixels that are made at a time."""
Work = Callable[..., Iterator[Any]]
"""From a table with file names in its column `file`, and options, to tables."""


def stream_files(files: Sequence[str], work: Work, **options: Any) -> Any:
    """A Ray dataset of what `work` gives, one task a file, made anew each time it is read. Order is kept."""
    import ray.data

    names = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
    names.context.execution_options.preserve_order = True
    return names.map_batches(work, batch_size=1, batch_format="pyarrow", fn_kwargs=options)


def hold_files(files: Sequence[str], work: Work, **options: Any) -> Any:
    """A Ray dataset of what `work` gives, one task a file, in the object store. Order is kept."""
    import ray.data

    held = ray.data.from_arrow_refs(held_refs(files, work, **options))
    held.context.execution_options.preserve_order = True  # else `iter_batches`, whose threads overtake one another, gives any order
    return held


def held_refs(files: Sequence[str], work: Work, **options: Any) -> list[Any]:
    """References to what `work` gives, one task a file, in the object store, in order.

    The tasks are Ray's own: an execution of Ray Data 2.60 runs one task at a time in its first second, until its autoscaler has
    told what the cluster has.
    """
    return [ref for made in _started(files, work, options) for ref in made]


def gather_files(files: Sequence[str], work: Work, **options: Any) -> Iterator[pa.Table]:
    """What `work` gives, one task a file, in order, on the driver: for small results."""
    import ray

    return (ray.get(ref) for made in _started(files, work, options) for ref in made)


def profile_files(files: Sequence[str], columns: Sequence[str]) -> Profile:
    """The profile of all rows: one pass, merged on the driver in a tree."""
    tables = gather_files(files, _profiled, columns=list(columns))
    return merged(Profile.from_dict(json.loads(table.column("profile")[0].as_py())) for table in tables)


def count_files(files: Sequence[str], steps: Sequence[tuple[IdStep, int]], target: Target) -> list[encoding.Sums]:
    """What `raymlp.features.target.count` gives, one task a file."""
    sums = [encoding.Sums.empty(folds, ids.size, target.outputs) for ids, folds in steps]
    for table in gather_files(files, _counted, steps=list(steps), target=target):
        values = np.frombuffer(table.column("sums")[0].as_py())
        for total in sums:
            answers, rows, values = np.split(values, [total.answers.size, total.answers.size + total.rows.size])
            total.merge(encoding.Sums(answers.reshape(total.answers.shape), rows.reshape(total.rows.shape)))
    return sums


def transform_files(files: Sequence[str], plan: FeaturePlan) -> Any:
    """A Ray dataset in the object store with the tensors of every row as columns: `numeric` float32 (N,), `categorical` int64 (C,), and
    `text` and `image` where the plan has them; one of no width is left out."""
    return hold_files(files, _transformed, plan=plan)


def _started(files: Sequence[str], work: Work, options: dict[str, Any]) -> list[Any]:
    """Generators of references to what the tasks give."""
    import ray

    task = ray.remote(num_returns="streaming", scheduling_strategy="SPREAD")(work)
    shared = {name: ray.put(value) for name, value in options.items()}
    return [task.remote(pa.table({"file": [file]}), **shared) for file in files]


def _batches(files: pa.Table, columns: list[str], rows: int = parquet.ROW_GROUP) -> Iterator[pa.Table]:
    for file in files.column("file").to_pylist():
        yield from parquet.batches(file, columns, rows=rows)


def _profiled(files: pa.Table, columns: list[str]) -> Iterator[pa.Table]:
    profile = Profile()
    for table in _batches(files, columns):
        profile.update(table)
    yield pa.table({"profile": [to_json(profile.to_dict(), indent=None)]})


def _counted(files: pa.Table, steps: list[tuple[IdStep, int]], target: Target) -> Iterator[pa.Table]:
    sums = encoding.count(files.column("file").to_pylist(), steps, target)
    yield pa.table({"sums": [b"".join(part.tobytes() for total in sums for part in (total.answers, total.rows))]})


def _transformed(files: pa.Table, plan: FeaturePlan) -> Iterator[pa.Table]:
    for table in _batches(files, plan.inputs, plan.rows_within(BATCH_BYTES, parquet.ROW_GROUP)):
        tensors = {name: values for name, values in plan.transform(table).items() if values.shape[1]}
        yield pa.table({name: pa.FixedShapeTensorArray.from_numpy_ndarray(v) for name, v in tensors.items()})
