"""A run of trees that was cut off comes to the trees of one that was not, rows and features drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymlp.config.schema import Config
from raymlp.config.trees import LightGBM, XGBoost
from raymlp.core.records import Snapshot
from raymlp.model.trees import TreeScorer
from raymlp.train.job import Outcome
from raymlp.train.worker import fit_alone, job_alone
from tests.train.planted import config_of

Snapshots = Callable[[str], Snapshot]
KINDS = {
    "xgboost": XGBoost(rounds_per_epoch=5, learning_rate=0.1, subsample=0.7, feature_share=0.6),
    "lightgbm": LightGBM(rounds_per_epoch=5, learning_rate=0.1, subsample=0.7, feature_share=0.6),
}


def config_for(kind: str, **train: Any) -> Config:
    return config_of("binary", **{"epochs": 4, **train}).model_copy(update={"model": KINDS[kind]})


def text_of(outcome: Outcome) -> str:
    assert isinstance(outcome.scorer, TreeScorer)
    return outcome.scorer.text


@pytest.mark.parametrize("cut_at", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_draws_what_the_whole_run_drew(kind: str, cut_at: int, snapshots: Snapshots, tmp_path: Path) -> None:
    job, splits = job_alone(config_for(kind), snapshots("binary").path)
    whole = fit_alone(job, splits, lambda *_: None)
    again = fit_alone(job, splits, lambda *_: None)
    assert text_of(again) == text_of(whole)

    def cut(metrics: dict[str, float], save: Any) -> bool:
        if metrics["epoch"] + 1 < cut_at:
            return False
        save(tmp_path)
        return True

    fit_alone(job, splits, cut)
    resumed = fit_alone(job, splits, lambda *_: None, resume=tmp_path)
    np.testing.assert_array_equal(resumed.outputs, whole.outputs)
