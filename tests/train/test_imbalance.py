"""Rare classes: weights and focal loss by hand, and resampled rows that are what they promise, for training rows alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from raymlp.config.loader import load_config
from raymlp.core.errors import ConfigError
from raymlp.core.files import sha256_file
from raymlp.core.records import Snapshot
from raymlp.data.place import split_files
from raymlp.data.snapshot import load_profile
from raymlp.model.calibration import Calibration
from raymlp.train.batches import TrainBatches
from raymlp.train.blocks import Block, joined
from raymlp.train.feed import held_source
from raymlp.train.imbalance import PARTITION_ROWS, Resampler, balanced_weights, class_counts_of, partitions
from raymlp.train.module import loss_sum
from raymlp.train.trainer import check, fit_in_process
from raymlp.train.worker import outcome_alone
from tests.train.planted import config_of, write_snapshot

Snapshots = Callable[[str], Snapshot]


def blocks_of(labels: list[int] | np.ndarray, size: int = 100) -> list[Block]:
    """Each row carries its number and its class; numbers of a class lie together, so that new rows can be told."""
    target = np.asarray(labels, np.float32)
    numbers = np.arange(len(target), dtype=np.float32)
    numeric = np.stack([numbers, 100 * target + numbers / len(target)], axis=1)
    whole = Block({"numeric": numeric, "categorical": target.astype(np.int32)[:, None]}, target)
    return list(whole.pieces(size))


def resampled(kind: str, labels: list[int] | np.ndarray, *, world_size: int = 1, counts: list[int] | None = None, seed: int = 0) -> Block:
    counts = counts or np.bincount(np.asarray(labels)).tolist()
    chosen = Resampler(kind, counts, world_size=world_size)  # type: ignore[arg-type]
    return joined(chosen(iter(blocks_of(labels)), np.random.default_rng(seed), keep_order=False))


def mixed(rows: int, share: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(rows) < share).astype(int)


# ---------------------------------------------------------------------- loss


def test_balanced_weights_are_those_of_scikit_learn_and_a_row_weighs_one_on_average() -> None:
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    weights = balanced_weights([70, 20, 10])
    assert weights == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=labels))
    assert np.mean(np.array(weights)[labels]) == pytest.approx(1.0)


def test_the_weighted_loss_by_hand() -> None:
    outputs, target = torch.tensor([[0.0], [0.0], [2.0]]), torch.tensor([0.0, 1.0, 1.0])
    ln2, easy = np.log(2), np.log1p(np.exp(-2))
    assert loss_sum("binary", outputs, target).item() == pytest.approx(2 * ln2 + easy)
    assert loss_sum("binary", outputs, target, weights=(0.5, 3.0)).item() == pytest.approx(0.5 * ln2 + 3 * ln2 + 3 * easy)


def test_the_focal_loss_by_hand() -> None:
    outputs, target = torch.tensor([[0.0], [np.log(9.0)]]), torch.tensor([1.0, 1.0])
    expected = 0.5**2 * -np.log(0.5) + 0.1**2 * -np.log(0.9)
    assert loss_sum("binary", outputs, target, gamma=2.0).item() == pytest.approx(expected, rel=1e-5)
    weighted = loss_sum("binary", outputs, target, weights=(1.0, 4.0), gamma=2.0)
    assert weighted.item() == pytest.approx(4 * expected, rel=1e-5)


def test_multiclass_losses_agree_with_torch_and_with_the_formula() -> None:
    outputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(50) % 4
    weights = (0.5, 1.0, 2.0, 4.0)
    expected = functional.cross_entropy(outputs, target, weight=torch.tensor(weights), reduction="sum")
    assert loss_sum("multiclass", outputs, target.float(), weights=weights).item() == pytest.approx(expected.item(), rel=1e-5)
    p = torch.softmax(outputs, 1)[torch.arange(50), target]
    focal = ((1 - p) ** 1.5 * -p.log()).sum()
    assert loss_sum("multiclass", outputs, target.float(), gamma=1.5).item() == pytest.approx(focal.item(), rel=1e-4)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_certain_row_and_no_row_leave_finite_slopes(gamma: float) -> None:
    outputs = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    loss_sum("binary", outputs, torch.tensor([1.0, 1.0]), gamma=gamma).backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()
    assert loss_sum("binary", outputs[:0], torch.zeros(0), weights=(1.0, 2.0), gamma=gamma).item() == 0


# ---------------------------------------------------------------------- rows


@pytest.mark.parametrize(("kind", "rows"), [("undersample", 2 * 300), ("oversample", 2 * 2_700)])
def test_classes_come_out_equal_and_only_with_rows_that_were_there(kind: str, rows: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], [2_700, 300]))
    made = resampled(kind, labels)
    assert len(made) == rows
    assert abs(np.bincount(made.target.astype(int)) - rows // 2).max() <= 1
    numbers = made.tensors["numeric"][:, 0].astype(int)
    assert np.array_equal(labels[numbers], made.target)
    assert np.array_equal(made.tensors["categorical"][:, 0], made.target)
    copies = np.bincount(numbers, minlength=3_000)
    assert copies.max() <= (1 if kind == "undersample" else 10)
    assert copies[labels == 1].min() >= (1 if kind == "undersample" else 8)


def test_smote_puts_new_rows_between_rows_of_the_class() -> None:
    labels = mixed(2_000, 0.1)
    made = resampled("smote", labels)
    rows = 2 * int((labels == 0).sum())
    assert len(made) == rows
    assert abs((made.target == 1).sum() - rows // 2) <= 1
    assert set(np.flatnonzero(labels)) <= set(made.tensors["numeric"][made.target == 1, 0].astype(int))
    new = made.tensors["numeric"][made.target == 1]
    assert new[:, 1].min() >= 100 - 1e-3
    assert (np.abs(new[:, 0] - np.round(new[:, 0])) > 1e-3).sum() > 500
    assert np.array_equal(made.tensors["categorical"][:, 0], made.target)


def test_smote_keeps_numbers_that_are_flags_and_takes_tables_of_flags_and_of_lone_rows() -> None:
    flags = np.random.default_rng(0).integers(0, 2, (400, 3)).astype(np.float32)
    target = mixed(400, 0.2).astype(np.float32)
    only_flags = Block({"numeric": flags, "categorical": np.zeros((400, 0), np.int32)}, target)
    numbers = np.random.default_rng(1).normal(size=(400, 1)).astype(np.float32)
    both = Block({**only_flags.tensors, "numeric": np.concatenate([flags, numbers], axis=1)}, target)
    for block in (only_flags, both):
        counts = np.bincount(target.astype(int)).tolist()
        made = joined(Resampler("smote", counts, world_size=1)(iter([block]), np.random.default_rng(0), keep_order=False))
        assert set(np.unique(made.tensors["numeric"][:, :3])) == {0.0, 1.0}
        assert abs(np.mean(made.target) - 0.5) < 0.01
    assert np.bincount(resampled("smote", [0] * 50 + [1]).target.astype(int)).tolist() == [50, 50]


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["undersample", "oversample"]),
    first=st.lists(st.integers(0, 2), min_size=1, max_size=300),
    second=st.lists(st.integers(0, 2), min_size=1, max_size=300),
)
def test_workers_with_other_shares_of_the_classes_give_equally_many_rows(kind: str, first: list[int], second: list[int]) -> None:
    counts = (np.bincount([*first, *second, 0, 1, 2], minlength=3)).tolist()
    made = [resampled(kind, labels, world_size=2, counts=counts, seed=rank) for rank, labels in enumerate((first, second))]
    level = min(counts) if kind == "undersample" else max(counts)
    assert [len(rows) for rows in made] == [3 * level // 2] * 2
    assert all(set(rows.target) <= set(labels) for rows, labels in zip(made, (first, second), strict=True))


def test_the_rows_depend_on_seed_epoch_and_rank_and_on_nothing_else() -> None:
    labels = mixed(1_500, 0.2)

    def epoch_of(kind: str, epoch: int, rank: int = 0) -> torch.Tensor:
        chosen = Resampler(kind, np.bincount(labels).tolist(), world_size=1)  # type: ignore[arg-type]
        batches = TrainBatches(
            held_source(blocks_of(labels)),
            rows=chosen.rows,
            batch_size=64,
            buffer_rows=500,
            seed=(0, rank),
            epoch=lambda: epoch,
            resample=chosen,
        )
        given = list(batches)
        assert len(given) == len(batches)
        return torch.cat([batch.tensors["numeric"][:, 0] for batch in given])

    for kind in ("undersample", "oversample", "smote"):
        first = epoch_of(kind, 3)
        assert torch.equal(first, epoch_of(kind, 3))
        for other in (epoch_of(kind, 4), epoch_of(kind, 3, rank=1)):
            assert not torch.equal(first, other)


def test_partitions_are_bounded_and_lose_no_row() -> None:
    rows = 5 * PARTITION_ROWS + 17

    def stream() -> Iterator[Block]:
        yield from blocks_of(np.zeros(rows, int), 3_000)

    parts = list(partitions(stream(), PARTITION_ROWS))
    assert [len(part) for part in parts] == [PARTITION_ROWS] * 4 + [PARTITION_ROWS + 17]
    assert np.array_equal(joined(parts).tensors["numeric"][:, 0], np.arange(rows, dtype=np.float32))


# ---------------------------------------------------------------------- training


QUICK = {"epochs": 4, "batch_size": 64, "learning_rate": 0.02}


@pytest.mark.parametrize(
    ("task", "change"),
    [
        ("binary", {"class_weights": "balanced"}),
        ("binary", {"resample": "smote"}),
        ("multiclass", {"class_weights": "balanced"}),
        ("multiclass", {"resample": "undersample"}),
        ("multiclass", {"resample": "oversample"}),
    ],
)
def test_validation_is_untouched_and_probabilities_stay_those_of_the_true_shares(
    task: str, change: dict[str, str], snapshots: Snapshots
) -> None:
    snapshot = snapshots(task)
    before = [sha256_file(Path(file)) for file in split_files(snapshot.path, "valid")]
    _, plain = outcome_alone(config_of(task, **QUICK), snapshot.path, lambda _: None)
    job, outcome = outcome_alone(config_of(task, **QUICK, **change), snapshot.path, lambda _: None)
    assert [sha256_file(Path(file)) for file in split_files(snapshot.path, "valid")] == before
    assert np.array_equal(plain.answers, outcome.answers)
    assert not np.array_equal(plain.outputs, outcome.outputs)
    kind = job.plan.target.task
    _, scores, metrics = outcome.scored(kind, job.class_weights)
    found = scores.mean(axis=0) if task == "multiclass" else np.array([1 - scores.mean(), scores.mean()])
    assert found == pytest.approx(np.bincount(outcome.answers.astype(int)) / len(outcome.answers), abs=0.03)
    assert metrics["log_loss"] < plain.scored(kind)[2]["log_loss"] + 0.1


@pytest.mark.parametrize("change", [{"class_weights": "balanced"}, {"resample": "oversample"}])
def test_where_nothing_tells_the_classes_apart_the_probabilities_are_their_true_shares(change: dict[str, str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tables = [
        pa.table({"a": rng.normal(size=rows), "y": rng.choice(["p", "q", "r"], rows, p=[0.8, 0.15, 0.05])}) for rows in (2_000, 1_000)
    ]
    snapshot = write_snapshot(tmp_path, dict(zip(("train", "valid"), tables, strict=True)))
    job, outcome = outcome_alone(config_of("multiclass", **QUICK, **change), snapshot.path, lambda _: None)
    _, scores, metrics = outcome.scored("multiclass", job.class_weights)
    assert scores.mean(axis=0) == pytest.approx([0.8, 0.15, 0.05], abs=0.04)
    assert metrics["log_loss"] == pytest.approx(-sum(p * np.log(p) for p in (0.8, 0.15, 0.05)), abs=0.05)


def test_focal_loss_trains_and_its_settings_reach_the_loss(snapshots: Snapshots) -> None:
    path = snapshots("binary").path
    focal = fit_in_process(config_of(loss={"kind": "focal", "gamma": 2.0}, **QUICK), path, lambda _: None)
    plain = fit_in_process(config_of(**QUICK), path, lambda _: None)
    assert focal["valid_loss"] < 0.5 * plain["valid_loss"], "easy rows count less"
    assert focal["auc"] > plain["auc"] - 0.02
    assert focal["log_loss"] < plain["log_loss"] + 0.02, "calibration makes up for it"
    assert fit_in_process(config_of(loss={"kind": "focal", "gamma": 0.0}, **QUICK), path, lambda _: None) == plain


def test_class_counts_are_those_of_the_training_rows(snapshots: Snapshots) -> None:
    for task in ("binary", "multiclass"):
        snapshot = snapshots(task)
        job, _ = outcome_alone(config_of(task, **QUICK | {"epochs": 1}), snapshot.path, lambda _: None)
        counts = class_counts_of(job.plan.target, load_profile(snapshot.path))
        assert sum(counts) == pytest.approx(job.rows["train"])
        assert job.class_counts == counts
        assert job.class_weights == ()


def test_taking_class_weights_back_gives_the_true_shares() -> None:
    weights = (0.25, 1.0, 4.0)
    true = np.array([0.7, 0.2, 0.1])
    logits = np.log(true * weights)[None, :]
    assert Calibration.undoing("multiclass", weights).apply(logits)[0] == pytest.approx(true)
    assert Calibration.undoing("binary", (0.5, 3.0)).apply(np.log([0.2 * 3 / (0.8 * 0.5)]))[0] == pytest.approx(0.2)
    assert Calibration.undoing("binary") == Calibration(task="binary")


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.class_weights=balanced", r"train.class_weights is balanced with problem.task=regression"),
        ("train.resample=smote", r"train.resample is smote with problem.task=regression"),
        ("train.loss.kind=focal", r"train.loss.kind is focal with problem.task=regression"),
    ],
)
def test_regression_refuses_each_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("flights", ["problem.task=regression", "problem.positive_above=null", override])
    assert load_config("flights", [override]).problem.task == "binary"


def test_making_up_for_rare_classes_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"class_weights=balanced with resample=oversample would make up for rare classes twice"):
        load_config("flights", ["train.class_weights=balanced", "train.resample=oversample"])


def test_smote_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'raymlp\[imbalance\]'"):
        check(config_of(resample="smote"))
