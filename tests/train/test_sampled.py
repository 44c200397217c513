"""Training without a target: what the workers of a run do, what a study does, and what the bundle then says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymlp.config.loader import build_config
from raymlp.config.schema import Config
from raymlp.core.errors import ConfigError
from raymlp.core.metrics import METRICS, score
from raymlp.core.records import Snapshot, Task
from raymlp.data.snapshot import load_profile, read_split
from raymlp.model.judging import judged
from raymlp.model.predictor import Predictor
from raymlp.train.support import refusals
from raymlp.train.trainer import bundle_of
from raymlp.train.worker import fit_alone, job_alone
from raymlp.tune.checks import check
from raymlp.tune.portfolio import kinds, resolved
from tests.train.planted import write_snapshot

TASKS: tuple[Task, ...] = ("clustering", "anomaly")


def rows(count: int, seed: int) -> pa.Table:
    """Three groups of rows; one in twenty is an anomaly, whose numbers go against each other; half of the labels are known."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, count)
    odd = rng.random(count) < 0.05
    a = group * 5 + rng.normal(size=count)
    b = np.where(odd, 12 - 2 * a, 2 * a) + rng.normal(size=count)
    label = pa.array(np.where(odd, "yes", "no"), mask=rng.random(count) < 0.5)
    return pa.table({"a": a, "b": b, "kind": np.array(["x", "y", "z"])[group], "odd": label})


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return write_snapshot(tmp_path_factory.mktemp("rows"), {"train": rows(1_500, 1), "valid": rows(600, 2)})


def config_of(task: str, *, label: bool = False, **sections: Any) -> Config:
    problem: dict[str, Any] = {"name": "groups", "task": task} | ({"label": "odd", "positive_class": "yes"} if label else {})
    model: dict[str, Any] = {"kind": "kmeans", "clusters": 3} if task == "clustering" else {"kind": "isolation_forest", "trees": 40}
    values: dict[str, Any] = {
        "problem": problem,
        "data": {"source": {"kind": "csv", "path": "none.csv"}, "split": {"kind": "random"}},
        "features": {} if label else {"drop": ["odd"]},
        "model": model,
        "tune": {},
        "runtime": {"storage": "unused"},
    }
    for section, changes in sections.items():
        values[section] = {**values[section], **changes} if section in values else changes
    return build_config(values)


def heard_and_bundle(config: Config, snapshot: Snapshot, report: Callable[[dict[str, float]], None] = lambda _: None) -> Any:
    job, splits = job_alone(config, snapshot.path)
    outcome = fit_alone(job, splits, lambda metrics, _: report(metrics))
    return bundle_of(job, outcome, snapshot, load_profile(snapshot.path), "r")


@pytest.mark.parametrize(("task", "label"), [("clustering", False), ("anomaly", False), ("anomaly", True)])
def test_a_run_reports_one_epoch_and_its_metrics_are_those_of_the_predictor(task: str, label: bool, snapshot: Snapshot) -> None:
    config, heard = config_of(task, label=label), list[dict[str, float]]()
    bundle, metrics = heard_and_bundle(config, snapshot, heard.append)
    assert len(heard) == 1
    assert heard[0][f"valid_{config.problem.main_metric}"] == metrics[config.problem.main_metric]
    found = judged(read_split(snapshot.path, "valid"), bundle.plan)
    again = score(bundle.plan.target.task, found.y, Predictor(bundle).scores(found.table))
    for name in METRICS[bundle.plan.target.task]:
        np.testing.assert_allclose(metrics[name], again[name], rtol=1e-5, err_msg=name)  # ties of scores are a matter of rounding
    assert metrics["sampled_rows"] == 1_500


def test_planted_groups_are_found(snapshot: Snapshot) -> None:
    bundle, metrics = heard_and_bundle(config_of("clustering"), snapshot)
    assert metrics["inertia_share"] > 0.8
    table = rows(300, 7)
    found = Predictor(bundle).scores(table).argmin(axis=1)
    for kind in ("x", "y", "z"):
        own = found[np.array(table["kind"].to_pylist()) == kind]
        assert np.bincount(own).max() / len(own) > 0.95


