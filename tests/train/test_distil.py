"""Learning from a teacher: the loss by hand, the way of its scores to the net, and what it is good for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raymlp.config.distil import Distil
from raymlp.config.loader import with_overrides
from raymlp.core.errors import ConfigError
from raymlp.core.records import Snapshot
from raymlp.data.snapshot import load_profile, read_split
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import save_bundle
from raymlp.model.predictor import Predictor
from raymlp.train.batches import Batch, TrainBatches
from raymlp.train.blocks import pack, unpack
from raymlp.train.distil import Teacher, distilled_sum
from raymlp.train.feed import held_source
from raymlp.train.trainer import bundle_of, fit_in_process
from raymlp.train.worker import outcome_alone
from tests.train.planted import config_of, planted, write_snapshot

Snapshots = Callable[[str], Snapshot]


@pytest.fixture(scope="session")
def teachers(snapshots: Snapshots, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A bundle for each task, that leaves the column `noise` alone: its plan is not the student's."""
    made: dict[str, Path] = {}

    def get(task: str) -> Path:
        if task not in made:
            config = with_overrides(config_of(task, epochs=4), {"features.drop": ["noise"]})
            bundle, _ = bundle_of(
                *outcome_alone(config, snapshots(task).path, lambda _: None), snapshots(task), load_profile(snapshots(task).path), "run"
            )
            made[task] = save_bundle(bundle, tmp_path_factory.mktemp("teacher") / task)
        return made[task]

    return get


def test_the_loss_of_a_binary_row_is_what_hinton_wrote() -> None:
    z, v, t = 0.7, -1.2, 3.0
    teacher, student = 1 / (1 + np.exp(-v / t)), 1 / (1 + np.exp(-z / t))
    by_hand = 0.75 * 2.0 + 0.25 * t**2 * -(teacher * np.log(student) + (1 - teacher) * np.log(1 - student))
    settings = Distil(teacher="x", temperature=t, weight=0.25)
    assert float(distilled_sum("binary", torch.tensor(2.0), torch.tensor([[z]]), torch.tensor([[v]]), settings)) == pytest.approx(by_hand)


def test_two_classes_cost_the_same_as_one_logit_and_a_student_that_agrees_has_no_gradient() -> None:
    z = torch.tensor([[0.3], [-2.0]])
    soft, settings = torch.tensor([[1.5], [0.2]]), Distil(teacher="x", temperature=2.0, weight=1.0)
    one = distilled_sum("binary", torch.tensor(0.0), z, soft, settings)
    two = distilled_sum("multiclass", torch.tensor(0.0), torch.cat([0 * z, z], dim=1), torch.cat([0 * soft, soft], dim=1), settings)
    assert float(one) == pytest.approx(float(two))
    agreed = soft.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distilled_sum("binary", torch.tensor(0.0), agreed, soft, settings), agreed)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize(("task", "width"), [("binary", 1), ("multiclass", 3), ("regression", 1)])
def test_members_of_a_net_listen_each_for_itself_and_count_by_their_mean(task: Any, width: int) -> None:
    outputs, soft = torch.randn(5, 4, width), torch.randn(5, width)
    settings = Distil(teacher="x", temperature=2.0, weight=0.7)
    each = [float(distilled_sum(task, torch.tensor(3.0), outputs[:, member], soft, settings)) for member in range(4)]
    assert float(distilled_sum(task, torch.tensor(3.0), outputs, soft, settings)) == pytest.approx(np.mean(each))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_soft_targets_are_the_scores_of_the_teacher_row_by_row_through_every_shuffle(
    task: str, teachers: Callable[[str], Path], snapshots: Snapshots
) -> None:
    config, table = config_of(task), read_split(snapshots(task).path, "train")
    plan = FeaturePlan.fit(config.features, config.problem, load_profile(snapshots(task).path))
    teacher = Teacher(str(teachers(task)), plan.target)
    assert "noise" in plan.inputs
    assert "noise" not in teacher.inputs
    blocks = list(unpack(pack(table, plan, teacher=teacher), plan))
    batches = TrainBatches(held_source(blocks), rows=sum(map(len, blocks)), batch_size=64, buffer_rows=500, seed=(0, 0), epoch=lambda: 0)
    known = {tuple(row): soft for block in blocks for row, soft in zip(block.tensors["numeric"], block.tensors["soft"], strict=True)}
    for batch in batches:
        assert batch.soft is not None
        assert "soft" not in batch.tensors
        assert np.array_equal(batch.soft.numpy(), [known[tuple(row)] for row in batch.tensors["numeric"].numpy()])
    answered = table.filter(pa.array(np.isfinite(plan.target.read(table.column("y")))))
    scores = Predictor.load(teachers(task)).predict(answered).scores
    soft = np.concatenate([block.tensors["soft"] for block in blocks]).astype(float)
    again = {
        "binary": 1 / (1 + np.exp(-soft[:, 0])),
        "multiclass": np.exp(soft),
        "regression": soft[:, 0] * plan.target.scale + plan.target.mean,
    }
    assert again[task] == pytest.approx(scores, abs=1e-4)


def test_a_teacher_takes_the_noise_out_of_few_answers(teachers: Callable[[str], Path], tmp_path: Path) -> None:
    """A hundred rows tell a net little by themselves. Mean of three seeds, since one is chance."""
    few = write_snapshot(tmp_path, {"train": planted(100, 5, "binary"), "valid": planted(2_000, 6, "binary")})
    alone = config_of(epochs=30, batch_size=16, stopping={"patience": 30})
    taught = with_overrides(alone, {"train.distil": {"teacher": str(teachers("binary")), "weight": 0.9}})
    losses = [
        np.mean([fit_in_process(with_overrides(config, {"train.seed": seed}), few.path, lambda _: None)["log_loss"] for seed in range(3)])
        for config in (alone, taught)
    ]
    assert losses[1] < losses[0] - 0.003


def test_a_changed_image_keeps_what_the_teacher_said_of_it() -> None:
    batch = Batch({"image": torch.zeros(3, 3, 8, 8), "numeric": torch.ones(3, 1)}, torch.zeros(3), torch.ones(3, 1))
    other = batch.with_image(torch.ones(3, 3, 8, 8))
    assert other.soft is batch.soft
    assert [float(other.tensors[name].mean()) for name in ("image", "numeric")] == [1, 1]


def test_shuffled_labels_shuffle_the_teacher_too(teachers: Callable[[str], Path], snapshots: Snapshots) -> None:
    config = with_overrides(config_of(epochs=2), {"train.distil": {"teacher": str(teachers("binary"))}})
    _, outcome = outcome_alone(config, snapshots("binary").path, lambda _: None, shuffle_labels=True)
    assert 0.35 < outcome.scored("binary")[2]["auc"] < 0.65


def test_a_teacher_of_another_question_and_class_weights_are_refused(teachers: Callable[[str], Path], snapshots: Snapshots) -> None:
    other = with_overrides(config_of("multiclass"), {"train.distil": {"teacher": str(teachers("binary"))}})
    with pytest.raises(ConfigError, match=r"predicts 'y' \(binary: false, true\), and training 'y' \(multiclass: w, x, y, z\)"):
        fit_in_process(other, snapshots("multiclass").path, lambda _: None)
    with pytest.raises(ConfigError, match="distil with class_weights or resample"):
        with_overrides(config_of(), {"train.distil": {"teacher": "x"}, "train.class_weights": "balanced"})
