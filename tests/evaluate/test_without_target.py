"""Judging clusters and anomaly detectors: baselines, gate, report, slices, and two models against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlp.config.features import Features
from raymlp.config.loader import build_config
from raymlp.config.schema import Config
from raymlp.config.unsupervised import IsolationForest, KMeans
from raymlp.core.metrics import METRICS
from raymlp.core.records import Snapshot
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.evaluate import plain
from raymlp.evaluate.baselines import scores_of
from raymlp.evaluate.evaluation import compare_models, evaluate
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import Bundle, save_bundle
from raymlp.model.judging import judged
from raymlp.train.blocks import joined, pack, unpack
from raymlp.train.sampled import fitted


def rows(count: int, seed: int) -> pa.Table:
    """Three groups along a line; one row in ten is far away from all, which the label knows of half of the rows."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, count)
    odd = rng.random(count) < 0.1
    a = group * 6 + rng.normal(size=count)
    b = np.where(odd, rng.uniform(-40, 40, count), a + rng.normal(size=count))
    label = pa.array(np.where(odd, "yes", "no"), mask=rng.random(count) < 0.5)
    return pa.table({"a": a, "b": b, "kind": np.array(["x", "y", "z"])[group], "odd": label})


def config_of(task: str, *, label: bool = False, **evaluation: Any) -> Config:
    problem: dict[str, Any] = {"name": "rows", "task": task, "slices": ["kind"], "sensitive": ["odd"] if task == "clustering" else []}
    problem |= {"label": "odd", "positive_class": "yes"} if label else {}
    return build_config(
        {
            "problem": problem,
            "data": {"source": {"kind": "csv", "path": "none.csv"}, "split": {"kind": "random"}},
            "features": {"drop": [] if label else ["odd"]},
            "model": {"kind": "kmeans" if task == "clustering" else "isolation_forest"},
            "tune": {},
            "evaluate": {"bootstrap_samples": 30, "min_slice_rows": 50, **evaluation},
        }
    )


def bundle_of(config: Config, folder: Path, *, clusters: int = 3, trees: int = 30, seed: int = 0) -> Path:
    table = rows(900, 1)
    profile = Profile().update(table)
    plan = FeaturePlan.fit(config.features, config.problem, profile)
    block = joined(unpack(pack(table, plan), plan))
    model = KMeans(clusters=clusters) if config.problem.task == "clustering" else IsolationForest(trees=trees, contamination=0.1)
    found = fitted(model, plan, block, seed=seed)
    contract = Contract.infer(profile).only(plan.inputs)
    return save_bundle(Bundle("rows", "r", found.scorer, plan, contract, found.calibration, profile, Profile(), {}, "", "s"), folder)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("rows")
    tables = {"train": rows(900, 1), "valid": rows(300, 2), "test": rows(600, 3)}
    for split, table in tables.items():
        (folder / split).mkdir()
        pq.write_table(table, folder / split / "part-00000.parquet")
    return Snapshot(folder, "5" * 64, {split: table.num_rows for split, table in tables.items()})


def test_clusters_beat_chance_and_cuts_along_one_direction(snapshot: Snapshot, tmp_path: Path) -> None:
    config = config_of("clustering")
    found = evaluate(config, snapshot, bundle_of(config, tmp_path / "bundle"), report_dir=tmp_path)
    assert (found.split, found.rows, found.gate.action) == ("test", 600, "pass")
    assert set(found.metrics) == set(METRICS["clustering"])
    assert list(found.baselines) == ["rule", "linear"]
    assert found.baselines["rule"]["silhouette"].value < 0.01 < found.baselines["linear"]["silhouette"].value
    assert {part["column"] for part in found.slices} == {"kind", "odd"}
    page = found.report.read_text()
    for words in ("Silhouettes", "Sizes of clusters", "3 of 3 have rows", "rows · clustering<"):
        assert words in page
    assert "None" not in page


