"""The rows that a worker gets come in the order of the snapshot, however the threads that fetch them are held up."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.data._internal.block_batching import util as batching

from raymlp.config.runtime import Runtime
from raymlp.core.records import Snapshot
from raymlp.data.place import split_files
from raymlp.data.snapshot import load_profile
from raymlp.features.plan import FeaturePlan
from raymlp.train import feed
from raymlp.train.feed import Feed
from tests.train.planted import config_of, planted, write_snapshot

pytestmark = pytest.mark.ray
Snapshots = Callable[[str], Snapshot]


@pytest.mark.parametrize("hold", [True, False])
def test_blocks_keep_their_order_when_the_thread_that_has_the_first_is_held_up(
    hold: bool, ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of()
    snapshot = write_snapshot(tmp_path / "s", {"train": planted(600, 1, "binary"), "valid": planted(60, 2, "binary")}, parts=12)
    plan = FeaturePlan.fit(config.features, config.problem, load_profile(snapshot.path), files=split_files(snapshot.path, "train"))
    expected = np.concatenate([block.tensors["numeric"] for block in feed.local_blocks(snapshot.path, plan, "train")])
    as_ever, held_up = batching._format_batch, []

    def format_batch(batch: Any, *args: Any, **named: Any) -> Any:
        if batch.metadata.batch_idx % 4 == 0:
            held_up.append(batch)
            time.sleep(0.05)
        return as_ever(batch, *args, **named)

    monkeypatch.setattr(batching, "_format_batch", format_batch)
    opened = Feed.open(snapshot.path, plan, num_workers=2, hold=hold)
    shards = opened.shards.configure(dict(opened.datasets), 1 if not hold else 2, None, None)
    given = [block.tensors["numeric"] for shard in shards for block in feed._blocks(shard["train"], plan)]
    assert held_up
    assert np.array_equal(np.concatenate(given), expected[: len(expected) // 2 * 2 if hold else None])
