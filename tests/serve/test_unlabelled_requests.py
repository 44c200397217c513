"""A replica that serves clusters or anomaly scores: its answers, its page and its log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from raymlp.model.bundle import save_bundle
from raymlp.model.predictor import Predictor
from raymlp.serve.app import ModelServer
from raymlp.serve.log import read_log
from raymlp.serve.openapi import openapi
from tests.monitor.unlabelled import bundle_of, rows
from tests.serve.bundles import replica_settings


@pytest.mark.parametrize("task", ["clustering", "anomaly"])
def test_answers_are_the_predictors_and_the_log_keeps_one_number_each(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(replica_id=SimpleNamespace(unique_id="r")))
    bundle = bundle_of(task)
    place = save_bundle(bundle, tmp_path / "bundle")
    instances = rows(5, 9).select(list(bundle.plan.inputs)).to_pylist()

    async def receive() -> dict[str, Any]:
        return {"body": orjson.dumps({"instances": instances})}

    async def ask() -> tuple[int, bytes]:
        server = ModelServer(replica_settings(tmp_path, name="p"))
        await server.reconfigure({"versions": {"v1": str(place)}, "weights": {"v1": 1.0}, "champion": "v1", "salt": "", "revision": "a"})
        answer = await server.answering.answer(server.state, [], receive)
        server.log.flush()
        assert server._background is not None
        server._background.cancel()
        return answer

    status, body = asyncio.run(ask())
    expected = Predictor.load(place).predict(instances)
    answers = orjson.loads(body)["predictions"]
    assert status == 200
    assert answers == [pytest.approx(answer) for answer in expected.rows()]
    assert read_log(tmp_path / "log").column("prediction").to_pylist() == pytest.approx(expected.summary.tolist())
    page = openapi("p", bundle.contract, bundle.plan.target.task, max_rows=9, needs_key=False)
    described = page["components"]["schemas"]["Answer"]["properties"]["predictions"]["items"]["properties"]
    assert set(described) == set(answers[0])
