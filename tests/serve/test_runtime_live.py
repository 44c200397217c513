"""An endpoint whose nets run in ONNX Runtime, and whose costly version is batched: one Ray session, HTTP over loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymlp.config.model import FtTransformer, Mlp
from raymlp.config.runtime import Runtime
from raymlp.core.records import Version
from raymlp.model.predictor import Predictor
from raymlp.runtime.ports import free_port
from raymlp.serve.client import replay
from raymlp.serve.deploy import deploy, set_versions, status, undeploy
from raymlp.serve.shadowing import set_shadow, shadow_of
from tests.serve.bundles import json_rows, make_bundle, make_config
from tests.serve.test_endpoint import KEY

pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_both_versions_run_in_onnx_and_answer_as_in_torch(ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_API_KEYS", KEY)
    bundles = {
        "1": make_bundle(tmp_path / "old", seed=1, model=Mlp(hidden=(8,))),
        "2": make_bundle(tmp_path / "new", seed=2, model=FtTransformer(width=16, heads=2, blocks=1)),
    }
    config = make_config(ray_runtime, port=free_port(), min_replicas=1, max_replicas=1, cpus_per_replica=0.1, runtime="onnx")
    endpoint = deploy(config, Version("1", str(bundles["1"])))
    try:
        set_versions(config, endpoint, {label: str(path) for label, path in bundles.items()}, {"1": 0.5, "2": 0.5})
        (report,) = status("flights")["replicas"]
        assert [facts["runtime"] for facts in report["versions"].values()] == ["onnx", "onnx"]
        answers = replay(endpoint.url, "flights", json_rows(60), key=KEY, connections=16)
        models = {label: Predictor.load(path) for label, path in bundles.items()}
        assert {answer.version for answer in answers} == {"1", "2"}
        for row, answer in zip(json_rows(60), answers, strict=True):
            assert answer.prediction is not None
            expected = models[str(answer.version)].predict([row]).scores[0]
            assert answer.prediction["probability"] == pytest.approx(expected, abs=1e-5)
        third = make_bundle(tmp_path / "third", seed=3, model=Mlp(hidden=(8,)))
        set_shadow("flights", shadow_of(Version("3", str(third)), 1.0, max_waiting=10))
        (report,) = status("flights")["replicas"]
        assert (report["versions"]["3"]["runtime"], report["problems"]) == ("onnx", {}), "its graph was made by the probe"
    finally:
        undeploy("flights")
