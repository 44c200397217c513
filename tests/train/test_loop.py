"""Training in one process: it learns what was planted, for every task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raymlp.core.errors import TrainingError
from raymlp.core.records import Snapshot
from raymlp.data.profile import Profile
from raymlp.data.snapshot import load_profile, read_split
from raymlp.model.bundle import save_bundle
from raymlp.model.predictor import Predictor
from raymlp.train.trainer import bundle_of, fit_in_process
from raymlp.train.worker import outcome_alone
from tests.train.planted import config_of

Snapshots = Callable[[str], Snapshot]


def test_regression_comes_close_to_the_noise(snapshots: Snapshots) -> None:
    metrics = fit_in_process(config_of("regression", learning_rate=0.02, epochs=8), snapshots("regression").path, lambda _: None)
    assert 0.5 < metrics["rmse"] < 0.75, "the noise has deviation .5, and a tenth of b is missing"
    assert metrics["r2"] > 0.9


def test_multiclass_finds_the_rule(snapshots: Snapshots) -> None:
    metrics = fit_in_process(config_of("multiclass"), snapshots("multiclass").path, lambda _: None)
    assert metrics["accuracy"] > 0.95
    assert metrics["log_loss"] < 0.15


def test_another_seed_gives_another_model_and_the_same_seed_the_same(snapshots: Snapshots) -> None:
    path = snapshots("binary").path
    first, second = (fit_in_process(config_of(epochs=2), path, lambda _: None) for _ in range(2))
    assert first == second
    assert fit_in_process(config_of(epochs=2, seed=1), path, lambda _: None)["log_loss"] != first["log_loss"]


def test_training_stops_when_validation_no_longer_gets_better(snapshots: Snapshots) -> None:
    heard: list[dict[str, float]] = []
    metrics = fit_in_process(
        config_of(epochs=40, learning_rate=0.05, batch_size=64, stopping={"patience": 2}), snapshots("binary").path, heard.append
    )
    losses = [epoch["valid_loss"] for epoch in heard]
    assert metrics["epochs"] == len(heard) == metrics["best_epoch"] + 2 < 40
    assert metrics["valid_loss"] == min(losses) == losses[-3]
    assert [epoch["epoch"] for epoch in heard] == list(range(len(heard)))
    assert all(0 <= epoch["data_wait_share"] <= 1 and epoch["rows_per_s"] > 0 for epoch in heard)


def test_shuffled_labels_teach_nothing(snapshots: Snapshots) -> None:
    snapshot = snapshots("binary")
    runs = [outcome_alone(config_of(epochs=2), snapshot.path, lambda _: None, shuffle_labels=True) for _ in range(2)]
    bundle, metrics = bundle_of(*runs[0], snapshot, load_profile(snapshot.path), "run")
    assert 0.35 < metrics["auc"] < 0.65
    assert bundle.metrics["labels_shuffled"] == 1.0
    assert np.array_equal(runs[0][1].outputs, runs[1][1].outputs)


def test_a_loss_that_is_no_number_ends_training_with_advice(snapshots: Snapshots) -> None:
    with pytest.raises(TrainingError, match=r"^the loss is .* after epoch 1; expected finite numbers. Lower train.learning_rate"):
        fit_in_process(config_of(learning_rate=1e30, gradient_clip=0.0), snapshots("binary").path, lambda _: None)


def test_bf16_learns_the_same_to_its_precision(snapshots: Snapshots) -> None:
    path = snapshots("binary").path
    full, half = (fit_in_process(config_of(precision=name), path, lambda _: None) for name in ("32", "bf16"))
    assert half["auc"] == pytest.approx(full["auc"], abs=0.01)


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_the_bundle_predicts_what_was_measured(task: str, snapshots: Snapshots, tmp_path: Path) -> None:
    snapshot = snapshots(task)
    job, outcome = outcome_alone(config_of(task), snapshot.path, lambda _: None)
    bundle, metrics = bundle_of(job, outcome, snapshot, load_profile(snapshot.path), "run")
    predictor = Predictor.load(save_bundle(bundle, tmp_path / "bundle"))
    rows = read_split(snapshot.path, "valid").filter(read_split(snapshot.path, "valid").column("y").is_valid())
    prediction = predictor.predict(rows)
    from raymlp.core.metrics import score

    measured = score(job.plan.target.task, job.plan.target.read(rows.column("y")), prediction.scores)
    assert {name: metrics[name] for name in measured} == pytest.approx(measured, rel=1e-4)
    assert bundle.predictions.columns["prediction"].rows == len(prediction)
    if prediction.labels:
        assert (
            bundle.predictions.columns["prediction"].counts() == Profile().update(_column(prediction.labels)).columns["prediction"].counts()
        )


def _column(labels: list[str]) -> object:
    import pyarrow as pa

    return pa.table({"prediction": labels})
