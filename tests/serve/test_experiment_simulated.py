"""Whole experiments, simulated through the real code: a small edition of benchmarks/experiment.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ALPHA = 0.05


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("experiment_benchmark", Path(__file__).parents[2] / "benchmarks" / "experiment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.FIRST, module.MORE, module.LAST = 300, 1.6, 16_000
    return module


@pytest.mark.parametrize("kind", ["A/A", "A/A 90:10", "A/A/A"])
def test_equal_arms_are_seldom_called_different_however_often_one_looks(benchmark: ModuleType, kind: str) -> None:
    ended = benchmark.run(kind, 40, seed=1)
    assert np.mean([one.missed for one in ended]) <= ALPHA
    assert np.mean([one.wrong for one in ended]) <= ALPHA
    assert not any(one.doubted for one in ended)
    assert np.mean([one.t_test for one in ended]) > 0.3, "a t-test on every look alarms far more often than it says"


def test_the_better_arm_is_chosen_and_one_that_breaks_a_guard_rail_is_not(benchmark: ModuleType) -> None:
    assert np.mean([one.choice == 2 for one in benchmark.run("10, 11.5, 13 %", 20, seed=2)]) >= 0.8
    slower = [one.choice for one in benchmark.run("10 -> 13 %, latency +30 %", 20, seed=2)]
    assert 1 not in slower
    assert slower.count(0) >= 8


def test_lost_keys_are_doubted(benchmark: ModuleType) -> None:
    assert np.mean([one.doubted for one in benchmark.run("10 % lost", 20, seed=3)]) >= 0.8


def test_a_bandit_loses_less_than_an_equal_split_and_ends_on_the_best_arm(benchmark: ModuleType) -> None:
    equal, adaptive = (benchmark.run(f"10, 11.5, 13 %{kind}", 20, seed=4) for kind in ("", " bandit"))
    assert np.mean([one.regret for one in adaptive]) < 0.6 * np.mean([one.regret for one in equal])
    assert np.mean([one.most == 2 for one in adaptive]) >= 0.9
    assert np.mean([one.missed for one in adaptive]) <= 2 * ALPHA
