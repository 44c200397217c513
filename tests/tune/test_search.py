"""The search finds what it should, and says it so that the command line takes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymlp.config.loader import with_overrides
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.config.tune import Choice, Integer, LogUniform, Tune, Uniform
from raymlp.core.errors import ConfigError, TrainingError
from raymlp.tune.search import Objective, Report, check, overrides_of, search, trial_config
from tests.train.planted import config_of


def tuned(space: dict[str, Any], **settings: Any) -> Config:
    return config_of().model_copy(update={"tune": Tune(space=space, **{"epochs": 6, "num_samples": 6, "max_concurrent": 2} | settings)})


def bowl(refused: int = 0) -> Objective:
    """A made-up training run whose loss falls with the epochs and is lowest for a learning rate of .01 and no dropout.

    Made inside a function, so that it travels to the trials by value: they cannot import this file.
    """

    def run(config: Config, report: Report) -> dict[str, float]:
        if config.train.batch_size == refused:
            raise ValueError("too small")
        floor = abs(math.log10(config.train.learning_rate) + 2) + config.model.dropout
        for epoch in range(config.train.epochs):
            report({"epoch": epoch, "valid_loss": floor + 1 / (epoch + 1)})
        return {"valid_loss": floor}

    return run


@pytest.mark.ray
def test_the_better_of_two_step_sizes_is_found(ray_runtime: Runtime, tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    config = tuned({"train.learning_rate": Choice(values=(0.01, 1.0))}, scheduler="none")
    result = search(config, bowl(), storage=tmp_path, on_trial=heard.append)
    assert result.best == ("train.learning_rate=0.01",)
    assert (result.metric, result.score) == ("valid_loss", pytest.approx(0.1 + 1 / 6))
    assert len(result.trials) == len(heard) == 6
    assert {trial["overrides"][0]: trial["valid_loss"] for trial in result.trials} == {
        "train.learning_rate=0.01": pytest.approx(0.1 + 1 / 6),
        "train.learning_rate=1.0": pytest.approx(2.1 + 1 / 6),
    }
    assert all(trial["finished"] and trial["epochs"] == 6 and trial["metrics"] for trial in heard)


@pytest.mark.ray
def test_the_same_seed_draws_the_same_settings_inside_their_bounds(ray_runtime: Runtime, tmp_path: Path) -> None:
    space = {
        "train.learning_rate": LogUniform(low=1e-4, high=1e-1),
        "model.dropout": Uniform(low=0.0, high=0.4),
        "train.batch_size": Integer(low=16, high=18),
        "model.hidden": Choice(values=((8,), (8, 4))),
    }
    first, second = (search(tuned(space, seed=3, num_samples=4, epochs=2), bowl(), storage=tmp_path) for _ in range(2))
    assert [trial["overrides"] for trial in first.trials] == [trial["overrides"] for trial in second.trials]
    assert len({tuple(trial["overrides"]) for trial in first.trials}) == 4
    for trial in first.trials:
        drawn = dict(word.split("=") for word in trial["overrides"])
        assert 1e-4 <= float(drawn["train.learning_rate"]) <= 1e-1
        assert 0 <= float(drawn["model.dropout"]) <= 0.4
        assert drawn["train.batch_size"] in {"16", "17", "18"}
        assert drawn["model.hidden"] in {"[8]", "[8,4]"}


@pytest.mark.ray
def test_asha_stops_trials_that_fall_behind(ray_runtime: Runtime, tmp_path: Path) -> None:
    config = tuned(
        {"model.dropout": Choice(values=tuple(i / 10 for i in range(9)))}, num_samples=9, max_concurrent=1, epochs=9, grace_epochs=1
    )
    result = search(config, bowl(), storage=tmp_path)
    stopped = [trial for trial in result.trials if not trial["finished"]]
    assert stopped
    assert all(trial["epochs"] < 9 for trial in stopped)
    assert min(trial["valid_loss"] for trial in result.trials) == result.score


@pytest.mark.ray
def test_a_trial_that_fails_is_told_and_the_others_count(ray_runtime: Runtime, tmp_path: Path) -> None:
    config = tuned({"train.batch_size": Choice(values=(1, 2))}, num_samples=5)
    result = search(config, bowl(refused=1), storage=tmp_path)
    assert result.best == ("train.batch_size=2",)
    assert {trial["error"] for trial in result.trials if "error" in trial} == {"ValueError: too small"}
    with pytest.raises(TrainingError, match="all 2 trials failed; the first: ValueError: too small"):
        search(tuned({"train.batch_size": Choice(values=(1,))}, num_samples=2), bowl(refused=1), storage=tmp_path)


def test_a_wrong_key_or_bound_is_refused_before_any_trial() -> None:
    with pytest.raises(ConfigError, match=r"train.learning_rat is not a setting.*Did you mean 'train.learning_rate'"):
        check(tuned({"train.learning_rat": Uniform(low=0.1, high=0.2)}))
    with pytest.raises(ConfigError, match=r"model.dropout"):
        check(tuned({"model.dropout": Uniform(low=0.1, high=1.5)}))
    with pytest.raises(ConfigError, match=r"train.precision"):
        check(tuned({"train.precision": Choice(values=("32", "64"))}))


def test_overrides_compose_to_the_config_of_the_trial() -> None:
    draw = {"train.learning_rate": 0.0021, "model.hidden": [256, 128], "train.precision": "32", "features.missing_indicators": False}
    assert overrides_of(draw) == [
        "train.learning_rate=0.0021",
        "model.hidden=[256,128]",
        "train.precision='32'",
        "features.missing_indicators=false",
    ]
    config = trial_config(tuned({"train.learning_rate": Choice(values=(1.0,))}), draw)
    assert (config.model.hidden, config.train.learning_rate, config.train.epochs) == ((256, 128), 0.0021, 6)
    assert config.features.missing_indicators is False
    assert with_overrides(config_of(), draw).model.hidden == (256, 128)


@pytest.mark.ray
def test_real_training_is_searched(ray_runtime: Runtime, tmp_path: Path, snapshots: Callable[[str], Any]) -> None:
    from raymlp.train.trainer import fit_in_process

    path = snapshots("binary").path
    config = tuned({"train.learning_rate": Choice(values=(1e-5, 0.01))}, num_samples=4, epochs=3)
    result = search(config, lambda trial, report: fit_in_process(trial, path, report), storage=tmp_path)
    assert result.best == ("train.learning_rate=0.01",)
    assert result.score < 0.5
