"""Rows on the way to the workers: which go where, and whether they are transformed once and held, or every epoch and streamed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from raymlp.config.distil import Distil
from raymlp.core.errors import DataError
from raymlp.core.files import Place
from raymlp.data.place import split_files
from raymlp.features.on_ray import gather_files, held_refs, stream_files
from raymlp.features.plan import FeaturePlan
from raymlp.train.blocks import Block, Source, grouped, num_rows, packed_files, row_bytes, unpack, usable_in_files
from raymlp.train.shards import Shards

log = logging.getLogger(__name__)
HOLD_SHARE = 0.3
"""Share of the object store that transformed rows may fill; beyond it they are made anew every epoch."""
SPLITS = ("train", "valid")


Part = tuple[Any, int]
"""A reference to packed rows in the object store, and how many they are: plain, since Ray Train's controller passes them on."""


@dataclass(frozen=True)
class Feed:
    """The usable rows of a run by split: parts that are held, or datasets that are streamed and how the workers share them."""

    rows: Mapping[str, int]
    held: Mapping[str, Sequence[Part]] = field(default_factory=dict)
    datasets: Mapping[str, Any] = field(default_factory=dict)
    shards: Shards = field(default_factory=Shards)

    @classmethod
    def open(cls, path: Place, plan: FeaturePlan, *, num_workers: int, hold: bool, distil: Distil | None = None) -> Feed:
        """Raises DataError when a split has fewer usable rows than there are workers."""
        if hold:
            held = {
                split: _parts(held_refs(_files(path, split), packed_files, plan=plan, training=split == "train", distil=distil))
                for split in SPLITS
            }
            feed = cls({split: sum(rows for _, rows in parts) for split, parts in held.items()}, held)
        else:
            datasets = {
                split: stream_files(_files(path, split), packed_files, plan=plan, training=split == "train", distil=distil)
                for split in SPLITS
            }
            feed = cls({split: _count(path, plan, split) for split in SPLITS}, datasets=datasets)
        _refuse_too_few(feed.rows, path, num_workers)
        return feed


def _parts(refs: Sequence[Any]) -> list[Part]:
    count = ray.remote(num_cpus=0)(num_rows)
    return list(zip(refs, ray.get([count.remote(ref) for ref in refs]), strict=True))


def _refuse_too_few(rows: Mapping[str, int], path: Place, num_workers: int) -> None:
    for split, count in rows.items():
        if count < num_workers:
            raise DataError(
                f"{path} has {count} usable rows in the split '{split}'; expected at least one for each of {num_workers} workers. "
                "Check the split and the target."
            )


def may_hold(rows: int, plan: FeaturePlan, *, taught: bool = False) -> bool:
    """Whether transformed rows fit well inside the cluster's object store. The decision is logged with its numbers."""
    needed = rows * row_bytes(plan, taught=taught)
    room = HOLD_SHARE * float(ray.cluster_resources().get("object_store_memory", 0.0))
    hold = needed <= room
    log.info(
        "%s rows take %.0f MB once transformed, and %.0f MB of the object store may be used: %s",
        f"{rows:,}", needed / 1e6, room / 1e6, "transformed once and held" if hold else "transformed anew every epoch",
    )  # fmt: skip
    return hold


def shared_source(parts: Sequence[Part], plan: FeaturePlan, *, start: int, stop: int) -> Source:
    """Passes over rows `start` up to `stop` of parts that are held, read in place from shared memory; their order can be drawn.

    Ray Data would cut the parts by tasks, which wait without end for a CPU when the workers have them all.
    """
    firsts = [0, *itertools.accumulate(rows for _, rows in parts)]
    mine = [(ref, first) for (ref, rows), first in zip(parts, firsts, strict=False) if first < stop and first + rows > start]
    tables = ray.get([ref for ref, _ in mine])
    before = mine[0][1] if mine else 0
    return held_source(clipped((block for table in tables for block in unpack(table, plan)), start - before, stop - before))


def streamed_source(shard: Any, plan: FeaturePlan, *, start: int, stop: int) -> Source:
    """Passes over rows `start` up to `stop` of a worker's shard, in order."""
    return lambda _: clipped(_blocks(shard, plan), start, stop)


def held_source(blocks: Iterable[Block]) -> Source:
    """Passes over blocks that stay in memory, in groups of equal length whose order can be drawn."""
    groups = list(grouped(blocks))

    def run(rng: np.random.Generator | None) -> Iterator[Block]:
        order = range(len(groups)) if rng is None else rng.permutation(len(groups))
        return (block for index in order for block in groups[index])

    return run


def clipped(blocks: Iterator[Block], start: int, stop: int) -> Iterator[Block]:
    """Rows `start` up to `stop` of a stream of blocks, which is read to its end."""
    seen = 0
    for block in blocks:
        low, high = max(start - seen, 0), min(stop - seen, len(block))
        seen += len(block)
        if low < high:
            yield block.slice(low, high)


def local_blocks(path: Place, plan: FeaturePlan, split: str, distil: Distil | None = None) -> Iterator[Block]:
    """Transformed rows of a split, without Ray."""
    for table in local_tables(path, plan, split, distil):
        yield from unpack(table, plan)


def local_tables(path: Place, plan: FeaturePlan, split: str, distil: Distil | None = None) -> Iterator[pa.Table]:
    """Packed rows of a split, without Ray."""
    files = pa.table({"file": split_files(path, split)}, schema=pa.schema({"file": pa.string()}))
    return packed_files(files, plan, training=split == "train", distil=distil)


def _blocks(shard: Any, plan: FeaturePlan) -> Iterator[Block]:
    for table in shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        yield from unpack(table, plan)


def _count(path: Place, plan: FeaturePlan, split: str) -> int:
    """Usable rows of a split: only the answers are read."""
    counts = gather_files(_files(path, split), usable_in_files, target=plan.target)
    return int(sum(sum(table.column("rows").to_pylist()) for table in counts))


def _files(path: Place, split: str) -> list[str]:
    files = split_files(path, split)
    if not files:
        raise DataError(f"{path} has no rows in the split '{split}'; expected some. Check the split.")
    return files
