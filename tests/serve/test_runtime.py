"""Nets in ONNX Runtime answer as they do in torch, or are refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from raymlp.config.model import FtTransformer, Linear, LinearNumbers, Mlp, Model, Own, Periodic, PiecewiseLinear, Resnet, Tabm
from raymlp.core import trust
from raymlp.core.errors import ConfigError, ServingError
from raymlp.model import onnx_net
from raymlp.model.predictor import Predictor
from raymlp.serve.runtime import FACTS, GRAPH, graph_place, prepare, trial_rows, with_runtime
from tests.serve.bundles import json_rows, make_bundle, source_table

pytest.importorskip("onnxruntime")


def made(folder: Path, model: Model | None = None) -> Predictor:
    return Predictor.load(make_bundle(folder / "bundle", seed=1, model=model or Mlp(hidden=(8,))))


def in_onnx(predictor: Predictor, folder: Path) -> Predictor:
    prepare(predictor, "onnx", folder / "graphs")
    found, runtime = with_runtime(predictor, "onnx", folder / "graphs")
    assert runtime == "onnx"
    return found


def odd_rows() -> list[dict[str, Any]]:
    """Rows with nulls, unseen categories and far values among plain ones."""
    rows = json_rows(33)
    rows[0] |= {"hours": None, "note": None, "shot": None}
    rows[1] |= {"carrier": "never seen", "note": "words that no row had", "delay": 10.0}
    rows[2] |= {"delay": -10.0, "at": "9999-12-31T23:59:59Z", "carrier": ""}
    return rows


@pytest.mark.parametrize(
    "model",
    [
        Linear(),
        Mlp(hidden=(16, 16)),
        Mlp(hidden=(8,), numbers=PiecewiseLinear(bins=8)),
        Resnet(width=8, numbers=Periodic()),
        FtTransformer(width=16, heads=2, blocks=2),
        FtTransformer(width=16, heads=2, blocks=1, numbers=PiecewiseLinear(bins=8)),
        Tabm(width=8, members=3),
        Tabm(width=8, members=3, numbers=LinearNumbers()),
    ],
    ids=lambda model: f"{model.kind}-{getattr(getattr(model, 'numbers', None), 'kind', 'none')}",
)
def test_every_table_net_answers_as_in_torch(model: Model, tmp_path: Path) -> None:
    torch, rows = made(tmp_path, model), odd_rows()
    onnx = in_onnx(torch, tmp_path)
    for size in (1, 2, 33):
        expected = torch.predict(rows[:size]).scores
        assert onnx.predict(rows[:size]).scores == pytest.approx(expected, rel=1e-5, abs=1e-5)
    alone = [onnx.predict_typed(onnx.check(row, "row")).scores[0] for row in rows[:4]]
    assert alone == pytest.approx(torch.predict(rows[:4]).scores, rel=1e-5, abs=1e-5)
    many = source_table().take([i % 500 for i in range(1_500)])
    assert onnx.predict(many.drop(["late"])).scores == pytest.approx(torch.predict(many.drop(["late"])).scores, rel=1e-5, abs=1e-5)


def test_a_graph_is_made_once_and_apart_from_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = made(tmp_path)
    in_onnx(predictor, tmp_path)
    (place,) = (tmp_path / "graphs").iterdir()
    assert sorted(path.name for path in place.iterdir()) == [FACTS, GRAPH]
    facts = json.loads((place / FACTS).read_text())
    assert facts["bundle"] == predictor.bundle.digest
    assert facts["difference"] <= onnx_net.TOLERANCE
    monkeypatch.setattr(onnx_net, "export", None)  # would fail if it were called
    in_onnx(Predictor.load(tmp_path / "bundle"), tmp_path)


def test_trial_rows_hold_nulls_ends_and_what_was_never_seen(tmp_path: Path) -> None:
    predictor = made(tmp_path)
    rows, delay = trial_rows(predictor), predictor.bundle.contract.columns["delay"]
    assert {row["hours"] for row in rows} >= {None}
    assert {row["carrier"] for row in rows} >= {"never seen", ""}
    assert {row["delay"] for row in rows} >= {delay.minimum, delay.maximum, 0.0}
    assert 1e6 not in {row["delay"] for row in rows}, "the contract does not allow it"
    assert {row["held"] for row in rows} == {True, False}


class Doubling(nn.Module):
    """Decides by a value of a row, which no graph can: torch refuses to trace it."""

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.head = nn.Linear(shape.num_numeric, shape.outputs)

    def forward(self, tensors: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.head(tensors["numeric"])
        return out * 2 if float(out.detach().sum()) > 0 else out


def test_a_net_that_cannot_be_traced_is_refused_and_auto_takes_torch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trust.name(f"{__name__}.Doubling")
    predictor = made(tmp_path, Own(_target_=f"{__name__}.Doubling"))
    with pytest.raises(ServingError, match=r"cannot run in ONNX Runtime: torch cannot trace the net.*Set serve\.runtime=auto"):
        prepare(predictor, "onnx", tmp_path / "graphs")
    prepare(predictor, "auto", tmp_path / "graphs")
    with caplog.at_level("WARNING", logger="ray.serve"):
        found, runtime = with_runtime(predictor, "auto", tmp_path / "graphs")
    assert (found, runtime) == (predictor, "torch")
    assert "torch cannot trace the net" in caplog.text


def test_a_graph_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, other = made(tmp_path), Predictor.load(make_bundle(tmp_path / "other", seed=2, model=Mlp(hidden=(8,))))
    export = onnx_net.export
    monkeypatch.setattr(onnx_net, "export", lambda _, tensors, file: export(other.bundle.scorer, tensors, file))  # type: ignore[arg-type]
    with pytest.raises(ServingError, match=r"off by up to .* from torch's; expected at most 1e-05"):
        prepare(predictor, "onnx", tmp_path / "graphs")


def test_a_changed_graph_is_not_served(tmp_path: Path) -> None:
    predictor = made(tmp_path)
    in_onnx(predictor, tmp_path)
    place = graph_place(tmp_path / "graphs", predictor.bundle.digest)
    (place / GRAPH).write_bytes((place / GRAPH).read_bytes()[:-1] + b"\0")
    with pytest.raises(ServingError, match=r"net\.onnx was changed"):
        with_runtime(predictor, "onnx", tmp_path / "graphs")


def test_a_graph_that_was_not_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"expected the graph that the probe made"):
        with_runtime(made(tmp_path), "onnx", tmp_path / "graphs")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = made(tmp_path)
    monkeypatch.setattr(onnx_net, "missing_package", lambda: "onnxscript")
    with pytest.raises(ConfigError, match=r"serve\.runtime=onnx needs the package onnxscript.*pip install 'raymlp\[onnx\]'"):
        prepare(predictor, "onnx", tmp_path / "graphs")
    prepare(predictor, "auto", tmp_path / "graphs")
    assert with_runtime(predictor, "auto", tmp_path / "graphs")[1] == "torch"


def test_torch_makes_no_graph(tmp_path: Path) -> None:
    predictor = made(tmp_path)
    prepare(predictor, "torch", tmp_path / "graphs")
    assert with_runtime(predictor, "torch", tmp_path / "graphs") == (predictor, "torch")
    assert not (tmp_path / "graphs").exists()


def test_scores_of_an_onnx_predictor_are_floats_of_the_same_shape(tmp_path: Path) -> None:
    torch = made(tmp_path)
    onnx = in_onnx(torch, tmp_path)
    assert onnx.predict([]).scores.shape == torch.predict([]).scores.shape
    assert onnx.predict(json_rows(1)).scores.dtype == np.float64
