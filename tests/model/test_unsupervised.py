"""Clusters and isolation forests: scikit-learn's own numbers, value by value, and what a bundle and its predictor make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn.cluster import KMeans as ReferenceKMeans
from sklearn.ensemble import IsolationForest as ReferenceForest

from raymlp.config.features import Features
from raymlp.config.problem import Problem
from raymlp.config.unsupervised import IsolationForest, KMeans, Sampled
from raymlp.core.errors import BundleError, DataError
from raymlp.core.metrics import SHUFFLED
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import Bundle, card, save_bundle
from raymlp.model.calibration import Calibration
from raymlp.model.clusters import FILE as CLUSTERS
from raymlp.model.isolation import FILE as FOREST
from raymlp.model.isolation import tree_of, usual_path
from raymlp.model.judging import coordinates, judged, shuffled_table, shuffled_tensors
from raymlp.model.predictor import Prediction, Predictor
from raymlp.model.pyfunc import PyfuncModel
from raymlp.model.trees import matrix
from raymlp.train.blocks import Block, joined, pack, unpack
from raymlp.train.sampled import fitted, sampled

MODELS: dict[str, Sampled] = {"clustering": KMeans(clusters=4, n_init=2), "anomaly": IsolationForest(trees=15, tree_rows=64)}


def rows(count: int = 700, seed: int = 0) -> pa.Table:
    """Three groups, in numbers and in a category, a moment, and gaps."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, count)
    at = np.datetime64("2024-01-01") + rng.integers(0, 9_000, count) * np.timedelta64(1, "h")
    return pa.table(
        {
            "a": pa.array(group * 4 + rng.normal(size=count), mask=rng.random(count) < 0.1),
            "b": group * -3 + rng.normal(size=count),
            "kind": pa.array(np.array(["x", "y", "z"])[group], mask=rng.random(count) < 0.05),
            "flag": rng.random(count) < 0.3,
            "at": pa.array(at.astype("datetime64[us]"), pa.timestamp("us", tz="UTC")),
        }
    )


def problem_of(task: Any, **more: Any) -> Problem:
    return Problem(name="p", task=task, **more)


def fit(task: str, table: pa.Table | None = None, **changes: Any) -> tuple[FeaturePlan, Block, Any]:
    table = rows() if table is None else table
    plan = FeaturePlan.fit(Features(), problem_of(task), Profile().update(table))
    block = joined(unpack(pack(table, plan), plan))
    return plan, block, fitted(MODELS[task].model_copy(update=changes), plan, block, seed=3)


def bundle_of(task: str, folder: Path) -> Path:
    plan, _, found = fit(task)
    profile = Profile().update(rows())
    contract = Contract.infer(profile).only(plan.inputs)
    metrics = {"sampled_rows": 700.0, "auc": float("nan")}
    return save_bundle(Bundle("p", "r", found.scorer, plan, contract, found.calibration, profile, Profile(), metrics, "", "s"), folder)


def test_distances_and_clusters_are_those_of_scikit_learn() -> None:
    plan, block, found = fit("clustering")
    x = coordinates(plan, block.tensors).astype(np.float64)
    reference = ReferenceKMeans(4, n_init=2, random_state=3).fit(x)
    new = plan.transform(rows(500, seed=9))
    far = coordinates(plan, new).astype(np.float64)
    np.testing.assert_allclose(found.scorer(new), reference.transform(far), atol=1e-6)
    assert np.array_equal(found.scorer(new).argmin(axis=1), reference.predict(far))
    assert found.loss == pytest.approx(reference.inertia_ / len(x))


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_scores_are_those_of_scikit_learn(share: float) -> None:
    plan, block, found = fit("anomaly", feature_share=share, contamination=0.1)
    x = matrix({name: values.astype(np.int64) if name == "categorical" else values for name, values in block.tensors.items()})
    reference = ReferenceForest(n_estimators=15, max_samples=64, max_features=share, contamination=0.1, random_state=3).fit(x)
    for count in (40, 2_000):
        new = plan.transform(rows(count, seed=9))
        np.testing.assert_allclose(found.scorer(new)[:, 0], -reference.score_samples(matrix(new)), atol=1e-6)
        assert np.array_equal(found.scorer(new)[:, 0] > found.calibration.threshold, reference.predict(matrix(new)) < 0)
    assert found.calibration.threshold == pytest.approx(-reference.offset_)


def test_a_tree_of_three_rows_by_hand() -> None:
    """The root puts the row at 9 aside; two rows that are equal to the tree stay together."""
    tree = tree_of(np.array([0, -2, -2]), np.array([0.1, 0, 0]), np.array([[1, 2], [-1, -1], [-1, -1]]), np.array([3, 2, 1]))
    assert tree.children.tolist() == [[-1, -2]]
    assert tree.leaves.tolist() == [1 + 1.0, 1 + 0.0]
    assert float(tree.threshold[0]) <= 0.1 < float(np.nextafter(tree.threshold[0], np.float32(1)))


def test_usual_paths_of_the_paper() -> None:
    assert usual_path(np.array([0, 1, 2])).tolist() == [0.0, 0.0, 1.0]
    harmonic = np.log(255) + 0.5772156649
    assert usual_path(np.array([256]))[0] == pytest.approx(2 * harmonic - 2 * 255 / 256)


