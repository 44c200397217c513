"""Users who come back, step after step: a key is seen first only once, and fails first only once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest

from raymlp.config.rollout import Quality, Rollout
from raymlp.core.records import Decision
from raymlp.data.target import Target
from raymlp.model.predictor import Predictor
from raymlp.serve.evidence import Versions, gather
from raymlp.serve.log import SCHEMA
from raymlp.serve.rollout.facts import Evidence, Pair, Position
from raymlp.serve.rollout.policy import decide
from raymlp.serve.routing import Routes

SHARES = (0.05, 0.25, 0.5, 1.0)
SETTINGS = Rollout(weights=SHARES, min_step_s=0, quality=Quality(required=False))
USERS, REQUESTS = 2_000, 10_000
"""Requests of each step, so that every user comes five times in it."""

MODEL = cast(Predictor, SimpleNamespace(bundle=SimpleNamespace(plan=SimpleNamespace(target=Target(column="y", task="regression")))))
VERSIONS = Versions("v1", "v2", MODEL, MODEL)


def returning(seed: int, rates: Pair) -> list[Evidence]:
    """What is known after each step; `rates` are failures of champion and challenger in a thousand requests."""
    rng = np.random.default_rng(seed)
    names = np.array([f"user {seed}-{number}" for number in range(USERS)])
    parts = []
    for place, share in enumerate(SHARES):
        routes = Routes.of("v1", {"v1": 1 - share, "v2": share}, salt="s")
        theirs = np.array([routes.choose(name) == "v2" for name in names])
        users = rng.integers(0, USERS, REQUESTS)
        failed = rng.random(REQUESTS) < np.where(theirs[users], rates.challenger, rates.champion) / 1_000
        columns = {
            "prediction_id": [""] * REQUESTS,
            "row": np.zeros(REQUESTS, dtype=int),
            "time": np.arange(REQUESTS) + REQUESTS * place,
            "version": np.where(theirs[users], "v2", "v1"),
            "routing_key": names[users],
            "status": np.where(failed, 500, 200),
            "prediction": rng.random(REQUESTS),
            "latency_ms": rng.lognormal(2, 0.3, REQUESTS),
            "routes": [str(routes)] * REQUESTS,
        }
        parts.append(pa.table({name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}))
    return [gather(pa.concat_tables(parts[: place + 1]), None, VERSIONS, "s", SETTINGS) for place in range(len(SHARES))]


def verdicts(seed: int, rates: Pair) -> list[Decision]:
    """What the policy says at the end of each step."""
    found = returning(seed, rates)
    return [decide(evidence, Position(share, 60, 60), SETTINGS) for evidence, share in zip(found, SHARES, strict=True)]


def test_a_trial_is_a_keys_first_request_of_a_step_and_some_of_them_failed() -> None:
    steps = returning(0, Pair(100, 100))[-1].steps
    for step in steps:
        assert sum(step.trials) == pytest.approx(USERS * (1 - np.exp(-REQUESTS / USERS)), rel=0.01)
        assert sum(step.failed) / sum(step.trials) == pytest.approx(0.1, abs=0.025)
    assert sum(step.keys.challenger + step.keys.champion for step in steps) == USERS
    assert sum(sum(step.errors) for step in steps[2:]) > sum(sum(step.keys) for step in steps[2:])


def test_versions_that_fail_alike_are_not_rolled_back_because_users_return() -> None:
    rolled_back = [any(one.action == "rollback" for one in verdicts(seed, Pair(1, 1))) for seed in range(20)]
    assert np.mean(rolled_back) <= SETTINGS.alpha


def test_a_challenger_that_fails_more_often_for_users_who_return_is_rolled_back() -> None:
    found = [verdicts(seed, Pair(1, 30)) for seed in range(5)]
    for decisions in found:
        ended = next(one for one in decisions if one.action == "rollback")
        assert ended.reason.startswith("errors: ")
        assert decisions.index(ended) < 3
