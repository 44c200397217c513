"""The rows that a worker gets come in the order of the snapshot, however the threads that fetch them are held up."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.data._internal.block_batching import util as batching

from raymlp.config.runtime import Runtime
from raymlp.data.place import split_files
from raymlp.data.snapshot import load_profile
from raymlp.features.plan import FeaturePlan
from raymlp.train import feed
from raymlp.train.blocks import Block
from raymlp.train.feed import Feed, shared_source, streamed_source
from tests.train.planted import config_of, planted, write_snapshot

pytestmark = pytest.mark.ray


def opened(path: Path, *, hold: bool, workers: int) -> tuple[Feed, FeaturePlan]:
    config = config_of()
    snapshot = write_snapshot(path, {"train": planted(600, 1, "binary"), "valid": planted(60, 2, "binary")}, parts=12)
    plan = FeaturePlan.fit(config.features, config.problem, load_profile(snapshot.path), files=split_files(snapshot.path, "train"))
    return Feed.open(snapshot.path, plan, num_workers=workers, hold=hold), plan


def numbers(blocks: Iterable[Block]) -> np.ndarray[Any, Any]:
    return np.concatenate([block.tensors["numeric"] for block in blocks])


def test_streamed_blocks_keep_their_order_when_the_thread_that_has_the_first_is_held_up(
    ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_ever, held_up = batching._format_batch, []

    def format_batch(batch: Any, *args: Any, **named: Any) -> Any:
        if batch.metadata.batch_idx % 4 == 0:
            held_up.append(batch)
            time.sleep(0.05)
        return as_ever(batch, *args, **named)

    monkeypatch.setattr(batching, "_format_batch", format_batch)
    found, plan = opened(tmp_path / "s", hold=False, workers=1)
    (shard,) = found.shards.configure(dict(found.datasets), 1, None, None)
    given = streamed_source(shard["train"], plan, start=100, stop=500)
    assert np.array_equal(numbers(given(None)), numbers(feed.local_blocks(tmp_path / "s", plan, "train"))[100:500])
    assert held_up


def test_held_rows_are_shared_in_order_though_others_have_every_cpu(ray_runtime: Runtime, tmp_path: Path) -> None:
    found, plan = opened(tmp_path / "s", hold=True, workers=3)
    expected = numbers(feed.local_blocks(tmp_path / "s", plan, "train"))
    assert found.rows["train"] == len(expected)
    group = ray.util.placement_group([{"CPU": 4}])
    ray.get(group.ready())
    try:
        for start, stop in [(0, 7), (7, 50), (49, 51), (123, 456), (0, len(expected)), (500, len(expected))]:
            given = shared_source(found.held["train"], plan, start=start, stop=stop)
            assert np.array_equal(numbers(given(None)), expected[start:stop])
    finally:
        ray.util.remove_placement_group(group)