@pytest.mark.parametrize("task", MODELS)
def test_a_bundle_gives_the_same_scores_by_every_way(task: str, tmp_path: Path) -> None:
    predictor = Predictor.load(bundle_of(task, tmp_path / "bundle"))
    table = rows(60, seed=5).select(list(predictor.bundle.plan.inputs))
    whole = predictor.predict(table)
    plain = [{**row, "at": row["at"].isoformat()} for row in table.to_pylist()]
    by_row = [predictor.predict_typed(predictor.check(row, "row")).scores[0] for row in plain]
    np.testing.assert_allclose(np.stack(by_row), whole.scores, atol=1e-9)
    np.testing.assert_allclose(predictor.predict(plain).scores, whole.scores, atol=1e-9)
    assert PyfuncModel(predictor).predict(plain[:2]) == whole.rows()[:2]
    assert predictor.predict(table.slice(0, 0)).rows() == []
    assert whole.labels is None
    words = card(predictor.bundle)
    assert "700 evenly spaced ones were learned from" in words
    assert "nan" not in words


def test_what_the_answers_say() -> None:
    clusters = Prediction("clustering", (), np.array([[2.0, 0.5], [1.0, 3.0]]))
    assert clusters.rows() == [{"cluster": 1, "distance": 0.5}, {"cluster": 0, "distance": 1.0}]
    assert clusters.summary.tolist() == [1.0, 0.0]
    scores = Prediction("anomaly", (), np.array([0.7, 0.6]), threshold=0.65)
    assert scores.rows() == [{"score": 0.7, "flagged": True}, {"score": 0.6, "flagged": False}]


@pytest.mark.parametrize(("task", "file"), [("clustering", CLUSTERS), ("anomaly", FOREST)])
@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "shape", "nan"])
def test_a_damaged_file_is_refused_by_name(task: str, file: str, damage: str, tmp_path: Path) -> None:
    plan, _, found = fit(task)
    found.scorer.save(tmp_path)
    place = tmp_path / file
    arrays = load_file(place)
    key = "numeric" if task == "clustering" else "leaves"
    if damage in ("cut", "empty"):
        place.write_bytes(place.read_bytes()[: 99 if damage == "cut" else 0])
    elif damage == "missing":
        save_file({name: values for name, values in arrays.items() if name != key}, place)
    else:
        spoilt = arrays[key][..., :-1] if damage == "shape" else np.full_like(arrays[key], np.nan)
        save_file(arrays | {key: np.ascontiguousarray(spoilt)}, place)
    with pytest.raises(BundleError, match=f"{file} cannot be read as"):
        type(found.scorer).load(place, plan)


def test_a_bundle_of_another_plan_is_refused(tmp_path: Path) -> None:
    other, _, _ = fit("anomaly", rows().drop_columns(["b", "kind"]))
    for task, file in (("clustering", CLUSTERS), ("anomaly", FOREST)):
        _, _, found = fit(task)
        found.scorer.save(tmp_path)
        with pytest.raises(BundleError, match=file):
            type(found.scorer).load(tmp_path / file, other)


def test_fewer_different_rows_than_clusters_are_a_clear_error() -> None:
    table = pa.concat_tables([rows(3)] * 50)
    with pytest.raises(DataError, match=r"the sample has 3 different rows; expected 4 or more. Set model\.clusters"):
        fit("clustering", table)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 200))
@settings(max_examples=40)
def test_a_sample_is_spread_over_all_blocks(sizes: list[int], most: int) -> None:
    total = sum(sizes)
    numbers = np.arange(total, dtype=np.float32)
    ends = np.cumsum(sizes)
    blocks = [Block({"numeric": numbers[end - size : end, None]}, numbers[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    found = sampled(iter(blocks), total, most).target
    assert len(found) == min(total, most) or most > total * 0.9
    assert len(found) <= most
    assert (np.diff(found) > 0).all()
    if len(found) > 1:
        assert np.diff(found).max() - np.diff(found).min() <= 1


# ---------------------------------------------------------------- what a model is judged on


def test_shuffled_rows_keep_columns_whole_and_steps_together() -> None:
    """`weekday` and `hour` of one moment stay together, `a` and `kind` do not; the table and its tensors agree."""
    table = rows(400)
    plan = FeaturePlan.fit(Features(), problem_of("anomaly"), Profile().update(table))
    made = shuffled_table(table, plan)
    for name in table.column_names:
        assert sorted(map(str, made[name].to_pylist())) == sorted(map(str, table[name].to_pylist()))
    assert made["a"].to_pylist() != table["a"].to_pylist()
    tensors = shuffled_tensors(plan.transform(table), plan)
    for name, values in plan.transform(made).items():
        np.testing.assert_array_equal(values, tensors[name])


def test_what_is_judged_goes_by_the_task() -> None:
    table = rows(300).append_column("odd", pa.array(["yes" if i % 10 == 0 else "no" for i in range(300)]))
    profile = Profile().update(table)
    labelled = FeaturePlan.fit(Features(), problem_of("anomaly", label="odd", positive_class="yes"), profile)
    found = judged(table, labelled)
    assert found.rows == 300
    assert (found.table.num_rows, int((found.y == SHUFFLED).sum()), int((found.y == 1).sum())) == (600, 300, 30)
    clusters = judged(rows(5_000), FeaturePlan.fit(Features(), problem_of("clustering"), Profile().update(rows())))
    assert clusters.y.shape[0] == clusters.table.num_rows == clusters.rows <= 4_000


def test_calibration_leaves_distances_and_scores_alone() -> None:
    p = np.array([[1.0, 2.0]])
    assert Calibration.fit("clustering", p, p).apply(p) is p
