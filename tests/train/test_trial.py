"""What a trial of a study trains, and from what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raymlp.config.loader import with_overrides
from raymlp.config.runtime import Runtime
from raymlp.config.tune import Choice, LogUniform
from raymlp.core.records import Snapshot
from raymlp.runtime import growth
from raymlp.train.population import adopted, note_settings, rescale
from raymlp.train.room import START_S, wait_for_room
from raymlp.train.shelf import shelf
from raymlp.train.trainer import fit_in_process
from raymlp.train.trial import fit_by_workers, fit_held
from raymlp.train.worker import fit_alone, job_of, outcome_alone
from raymlp.tune.search import search
from tests.train.planted import config_of
from tests.tune.studies import tuned


def never(metrics: dict[str, float], save: Any) -> bool:
    return False


@pytest.mark.ray
def test_a_trial_on_the_shelf_is_a_training_of_its_own_and_each_plan_is_made_once(
    ray_runtime: Runtime, snapshots: Callable[[str], Snapshot]
) -> None:
    import ray

    snapshot = snapshots("binary")
    config = config_of(epochs=2)
    with shelf(snapshot.path, config.problem, config.features) as rows:
        first, second = (fit_held(config, snapshot, rows, never, latency=True) for _ in range(2))
        alone = fit_in_process(config, snapshot.path, lambda _: None)
        assert {name: first[name] for name in alone} == alone
        assert first["interval_low"] < first["auc"] < first["interval_high"]
        assert 0.01 < first["latency_ms"] < 100
        assert first["auc"] == second["auc"]
        assert ray.get(rows.keeper.made.remote()) == 1
        other = fit_held(with_overrides(config, {"features.scaling": "quantile"}), snapshot, rows, never)
        assert other["log_loss"] != first["log_loss"]
        assert ray.get(rows.keeper.made.remote()) == 2
        heard: list[float] = []
        fit_held(config, snapshot, rows, lambda metrics, save: heard.append(metrics["epoch"]) or True)  # type: ignore[func-returns-value]
        assert heard == [0.0]


@pytest.mark.ray
def test_a_trial_with_workers_of_its_own_is_what_train_makes_and_stops_when_it_falls_behind(
    ray_runtime: Runtime, tmp_path: Path, snapshots: Callable[[str], Snapshot]
) -> None:
    import ray

    snapshot = snapshots("binary")
    rates = (0.005, 1e-9)
    config = tuned(
        {"train.learning_rate": Choice(values=rates)},
        points=tuple({"train.learning_rate": rate} for rate in rates),
        num_samples=2, epochs=3, grace_epochs=1, max_concurrent=1, workers="as_train",
    )  # fmt: skip
    config = with_overrides(config, {"train.num_workers": 2})
    config = config.model_copy(update={"runtime": ray_runtime})
    found = search(
        config,
        lambda trial, report, _: fit_by_workers(trial, snapshot, report, folder=tmp_path, latency=True),
        root=tmp_path,
        snapshot=snapshot.digest,
    )
    trial, behind = found.trials
    assert (trial.state, trial.epochs, trial.error) == ("finished", 3, None)
    assert trial.metrics["auc"] > 0.8
    assert trial.interval
    assert trial.interval.low < trial.metrics["auc"] < trial.interval.high
    assert trial.metrics["latency_ms"] > 0
    assert (behind.state, behind.epochs, behind.error) == ("stopped", 1, None)
    assert behind.values["valid_loss"] > trial.values["valid_loss"]
    assert wait_for_room(config.train, streams=False) == START_S
    assert not growth.may_bring([{"CPU": 99.0}]), "no autoscaler"
    assert ray.available_resources()["CPU"] >= 2


@pytest.mark.ray
def test_a_population_goes_on_from_the_strong_and_ends_with_good_settings(
    ray_runtime: Runtime, tmp_path: Path, snapshots: Callable[[str], Snapshot]
) -> None:
    snapshot = snapshots("binary")
    space = {"train.learning_rate": LogUniform(low=1e-6, high=1e-2)}
    points = tuple({"train.learning_rate": rate} for rate in (1e-6, 1e-2, 2e-6))
    config = tuned(space, points=points, num_samples=3, epochs=4, searcher={"kind": "pbt", "quantile": 0.4}, seed=1)
    with shelf(snapshot.path, config.problem, config.features) as rows:
        found = search(
            config, lambda trial, report, resume: fit_held(trial, snapshot, rows, report, resume), root=tmp_path, snapshot=snapshot.digest
        )
    assert [trial.error for trial in found.trials] == [None] * 3
    assert all(trial.epochs == 4 for trial in found.trials)
    moved = [trial for trial in found.trials if trial.number != 1 and trial.draw["train.learning_rate"] > 1e-5]
    assert moved  # at 1e-6 nothing is learned: only the weights of the strong one bring the loss down
    assert all(trial.values["valid_loss"] < 0.55 for trial in moved)


def test_a_checkpoint_goes_on_with_another_step_size(snapshots: Callable[[str], Snapshot], tmp_path: Path) -> None:
    snapshot = snapshots("binary")
    saved = tmp_path / "saved"
    saved.mkdir()
    first, other = config_of(epochs=2), config_of(epochs=2, learning_rate=0.001, weight_decay=0.5)
    job, _ = outcome_alone(first, snapshot.path, lambda _: None)
    from raymlp.train.feed import local_blocks

    splits = {split: list(local_blocks(snapshot.path, job.plan, split)) for split in ("train", "valid")}

    def keep(metrics: dict[str, float], save: Any) -> bool:
        if save and metrics["epoch"] == 0:
            save(saved)
            note_settings(saved, first.train)
        return False

    whole = fit_alone(job, splits, keep)
    from raymlp.data.snapshot import load_profile

    changed = job_of(other, job.plan, splits, load_profile(snapshot.path))
    again = fit_alone(job, splits, never, resume=adopted(saved, job, tmp_path / "same"))
    assert again.progress.history[1]["valid_loss"] == whole.progress.history[1]["valid_loss"]
    went_on = fit_alone(changed, splits, never, resume=adopted(saved, changed, tmp_path / "other"))
    assert went_on.progress.epochs == 2
    assert went_on.progress.history[0] == whole.progress.history[0]
    assert went_on.progress.history[1]["valid_loss"] != whole.progress.history[1]["valid_loss"]
    group = torch.load(tmp_path / "other" / "state.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"][0]
    assert (group["initial_lr"], group["weight_decay"]) == (pytest.approx(0.001), 0.5)


def test_groups_and_schedules_move_by_the_ratio_and_decay_only_where_there_was_some() -> None:
    state: dict[str, Any] = {
        "optimizer_states": [{"param_groups": [{"lr": 1.0, "max_lr": 2.0, "weight_decay": 0.1}, {"lr": 0.1, "weight_decay": 0.0}]}],
        "lr_schedulers": [{"base_lrs": [2.0, 0.2], "_last_lr": [1.0, 0.1], "last_epoch": 7}],
    }
    rescale(state, ratio=0.5, old_decay=0.1, new_decay=0.3)
    assert state["optimizer_states"][0]["param_groups"] == [
        {"lr": 0.5, "max_lr": 1.0, "weight_decay": 0.3},
        {"lr": 0.05, "weight_decay": 0.0},
    ]
    assert state["lr_schedulers"] == [{"base_lrs": [1.0, 0.1], "_last_lr": [0.5, 0.05], "last_epoch": 7}]
