"""Boosted trees: trained in this process, compared with their libraries, kept and read back, and by two workers."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost

from raymlp.config.features import Features
from raymlp.config.loader import with_overrides
from raymlp.config.model import Linear
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.config.trees import LightGBM, XGBoost
from raymlp.core.errors import BundleError, ConfigError
from raymlp.core.files import digest_of, sha256_file
from raymlp.core.records import Snapshot
from raymlp.data.snapshot import load_profile, read_split
from raymlp.model.bundle import save_bundle
from raymlp.model.predictor import Predictor
from raymlp.model.trees import FILES, TreeScorer, matrix
from raymlp.preflight import _training
from raymlp.runtime.progress import epoch_row
from raymlp.train import trainer
from raymlp.train.job import Job, Outcome
from raymlp.train.rounds import loss_of
from raymlp.train.support import refusals
from raymlp.train.trainer import bundle_of
from raymlp.train.trial import fit_held
from raymlp.train.worker import fit_alone, job_alone, outcome_alone
from raymlp.tune.checks import check
from tests.train.planted import config_of
from tests.train.test_trainer import workers

Snapshots = Callable[[str], Snapshot]
KINDS = {"xgboost": XGBoost(rounds_per_epoch=8, learning_rate=0.3), "lightgbm": LightGBM(rounds_per_epoch=8, learning_rate=0.3)}
TASKS = ["binary", "multiclass", "regression"]


def config_for(
    kind: str, task: str, *, features: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **train: Any
) -> Config:
    chosen = KINDS[kind].model_copy(update=model or {})
    config = config_of(task, **train)
    return config.model_copy(update={"model": chosen, "features": Features(**features or {})})


def fitted(snapshot: Snapshot, config: Config) -> tuple[Job, Outcome, list[dict[str, float]]]:
    epochs: list[dict[str, float]] = []
    job, outcome = outcome_alone(config, snapshot.path, epochs.append)
    return job, outcome, epochs


def bundled(snapshot: Snapshot, job: Job, outcome: Outcome, folder: Path) -> Path:
    return save_bundle(bundle_of(job, outcome, snapshot, load_profile(snapshot.path), "run")[0], folder)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_trees_learn_and_their_bundle_answers_alike_in_batch_and_row(kind: str, task: str, snapshots: Snapshots, tmp_path: Path) -> None:
    snapshot = snapshots(task)
    job, outcome, epochs = fitted(snapshot, config_for(kind, task, epochs=2))
    floor = fitted(snapshot, config_of(task, epochs=2).model_copy(update={"model": Linear()}))[1].scored(task)[2]
    metrics = outcome.scored(task)[2]
    main = {"binary": "auc", "multiclass": "accuracy", "regression": "r2"}[task]
    assert metrics[main] > floor[main] - 0.03  # the logit is linear
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"]
    row = epoch_row(epochs[0], f"valid_{job.config.problem.main_metric}")
    assert {"epoch", "rows/s", "waits", "step p50", "memory"} <= row.keys(), "the live table takes trees as it takes nets"

    predictor = Predictor.load(bundled(snapshot, job, outcome, tmp_path / "bundle"))
    table = read_split(snapshot.path, "valid").select(predictor.bundle.plan.inputs)
    batch = predictor.predict(table).scores
    few = table.slice(0, 40)
    rows = few.to_pylist()
    assert any(row["b"] is None for row in rows)
    single = np.array([predictor.predict_typed(predictor.check(row, "row")).scores[0] for row in rows])
    np.testing.assert_allclose(single, batch[:40], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(predictor.predict(few).scores, batch[:40], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_flat_arrays_give_what_the_library_gives(kind: str, task: str, snapshots: Snapshots) -> None:
    job, splits = job_alone(config_for(kind, task, epochs=2, class_weights="none"), snapshots(task).path)
    outcome = fit_alone(job, splits, lambda *_: None)
    assert isinstance(outcome.scorer, TreeScorer)
    x = np.concatenate([matrix(block.tensors) for block in splits["valid"]])
    assert np.isnan(x).any()  # missing numbers are kept
    x = np.concatenate([x, np.full((1, x.shape[1]), np.nan, np.float32), np.full((1, x.shape[1]), 999, np.float32)])
    if kind == "xgboost":
        booster = xgboost.Booster(model_file=bytearray(outcome.scorer.text.encode()))
        types = booster.feature_types
        expected = booster.predict(xgboost.DMatrix(x[:-1], feature_types=types, enable_categorical=True), output_margin=True)
        x = x[:-1]  # XGBoost refuses a category that is out of range
    else:
        expected = lightgbm.Booster(model_str=outcome.scorer.text).predict(x, raw_score=True)
    np.testing.assert_allclose(outcome.scorer.forest(x), np.asarray(expected).reshape(len(x), -1), rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(outcome.scorer.forest(x[:5]), outcome.scorer.forest(x)[:5], rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_trees_are_those_of_the_library_on_the_same_tensors(kind: str, snapshots: Snapshots) -> None:
    whole = {"subsample": 1.0, "feature_share": 1.0}
    job, splits = job_alone(config_for(kind, "regression", model=whole, epochs=2, stopping={"patience": 9}), snapshots("regression").path)
    outcome = fit_alone(job, splits, lambda *_: None)
    x, v = (np.concatenate([matrix(block.tensors) for block in splits[split]]) for split in ("train", "valid"))
    y, truth = (np.concatenate([block.target for block in splits[split]]) for split in ("train", "valid"))
    types = ["q"] * job.plan.num_numeric + ["c"] * len(job.plan.categories)
    if kind == "xgboost":
        data = xgboost.DMatrix(x, y, feature_types=types, enable_categorical=True)
        held = xgboost.DMatrix(v, feature_types=types, enable_categorical=True)
        settings = {"learning_rate": 0.3, "max_depth": 6, "tree_method": "hist", "nthread": 1}
        model: Any = xgboost.train(settings, data, 16)
        curve = [model.predict(held, iteration_range=(0, n)) for n in range(1, 17)]
    else:
        columns = [place for place, name in enumerate(types) if name == "c"]
        settings = {"learning_rate": 0.3, "num_leaves": 31, "verbosity": -1, "num_threads": 1, "objective": "regression"}
        model = lightgbm.train(settings, lightgbm.Dataset(x, y, categorical_feature=columns), 16)
        curve = [model.predict(v, num_iteration=n) for n in range(1, 17)]
    losses = [float(np.mean((values - truth) ** 2)) for values in curve]
    best = min(outcome.progress.history, key=lambda epoch: epoch["valid_loss"])
    assert best["valid_loss"] == pytest.approx(min(losses), rel=1e-4)
    target = job.plan.target
    np.testing.assert_allclose(outcome.outputs, curve[int(np.argmin(losses))] * target.scale + target.mean, rtol=1e-4, atol=1e-4)


def test_the_loss_of_a_row_by_hand() -> None:
    assert loss_of("regression", np.array([[3.0]]), np.array([1.0])) == pytest.approx([4.0])
    assert loss_of("binary", np.array([[0.0], [800.0]]), np.array([1.0, 0.0])) == pytest.approx([np.log(2), 800.0])
    assert loss_of("multiclass", np.array([[0.0, 0.0, np.log(2.0)]]), np.array([2.0])) == pytest.approx([np.log(2)])


@pytest.mark.parametrize("kind", KINDS)
def test_training_stops_after_patience_and_keeps_the_best_round(kind: str, snapshots: Snapshots) -> None:
    greedy = {"rounds_per_epoch": 5, "learning_rate": 1.0}
    _, outcome, epochs = fitted(snapshots("binary"), config_for(kind, "binary", model=greedy, epochs=40, stopping={"patience": 2}))
    assert len(epochs) == outcome.progress.best_epoch + 2 < 40
    best = min(epoch["valid_loss"] for epoch in epochs)
    known = np.mean(loss_of("binary", outcome.outputs[:, None], outcome.answers))
    assert known == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_its_checkpoint(kind: str, snapshots: Snapshots, tmp_path: Path) -> None:
    """Without drawing, the trees are those of a run that was not cut off."""
    whole = {"subsample": 1.0, "feature_share": 1.0, "learning_rate": 0.1}
    job, splits = job_alone(config_for(kind, "binary", model=whole, epochs=3), snapshots("binary").path)
    through = fit_alone(job, splits, lambda *_: None)

    def cut(_: Any, save: Any) -> bool:
        save(tmp_path)
        return True

    fit_alone(job, splits, cut)
    resumed = fit_alone(job, splits, lambda *_: None, resume=tmp_path)
    assert resumed.progress.epochs == 3
    np.testing.assert_allclose(resumed.outputs, through.outputs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_class_weights_are_taken_back_by_the_calibration(kind: str, snapshots: Snapshots) -> None:
    job, outcome, epochs = fitted(snapshots("binary"), config_for(kind, "binary", class_weights="balanced"))
    counts = job.class_counts
    assert job.class_weights == pytest.approx([sum(counts) / 2 / count for count in counts])
    weights = np.array(job.class_weights)[outcome.answers.astype(int)]
    known = float(np.mean(weights * loss_of("binary", outcome.outputs[:, None], outcome.answers)))
    assert known == pytest.approx(min(epoch["valid_loss"] for epoch in epochs), rel=1e-4)
    _, scores, metrics = outcome.scored("binary", job.class_weights)
    share = float(outcome.answers.mean())
    assert share > 0.55  # so that weights move the raw outputs towards the rarer class
    assert np.mean(1 / (1 + np.exp(-outcome.outputs))) < share - 0.01
    assert scores.mean() == pytest.approx(share, abs=0.01)
    assert metrics["auc"] > 0.8


@pytest.mark.parametrize(("kind", "resample"), [("xgboost", "oversample"), ("lightgbm", "undersample")])
def test_resampled_rows_are_taken_back_by_the_calibration(kind: str, resample: str, snapshots: Snapshots) -> None:
    job, outcome, epochs = fitted(snapshots("binary"), config_for(kind, "binary", resample=resample))
    rows = 2 * (max if resample == "oversample" else min)(job.class_counts)
    assert job.resampler(1).rows == pytest.approx(rows)  # type: ignore[union-attr]
    share = float(outcome.answers.mean())
    assert np.mean(1 / (1 + np.exp(-outcome.outputs))) < share - 0.01
    assert outcome.scored("binary", job.class_weights)[1].mean() == pytest.approx(share, abs=0.01)
    assert epochs[-1]["train_loss"] != fitted(snapshots("binary"), config_for(kind, "binary"))[2][-1]["train_loss"]
    again = fitted(snapshots("binary"), config_for(kind, "binary", resample=resample))[1]
    np.testing.assert_array_equal(again.outputs, outcome.outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_of_rounds_holds_within_an_epoch(kind: str, snapshots: Snapshots, tmp_path: Path) -> None:
    job, splits = job_alone(config_for(kind, "binary", budget={"steps": 11}), snapshots("binary").path)
    outcome = fit_alone(job, splits, lambda _, save: save(tmp_path))
    assert outcome.progress.epochs == 2
    text = (tmp_path / FILES[kind]).read_text()  # type: ignore[index]
    assert (text.count('"tree_param"') if kind == "xgboost" else text.count("Tree=")) == 11


def _resealed(bundle: Path, name: str, text: str) -> None:
    """Change a file and the manifest with it, as one who means harm would."""
    (bundle / name).write_text(text)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": sha256_file(bundle / name), "bytes": len(text)}
    manifest["digest"] = digest_of(manifest["files"])
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("kind", KINDS)
def test_a_booster_file_that_is_none_is_refused_by_name(kind: str, snapshots: Snapshots, tmp_path: Path) -> None:
    snapshot = snapshots("binary")
    job, outcome, _ = fitted(snapshot, config_for(kind, "binary", epochs=1))
    bundle = bundled(snapshot, job, outcome, tmp_path / "bundle")
    file = FILES[kind]  # type: ignore[index]
    text = (bundle / file).read_text()
    (bundle / file).write_text(text + " ")
    with pytest.raises(BundleError, match=f"{file} was changed after it was written"):
        Predictor.load(bundle)
    foreign = fitted(snapshots("regression"), config_for(kind, "regression", epochs=1))[1].scorer
    other = fitted(snapshot, config_for("lightgbm" if kind == "xgboost" else "xgboost", "binary", epochs=1))[1].scorer
    assert isinstance(foreign, TreeScorer)
    assert isinstance(other, TreeScorer)
    loop = (
        re.sub(r'"left_children":\[1,', '"left_children":[0,', text, count=1)
        if kind == "xgboost"
        else text.replace("left_child=1", "left_child=0", 1)
    )
    assert loop != text
    for broken in (text[: len(text) // 2], "", "{}", foreign.text, other.text, loop):
        _resealed(bundle, file, broken)
        with pytest.raises(BundleError, match=f"{file} cannot be read as trees of {kind}"):
            Predictor.load(bundle)
    _resealed(bundle, file, text)
    Predictor.load(bundle)


def test_what_trees_do_not_support_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusals(config_for("xgboost", "binary")) == []
    found = refusals(config_for("lightgbm", "binary", compile=True, label_smoothing=0.1, features={"image": "shot"}))
    assert any("do not go with features.image, train.compile, train.label_smoothing" in line for line in found)
    assert refusals(config_for("xgboost", "binary", features={"text": ["words"]})) == []
    assert any("do not go with train.resample=smote" in line for line in refusals(config_for("lightgbm", "binary", resample="smote")))
    with pytest.raises(ConfigError, match=r"model\.kind is xgboost, whose step size"):
        trainer.find(config_for("xgboost", "binary"), Snapshot(Path(), "", {}), "learning-rate", folder=Path())
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'raymlp\[gbdt\]'"):
        trainer.check(config_for("lightgbm", "binary"))


class InMemory:
    """A shelf without Ray."""

    def __init__(self, snapshot: Snapshot, config: Config) -> None:
        self._snapshot, self._config = snapshot, config

    def get(self, features: Features, *, keeps_missing: bool) -> tuple[Any, Any]:
        assert keeps_missing
        job, splits = job_alone(self._config, self._snapshot.path)
        return job.plan, splits


def test_a_trial_of_a_study_trains_trees_and_measures_them(snapshots: Snapshots) -> None:
    config, heard = config_for("lightgbm", "binary", epochs=2), []

    def report(metrics: dict[str, float], _: Any) -> bool:
        heard.append(metrics["valid_loss"])
        return False

    metrics = fit_held(config, snapshots("binary"), InMemory(snapshots("binary"), config), report, latency=True)  # type: ignore[arg-type]
    assert metrics["valid_loss"] == pytest.approx(min(heard))
    assert len(heard) == 2
    assert metrics["interval_low"] < metrics["auc"] < metrics["interval_high"]
    assert 0 < metrics["latency_ms"] < 100


def test_what_plan_and_tuning_say_of_trees() -> None:
    config = config_for("xgboost", "binary")
    problems: list[str] = []
    said = _training(config, problems.append)
    assert said["training"] == "xgboost, 1 worker, 8 rounds an epoch, at most 5 epochs"
    assert said["not used"].startswith("train.batch_size, train.shuffle_rows, train.learning_rate: of use to nets alone")
    assert "not used" not in _training(config_of(), problems.append)
    assert problems == []
    with pytest.raises(ConfigError, match=r"tune\.searcher\.kind is pbt with model\.kind=xgboost"):
        check(
            with_overrides(
                config, {"tune.searcher.kind": "pbt", "tune.space": {"train.learning_rate": {"kind": "choice", "values": [0.1, 0.2]}}}
            )
        )


@pytest.mark.ray
@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_make_the_trees_of_one_also_when_one_is_killed(
    kind: str, snapshots: Snapshots, ray_runtime: Runtime, tmp_path: Path
) -> None:
    snapshot = snapshots("binary")
    whole = {"subsample": 1.0, "feature_share": 1.0, "learning_rate": 0.01, "rounds_per_epoch": 100}
    config = config_for(kind, "binary", model=whole, epochs=3, num_workers=2, max_failures=1)
    heard: list[float] = []

    def hear(metrics: dict[str, float]) -> None:
        heard.append(metrics["epoch"])
        if kind == "xgboost" and heard == [0.0]:
            os.kill(max(workers()), signal.SIGKILL)

    model = trainer.train(config, snapshot, run_dir=tmp_path / "run", run_id="run", on_epoch=hear)
    assert sorted(set(heard)) == [0, 1, 2]
    alone = fitted(snapshot, config_for(kind, "binary", model=whole, epochs=3))[1].scored("binary")[2]
    assert model.metrics["auc"] == pytest.approx(alone["auc"], abs=0.01)
    assert model.metrics["log_loss"] == pytest.approx(alone["log_loss"], abs=0.02)
    table = read_split(snapshot.path, "valid").select(["a", "b", "kind", "noise"])
    assert len(Predictor.load(model.bundle).predict(table)) == 1_000
