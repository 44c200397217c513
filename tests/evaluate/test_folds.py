"""Scores over folds, worked by hand."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from raymlp import pipeline
from raymlp.config.loader import with_overrides
from raymlp.config.problem import Problem
from raymlp.config.schema import Config
from raymlp.core.errors import ConfigError
from raymlp.core.metrics import auc
from raymlp.core.records import Snapshot, Spread
from raymlp.evaluate.folds import joined, out_of_fold_scores, spreads
from raymlp.train import trainer
from tests.train.planted import config_of, planted, trained, write_snapshot


def test_the_spread_is_that_of_a_sample_and_only_of_metrics_that_all_folds_have() -> None:
    assert spreads([{"auc": 0.7, "x": 1.0}, {"auc": 0.8}, {"auc": 0.9}]) == {"auc": Spread(pytest.approx(0.8), pytest.approx(0.1))}
    assert str(Spread(0.81234, 0.01)) == "0.8123 ± 0.0100"


def test_out_of_fold_scores_are_over_the_rows_of_all_folds() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.random(60) > 0.5, rng.random(60)
    halves = [pa.table({"fold": [fold] * 30, "positive": y[at], "probability": p[at]}) for fold, at in ((0, slice(30)), (1, slice(30, 60)))]
    problem = Problem(name="p", task="binary", target="y")
    assert out_of_fold_scores(joined(halves), problem)["auc"] == auc(y.astype(float), p)


def test_a_class_that_a_fold_never_saw_has_probability_0_there() -> None:
    first = pa.table({"y": ["a", "b"], "probability_a": [0.9, 0.2], "probability_b": [0.1, 0.8]})
    second = pa.table({"y": ["c", "a"], "probability_a": [0.3, 0.6], "probability_b": [0.1, 0.1], "probability_c": [0.6, 0.3]})
    table = joined([first, second])
    assert table.column("probability_c").to_pylist() == [0.0, 0.0, 0.6, 0.3]
    found = out_of_fold_scores(table, Problem(name="p", task="multiclass", target="y"))
    assert found["accuracy"] == 1.0
    assert found["log_loss"] == pytest.approx(-np.mean(np.log([0.9, 0.8, 0.6, 0.6])))


def test_regression_is_scored_in_the_unit_of_the_answer() -> None:
    table = pa.table({"y": [1, 2, 3], "prediction": [1.0, 2.0, 6.0]})
    assert out_of_fold_scores(table, Problem(name="p", task="regression", target="y"))["mae"] == 1.0


def test_each_row_is_scored_by_the_model_that_did_not_learn_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = planted(600, 1, "binary").append_column("id", pa.array(range(600)))
    parts = [rows.slice(0, 300), rows.slice(300)]

    def prepare(config: Config, **_: Any) -> Snapshot:
        fold = config.data.split.fold
        return write_snapshot(tmp_path / f"fold-{fold}", {"train": parts[1 - fold], "valid": parts[fold]}, parts=1)

    monkeypatch.setattr("raymlp.pipeline.training.prepare", prepare)
    monkeypatch.setattr("raymlp.pipeline.training.train", trained)
    monkeypatch.setattr("raymlp.pipeline.training.ray_session", lambda _: nullcontext())
    monkeypatch.setattr(trainer, "at_once", lambda _: 1)
    problem = {"problem.id_columns": ["id"], "runtime.storage": str(tmp_path / "artifacts")}
    config = with_overrides(config_of(epochs=2, batch_size=32, learning_rate=0.01), problem)
    with pytest.raises(ConfigError, match=r"data.split.folds is not set"):
        pipeline.crossvalidate(config)
    result = pipeline.crossvalidate(with_overrides(config, {"data.split.folds": 2}))
    table = pq.read_table(result.predictions)
    assert table.column_names == ["fold", "id", "y", "positive", "probability"]
    assert table.column("id").to_pylist() == [i for i, y in enumerate(rows.column("y")) if y.is_valid]
    assert set(table.filter(pa.compute.less(table.column("id"), 300)).column("fold").to_pylist()) == {0}
    second = table.filter(pa.compute.equal(table.column("fold"), 1))
    scored = auc(second.column("positive").to_numpy().astype(float), second.column("probability").to_numpy())
    assert scored == pytest.approx(result.models[1].metrics["auc"])
    assert result.metrics["auc"].mean == pytest.approx(np.mean([model.metrics["auc"] for model in result.models]))
    assert 0.7 < result.out_of_fold["auc"] < 0.95
