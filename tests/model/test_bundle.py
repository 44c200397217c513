from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raymlp.config.features import Features
from raymlp.config.model import Mlp
from raymlp.config.problem import Problem
from raymlp.core.errors import BundleError, RequestError
from raymlp.core.metrics import calibration_error, log_loss
from raymlp.core.records import Task
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.bundle import Bundle, load_bundle, save_bundle, verify
from raymlp.model.calibration import Calibration
from raymlp.model.nets import NetShape, build_net
from raymlp.model.predictor import Predictor
from raymlp.model.scorer import NetScorer

ROWS = 300
rng = np.random.default_rng(0)
TABLE = pa.table(
    {
        "x": pa.array(rng.normal(size=ROWS), mask=rng.random(ROWS) < 0.2),
        "k": rng.choice(["a", "b"], ROWS),
        "t": pa.array([datetime(2013, 1, 1 + i % 28, i % 24, tzinfo=UTC) for i in range(ROWS)], pa.timestamp("us", tz="UTC")),
        "binary": rng.choice(["no", "yes"], ROWS),
        "multiclass": rng.choice(["u", "v", "w"], ROWS),
        "regression": rng.normal(100, 20, ROWS),
    }
)


def make_bundle(folder: Path, task: Task = "binary") -> Path:
    profile = Profile().update(TABLE.select(["x", "k", "t", task]))
    plan = FeaturePlan.fit(Features(), Problem(name="p", task=task, target=task), profile)
    torch.manual_seed(0)
    shape = NetShape.of(Mlp(hidden=(8,)), plan)
    bundle = Bundle(
        name="p",
        run_id="r1",
        scorer=NetScorer(shape, build_net(shape).state_dict()),
        plan=plan,
        contract=Contract.infer(profile).only(plan.inputs),
        calibration=Calibration(task=task, slope=1.3, offset=0.2),
        profile=profile,
        predictions=Profile().update(pa.table({"prediction": [0.1, 0.9]})),
        metrics={"auc": 0.5},
        config_yaml="problem: {}\n",
        snapshot="0" * 64,
    )
    return save_bundle(bundle, folder)


def requests() -> list[dict[str, object]]:
    rows = TABLE.select(["x", "k", "t"]).to_pylist()
    return [{**row, "t": row["t"].isoformat()} for row in rows]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_table_rows_and_single_row_give_the_same_answers(tmp_path: Path, task: Task) -> None:
    predictor = Predictor.load(make_bundle(tmp_path / "b", task))
    whole = predictor.predict(TABLE)
    listed = predictor.predict(requests())
    assert whole.scores == pytest.approx(listed.scores, abs=1e-12)
    single = np.concatenate([predictor.predict_typed(predictor.check(row, "row")).scores for row in requests()[:40]])
    assert single == pytest.approx(whole.scores[:40], abs=1e-6, rel=1e-6)
    answer = whole.rows()[0]
    expected = {"binary": {"probability", "label"}, "multiclass": {"probabilities", "label"}, "regression": {"value"}}[task]
    assert set(answer) == expected
    if task == "multiclass":
        assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_no_rows_give_no_answers(tmp_path: Path) -> None:
    predictor = Predictor.load(make_bundle(tmp_path / "b"))
    assert len(predictor.predict(TABLE.slice(0, 0))) == 0
    assert predictor.predict([]).rows() == []


def test_a_bad_row_is_refused_by_its_place(tmp_path: Path) -> None:
    predictor = Predictor.load(make_bundle(tmp_path / "b"))
    with pytest.raises(RequestError, match=r"instances\[1\]\.k is 3 \(int\); expected text"):
        predictor.predict([requests()[0], {**requests()[1], "k": 3}])


def test_a_bundle_comes_back_as_it_was(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    bundle = load_bundle(path)
    assert (bundle.name, bundle.run_id, bundle.snapshot, bundle.metrics) == ("p", "r1", "0" * 64, {"auc": 0.5})
    assert bundle.profile.columns["k"].counts() == Profile().update(TABLE).columns["k"].counts()
    assert not any(file.suffix in (".pkl", ".pt", ".bin", ".joblib") for file in path.iterdir())
    assert "Predicts `binary`" in (path / "card.md").read_text()


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "plan.json", "contract.yaml", "calibration.json", "net.json", "profile.json", "config.yaml"]
)
def test_a_changed_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = make_bundle(tmp_path / "b")
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name} was changed"):
        load_bundle(path)


def test_a_missing_an_added_and_a_forged_file_are_refused(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    (path / "extra.pkl").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra.pkl is not listed"):
        verify(path)
    (path / "extra.pkl").unlink()
    (path / "plan.json").unlink()
    with pytest.raises(BundleError, match=r"plan.json is missing"):
        verify(path)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["plan.json"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="digest does not fit"):
        verify(path)


def test_another_format_and_no_bundle_are_refused(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(BundleError, match="format 99; expected 2"):
        verify(path)
    with pytest.raises(BundleError, match="is no bundle"):
        verify(tmp_path)
    with pytest.raises(BundleError, match="exists"):
        make_bundle(tmp_path / "b")


def test_calibration_brings_the_mean_to_the_base_rate() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=20_000)
    y = (rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * logits - 1)))).astype(float)
    fitted = Calibration.fit("binary", logits, y)
    assert (fitted.slope, fitted.offset) == (pytest.approx(0.5, abs=0.05), pytest.approx(-1, abs=0.05))
    assert calibration_error(y, fitted.apply(logits)) < 0.015
    plain = Calibration(task="binary").apply(logits)
    assert log_loss(y, fitted.apply(logits)) < log_loss(y, plain)
    assert Calibration.fit("binary", logits, np.zeros(20_000)) == Calibration(task="binary")


def test_temperature_scaling_softens_overconfident_classes() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(size=(20_000, 3))
    y = np.array([rng.choice(3, p=p) for p in np.exp(truth) / np.exp(truth).sum(axis=1, keepdims=True)], dtype=float)
    fitted = Calibration.fit("multiclass", 4 * truth, y)
    assert fitted.slope == pytest.approx(0.25, abs=0.02)


def test_mlflow_loads_a_bundle_through_the_loader_module(tmp_path: Path) -> None:
    from raymlp.model.pyfunc import _load_pyfunc

    model = _load_pyfunc(str(make_bundle(tmp_path / "b")))
    frame = TABLE.select(["x", "k", "t"]).to_pandas()
    assert [row["probability"] for row in model.predict(frame)] == pytest.approx(Predictor.load(tmp_path / "b").predict(TABLE).scores)
