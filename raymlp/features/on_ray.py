"""The plan over Ray Data: a profile from one pass, and tensors as columns, without a row on the driver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raymlp.core.files import to_json
from raymlp.data import parquet
from raymlp.data.profile import Profile, merged
from raymlp.features.plan import FeaturePlan

BATCH_ROWS = 65_536
"""Rows that are read and worked on at a time."""


def dataset_of(files: list[str], columns: list[str]) -> Any:
    """A Ray dataset of Parquet files, one task a file, in order. Tables are read where they are needed.

    `read_parquet` of Ray 2.60 starts a pool of actors to read the footers first, which takes seconds.
    """
    import ray.data

    names = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
    return names.map_batches(_read, batch_size=1, batch_format="pyarrow", fn_kwargs={"columns": columns})


def profile_dataset(dataset: Any) -> Profile:
    """The profile of all rows: one pass, merged on the driver in a tree."""
    parts = dataset.map_batches(_profile, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
    return merged(Profile.from_dict(json.loads(row["profile"])) for row in parts.iter_rows())


def transform_dataset(dataset: Any, plan: FeaturePlan) -> Any:
    """Columns `numeric` float32 (N,) and `categorical` int64 (C,) of every row."""
    return dataset.map_batches(plan.transform, batch_size=BATCH_ROWS, batch_format="pyarrow", zero_copy_batch=True)


def _read(files: pa.Table, columns: list[str]) -> Iterator[pa.Table]:
    for file in files.column("file").to_pylist():
        yield from parquet.batches(file, columns, rows=BATCH_ROWS)


def _profile(table: pa.Table) -> pa.Table:
    profile = Profile()
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        profile.update(pa.Table.from_batches([batch]))
    return pa.table({"profile": [to_json(profile.to_dict(), indent=None)]})