@pytest.mark.parametrize("label", [False, True])
def test_anomalies_are_judged_by_shuffled_rows_and_by_the_label_where_there_is_one(label: bool, snapshot: Snapshot, tmp_path: Path) -> None:
    config = config_of("anomaly", label=label)
    found = evaluate(config, snapshot, bundle_of(config, tmp_path / "bundle"), report_dir=tmp_path)
    assert (found.rows, found.gate.action) == (600, "pass"), found.gate
    assert found.baselines["rule"]["shuffled_auc"].value == 0.5
    assert list(found.baselines) == (["rule", "linear"] if label else ["rule"])
    assert bool(np.isfinite(found.metrics["auc"].value)) is label
    page = found.report.read_text()
    assert ("known anomalies" in page) is label
    assert "% of the rows, from a score of" in page
    assert ("average precision" in page) is label
    if label:
        assert found.metrics["auc"].value > 0.85
        assert config.problem.main_metric == "auc"


def test_a_forest_that_is_not_far_enough_above_the_rule_stays_out(snapshot: Snapshot, tmp_path: Path) -> None:
    config = config_of("anomaly", gate={"min_gain_over_rule": 0.4})
    found = evaluate(config, snapshot, bundle_of(config, tmp_path / "bundle"), report_dir=tmp_path)
    assert found.gate.action == "fail"
    assert "does not beat the rule (0.5000)" in found.gate.reason


def test_a_champion_with_other_clusters_is_compared_on_the_same_rows(tmp_path: Path) -> None:
    config = config_of("clustering")
    three, seven = bundle_of(config, tmp_path / "three"), bundle_of(config, tmp_path / "seven", clusters=7)
    (up, gain), (down, loss) = (compare_models(config, *pair, rows(500, 9)) for pair in ((three, seven), (seven, three)))
    assert gain.value == pytest.approx(-loss.value)
    assert {up.action, down.action} == {"pass", "fail"}
    assert "on 500 rows" in up.reason
    forest = config_of("anomaly")
    one, many = bundle_of(forest, tmp_path / "one", trees=1), bundle_of(forest, tmp_path / "many", trees=60)
    assert compare_models(forest, one, many, rows(500, 9))[1].value > 0


def test_baselines_by_hand() -> None:
    """Equal parts along the first component have equal numbers of training rows; the Mahalanobis distance is that of scikit-learn."""
    table = rows(900, 1)
    plan = FeaturePlan.fit(Features(drop=("odd", "kind")), config_of("clustering").problem, Profile().update(table))
    found = scores_of(["rule", "linear", "gradient_boosting"], plan, table, table, clusters=3)
    assert list(found) == ["rule", "linear"]
    assert np.bincount(found["linear"].argmin(axis=1)).tolist() == [300, 300, 300]
    labelled = FeaturePlan.fit(Features(drop=("kind",)), config_of("anomaly", label=True).problem, Profile().update(table))
    far = scores_of(["linear"], labelled, table, table)["linear"]
    x = labelled.transform(table)["numeric"].astype(np.float64)
    centred = x - x.mean(axis=0)
    exact = np.einsum("ij,jk,ik->i", centred, np.linalg.inv(centred.T @ centred / len(x)), centred)
    np.testing.assert_allclose(far, exact, rtol=0.05, atol=0.05)
    assert judged(table, labelled).rows == 900


@pytest.mark.parametrize("task", ["clustering", "anomaly"])
def test_baselines_score_in_parts_what_they_score_at_once(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(task, label=task == "anomaly")
    train, scored = rows(60, 1), rows(500, 2)
    plan = FeaturePlan.fit(config.features, config.problem, Profile().update(train))
    at_once = scores_of(("linear",), plan, train, scored, clusters=3)["linear"]
    monkeypatch.setattr(plain, "BYTES", 0)
    np.testing.assert_allclose(scores_of(("linear",), plan, train, scored, clusters=3)["linear"], at_once, rtol=1e-9)
    assert len(scores_of(("linear",), plan, rows(300, 1), scored, clusters=3)["linear"]) == 500
