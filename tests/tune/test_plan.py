"""What `raymlp plan` says of tuning."""

from __future__ import annotations

import pytest

from raymlp.config.loader import load_config
from raymlp.preflight import _tuning


def said(*overrides: str) -> tuple[str, list[str]]:
    problems: list[str] = []
    return _tuning(load_config("flights", ["runtime.num_cpus=4", *overrides]), problems.append)["tuning"], problems


def test_plan_names_the_space_the_trials_and_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    line, problems = said("tune.max_concurrent=3")
    assert not problems
    assert line.startswith("random over train.learning_rate, ")
    assert line.endswith("8 trials; 3 trials x 1 CPUs = 3 of 4")
    line, _ = said("tune=auto", "tune.workers=as_train", "train.num_workers=2")
    assert "as many as fit in 10 minutes; 2 trials x 2 workers x 1 CPUs = 4 of 4" in line


def test_a_space_that_the_model_lacks_stops_tune_alone() -> None:
    line, problems = said("tune.space={train.epoch: {kind: choice, values: [1]}}")
    assert not problems
    assert line.startswith("would be refused: tune.space: train.epoch is not a setting")
