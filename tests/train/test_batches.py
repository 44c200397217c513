"""Every row once an epoch, in an order that seed, epoch and rank decide."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch

from raymlp.config.features import Features
from raymlp.config.problem import Problem
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.train.batches import TrainBatches, ValidBatches
from raymlp.train.blocks import Block, grouped, joined, pack, unpack
from raymlp.train.feed import clipped, held_source
from raymlp.train.imbalance import Resampler


def blocks(rows: int, size: int) -> list[Block]:
    number = np.arange(rows, dtype=np.float32)
    pixels = np.tile(np.arange(rows)[:, None, None, None] % 256, (1, 3, 2, 1)).astype(np.uint8)
    tensors = {"numeric": number[:, None] * 10, "categorical": number[:, None].astype(np.int32) * 2, "image": pixels}
    return list(Block(tensors, number).pieces(size))


def epoch_of(number: int, **options: object) -> list[torch.Tensor]:
    settings = {"rows": 1_000, "batch_size": 64, "buffer_rows": 300, "seed": (0, 0), "epoch": lambda: number} | options
    batches = TrainBatches(held_source(blocks(1_000, 90)), **settings)  # type: ignore[arg-type]
    given = list(batches)
    assert len(given) == len(batches)
    if not settings.get("shuffle_labels"):
        for batch in given:
            assert torch.equal(batch.tensors["numeric"][:, 0], batch.target * 10)
            assert torch.equal(batch.tensors["categorical"][:, 0], batch.target.long() * 2)
            assert torch.equal(batch.tensors["image"][:, 2, 1, 0], (batch.target % 256).to(torch.uint8))
    return [batch.target for batch in given]


def test_every_row_comes_once_an_epoch_and_only_the_last_batch_is_smaller() -> None:
    targets = epoch_of(0)
    assert [len(target) for target in targets] == [64] * 15 + [40]
    assert torch.equal(torch.cat(targets).sort().values, torch.arange(1_000.0))


def test_the_order_depends_on_seed_epoch_and_rank_and_on_nothing_else() -> None:
    first = torch.cat(epoch_of(3))
    assert torch.equal(first, torch.cat(epoch_of(3)))
    for other in (epoch_of(4), epoch_of(3, seed=(1, 0)), epoch_of(3, seed=(0, 1))):
        assert not torch.equal(first, torch.cat(other))


@pytest.mark.parametrize("resample", [None, "oversample"])
def test_the_batches_do_not_depend_on_how_rows_came_in_blocks(resample: str | None) -> None:
    def batches(size: int) -> list[list[float]]:
        chosen = Resampler("oversample", (600.0, 400.0), world_size=1) if resample else None
        made = [Block(block.tensors, (block.target >= 600).astype(np.float32)) for block in blocks(1_000, size)]
        options = {"rows": 1_000, "batch_size": 64, "buffer_rows": 300, "seed": (0, 0), "epoch": lambda: 0, "resample": chosen}
        return [batch.tensors["numeric"][:, 0].tolist() for batch in TrainBatches(held_source(iter(made)), **options)]  # type: ignore[arg-type]

    assert batches(90) == batches(1_000) == batches(7)


def test_without_a_buffer_the_order_of_the_snapshot_is_kept() -> None:
    assert torch.equal(torch.cat(epoch_of(0, buffer_rows=0)), torch.arange(1_000.0))


def test_shuffled_labels_keep_their_values_and_lose_their_rows() -> None:
    batches = TrainBatches(
        held_source(blocks(1_000, 90)), rows=1_000, batch_size=1_000, buffer_rows=1_000, seed=(0, 0), epoch=lambda: 0, shuffle_labels=True
    )
    (batch,) = list(batches)
    assert torch.equal(batch.target.sort().values, torch.arange(1_000.0))
    assert abs(float(np.corrcoef(batch.tensors["numeric"][:, 0], batch.target)[0, 1])) < 0.1


def test_validation_keeps_the_order_and_fills_up_with_empty_batches() -> None:
    given = list(ValidBatches(held_source(blocks(250, 70)), steps=5, batch_rows=64))
    assert [len(batch) for batch in given] == [64, 64, 64, 58, 0]
    assert torch.equal(torch.cat([batch.target for batch in given]), torch.arange(250.0))
    assert given[-1].tensors["image"].shape == (0, 3, 2, 1)


@pytest.mark.parametrize(("start", "stop"), [(0, 100), (30, 31), (39, 80), (90, 100)])
def test_a_clipped_stream_gives_the_rows_of_its_range(start: int, stop: int) -> None:
    stream: Iterator[Block] = clipped(iter(blocks(100, 40)), start, stop)
    assert joined(stream).target.tolist() == list(range(start, stop))


def test_packed_rows_come_back_as_the_plan_made_them_and_rows_without_an_answer_are_left_out() -> None:
    table = pa.table({"a": [1.0, 2.0, None, 4.0], "kind": ["x", "y", "x", None], "y": [True, None, False, True]})
    plan = FeaturePlan.fit(Features(min_count=1), Problem(name="p", task="binary", target="y"), Profile().update(table))
    kept = table.take([0, 2, 3])
    expected = plan.transform(kept)
    (block,) = list(unpack(pack(table, plan), plan))
    assert np.array_equal(block.tensors["numeric"], expected["numeric"])
    assert np.array_equal(block.tensors["categorical"], expected["categorical"])
    assert block.target.tolist() == [1.0, 0.0, 1.0]
    (part,) = list(unpack(pack(table, plan).slice(1, 1), plan))
    assert np.array_equal(part.tensors["numeric"], expected["numeric"][1:2])


def test_a_class_unseen_in_training_is_left_out() -> None:
    seen = pa.table({"a": [1.0, 2.0], "y": ["p", "q"]})
    plan = FeaturePlan.fit(Features(), Problem(name="p", task="multiclass", target="y"), Profile().update(seen))
    (block,) = list(unpack(pack(pa.table({"a": [1.0, 2.0, 3.0], "y": ["q", "new", "p"]}), plan), plan))
    assert block.target.tolist() == [1.0, 0.0]
    assert block.tensors["categorical"].shape == (2, 0)


def test_groups_do_not_depend_on_how_rows_came_in_blocks() -> None:
    for size in (7, 90, 1_000):
        groups = list(grouped(blocks(1_000, size), 300))
        assert [joined(group).target.tolist() for group in groups] == [
            list(range(start, min(start + 300, 1_000))) for start in (0, 300, 600, 900)
        ]
    assert list(grouped([])) == []
    assert [len(joined(group)) for group in grouped(blocks(600, 50), 300)] == [300, 300]
