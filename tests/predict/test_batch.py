"""Batch prediction for real: sources on disk, workers in the shared Ray, answers compared with the predictor and the endpoint's way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from raymlp import pipeline
from raymlp.config.loader import with_overrides
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.core.records import BatchPrediction
from raymlp.model.predictor import Predictor
from tests.serve.bundles import json_rows, make_bundle, make_config, source_table

pytestmark = pytest.mark.ray
ROWS = 500


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", seed=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of the bundle's table without the target, with a number each, in two files of several row groups."""
    folder = tmp_path_factory.mktemp("source")
    table = source_table().drop(["late"]).append_column("row", pa.array(range(ROWS)))
    for part in range(2):
        pq.write_table(table.slice(part * 250, 250), folder / f"{part}.parquet", row_group_size=25)
    return folder


@pytest.fixture
def config(ray_runtime: Runtime, source: Path, tmp_path: Path) -> Config:
    settings = {
        "data.source": {"kind": "parquet", "path": str(source)},
        "predict": {"output": str(tmp_path / "out"), "keep": ["row", "carrier"], "file_rows": 60, "num_workers": 2, "cpus_per_worker": 0.5},
    }
    return with_overrides(make_config(ray_runtime), settings)


def answers(result: BatchPrediction) -> pa.Table:
    return pq.read_table(result.output).sort_by("row")


def test_answers_equal_the_predictors_row_by_row(config: Config, bundle: Path, source: Path) -> None:
    result = pipeline.predict(config, bundle)
    found = answers(result)
    predictor = Predictor.load(bundle)
    expected = predictor.predict(json_rows(ROWS))
    alone = [predictor.predict_typed(predictor.check(row, "row")).scores[0] for row in json_rows(40)]
    assert found.column("row").to_pylist() == list(range(ROWS))
    assert found.column("score").to_pylist() == pytest.approx(expected.scores, abs=1e-6)
    assert found.column("score").to_pylist()[:40] == pytest.approx(alone, abs=1e-6)
    assert found.column("label").to_pylist() == expected.labels
    assert found.column_names == ["row", "carrier", "score", "label", "model_version", "model_digest"]