def test_planted_anomalies_score_higher_and_the_label_is_never_learned(snapshot: Snapshot) -> None:
    bundle, metrics = heard_and_bundle(config_of("anomaly", label=True, model={"contamination": 0.05}), snapshot)
    assert "odd" not in bundle.plan.inputs
    assert metrics["auc"] > 0.8
    assert metrics["shuffled_auc"] > 0.6
    assert metrics["flagged_share"] == pytest.approx(0.05, abs=0.03)
    assert metrics["valid_loss"] == pytest.approx(1 - metrics["shuffled_auc"])
    without, blind = heard_and_bundle(config_of("anomaly"), snapshot)
    np.testing.assert_array_equal(Predictor(without).scores(rows(50, 7)), Predictor(bundle).scores(rows(50, 7)))
    assert np.isnan(blind["auc"])


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_bits_and_a_small_sample_is_said(task: str, snapshot: Snapshot) -> None:
    config = config_of(task, model={"sample_rows": 400})
    pair = [heard_and_bundle(config, snapshot) for _ in range(2)]
    assert pair[0][1] == pytest.approx(pair[1][1], abs=0, nan_ok=True)
    assert pair[0][1]["sampled_rows"] <= 400
    scores = [Predictor(bundle).scores(rows(50, 7)) for bundle, _ in pair]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"num_workers": 2}}, "train.num_workers is 2, and scikit-learn fits model.kind=kmeans in one process"),
        ({"train": {"precision": "bf16", "compile": True}}, "do not go with train.precision, train.compile"),
        ({"features": {"encoding": "target"}}, "features.encoding is target with problem.task=clustering"),
        ({"train": {"label_smoothing": 0.1}}, "label_smoothing is 0.1 with problem.task=clustering"),
    ],
)
def test_what_cannot_be_had_is_refused_by_the_plan(sections: dict[str, Any], words: str) -> None:
    assert any(words in line for line in refusals(config_of("clustering", **sections)))


def test_texts_are_refused_once_the_plan_is_known(tmp_path: Path) -> None:
    table = rows(300, 1).append_column("note", pa.array([f"a note of row {i}" for i in range(300)]))
    made = write_snapshot(tmp_path / "texts", {"train": table, "valid": table})
    with pytest.raises(ConfigError, match=r"model\.kind is kmeans, and the features hold a text"):
        job_alone(config_of("clustering", features={"text": ["note"], "text_encoding": "ngrams"}), made.path)


# ---------------------------------------------------------------- studies


def test_a_study_of_clusters_goes_by_silhouette_since_the_loss_only_falls() -> None:
    config, notes = resolved(config_of("clustering"))
    assert config.tune.objectives == ("silhouette",)
    assert list(config.tune.space) == ["model.clusters"]
    assert "falls with every further cluster" in notes[0]
    check(config)
    asked, _ = resolved(config_of("clustering", tune={"objectives": ["davies_bouldin"]}))
    assert asked.tune.objectives == ("davies_bouldin",)
    with pytest.raises(ConfigError, match=r"tune\.objectives has 'auc'"):
        check(resolved(config_of("clustering", tune={"objectives": ["auc"]}))[0])


def test_families_without_a_target_and_with_one_stay_apart() -> None:
    chosen, notes = resolved(config_of("anomaly", tune={"auto": True, "num_samples": 2}))
    assert chosen.tune.space["model.kind"].values == ("isolation_forest",)  # type: ignore[union-attr]
    assert chosen.tune.objectives == ("shuffled_auc",)
    assert notes == ()
    assert {"kmeans", "isolation_forest", "mlp"} <= set(kinds())


@pytest.mark.ray
def test_a_study_finds_the_planted_number_of_clusters(ray_runtime: Any, snapshot: Snapshot, tmp_path: Path) -> None:
    from raymlp.train.shelf import shelf
    from raymlp.train.trial import fit_held
    from raymlp.tune.search import search

    space = {"model.clusters": {"kind": "choice", "values": [2, 3, 6]}}
    config, _ = resolved(config_of("clustering", tune={"space": space, "searcher": {"kind": "grid"}, "max_concurrent": 1}))
    with shelf(snapshot.path, config.problem, config.features) as held:

        def objective(trial: Config, report: Any, resume: Path | None) -> Any:
            return fit_held(trial, snapshot, held, report, resume)

        found = search(config, objective, root=tmp_path, snapshot=snapshot.digest)
    best = max(found.trials, key=lambda trial: trial.values["silhouette"])
    assert [trial.state for trial in found.trials] == ["finished"] * 3
    assert best.draw == {"model.clusters": 3}
    assert best.interval is not None
    assert best.interval.low < best.values["silhouette"] < best.interval.high
