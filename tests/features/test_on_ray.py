"""The executor over Ray Data agrees with the one in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlp.config.features import Features
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.data.profile import Profile
from raymlp.features.on_ray import count_files, profile_files, transform_files
from raymlp.features.plan import FeaturePlan


@pytest.mark.ray
def test_profile_and_tensors_over_ray_data_are_those_in_memory(ray_runtime: Runtime, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"x": rng.integers(0, 50, 600), "k": rng.choice(["a", "b"], 600), "y": rng.normal(size=600)})
    files = [str(tmp_path / f"{part}.parquet") for part in range(3)]
    for part, file in enumerate(files):
        pq.write_table(table.slice(part * 200, 200), file)
    problem = Problem(name="p", task="regression", target="y")
    whole, parts = Profile().update(table), profile_files(files, table.column_names)
    assert (parts.rows, parts.columns["k"].counts()) == (600, whole.columns["k"].counts())
    assert parts.columns["x"].digest.to_dict() == whole.columns["x"].digest.to_dict()
    encoded = Features(encoding="target")
    here = FeaturePlan.fit(encoded, problem, whole, files=files)
    assert FeaturePlan.fit(encoded, problem, whole, files=files, count=count_files).steps == here.steps
    plan = FeaturePlan.fit(Features(), problem, whole)
    expected = plan.transform(table)
    batches = list(transform_files(files, plan).iter_batches(batch_size=None))
    for name in ("numeric", "categorical"):
        found = np.concatenate([batch[name] for batch in batches])
        assert np.array_equal(found, expected[name])
