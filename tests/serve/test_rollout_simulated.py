"""Whole rollouts, simulated through the real policy: a small edition of benchmarks/rollout.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from raymlp.config.rollout import Rollout

SETTINGS = Rollout(weights=(0.05, 0.5, 1.0), min_requests=50, min_step_s=0, max_requests=100_000)
ALPHA = SETTINGS.alpha


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rollout_benchmark", Path(__file__).parents[2] / "benchmarks" / "rollout.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.FIRST_LOOK, module.MORE_PER_LOOK = 50, 0.25
    return module


def test_an_equal_challenger_is_promoted(benchmark: ModuleType) -> None:
    ended = benchmark.run("equal", 50, SETTINGS, seed=1)
    assert np.mean([one.action != "promote" for one in ended]) <= ALPHA
    assert np.mean([one.t_test for one in ended]) > 2 * ALPHA, "a t-test on every look alarms far more often than it says"


def test_chance_rolls_back_an_equal_challenger_within_alpha_even_without_tolerance(benchmark: ModuleType) -> None:
    ended = benchmark.run("on the bound", 50, SETTINGS, seed=2)
    assert np.mean([one.action == "rollback" and not one.reason.startswith("no verdict") for one in ended]) <= ALPHA


@pytest.mark.parametrize(
    ("kind", "guard", "challenger_requests"),
    [("errors 1 % -> 3 %", "errors", 2_000), ("latency +30 %", "latency", 1_000), ("AUC -.03", "quality", 2_000)],
)
def test_a_fault_is_found_soon_and_by_its_guard(benchmark: ModuleType, kind: str, guard: str, challenger_requests: int) -> None:
    ended = benchmark.run(kind, 50, SETTINGS, seed=3)
    assert np.mean([one.action == "rollback" for one in ended]) >= 0.95
    assert np.mean([one.reason.startswith(f"{guard}:") for one in ended]) >= 0.9
    assert np.median([one.challenger_requests for one in ended]) <= challenger_requests


def test_lost_requests_pause(benchmark: ModuleType) -> None:
    ended = benchmark.run("10 % lost", 40, SETTINGS, seed=4)
    assert np.mean([one.action == "pause" for one in ended]) >= 0.7
