"""The time of a request, as log and metrics have it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raymlp.config.serve import Log
from raymlp.data.contract_row import Row
from raymlp.model.predictor import Prediction, Predictor
from raymlp.serve.admission import Admission
from raymlp.serve.answering import Answering
from raymlp.serve.batching import Batcher, Pace
from raymlp.serve.keys import KeyRing
from raymlp.serve.log import PredictionLog, read_log
from raymlp.serve.metrics import ReplicaMetrics
from raymlp.serve.routing import Routes
from raymlp.serve.versions import Loaded, State
from tests.serve.bundles import json_rows, make_bundle

PREDICTS_S = 0.01


class Timed(Predictor):
    """Takes the same time for one row and for several, by a clock of its own."""

    now = 0.0

    def predict_typed(self, row: Row) -> Prediction:
        self.now += PREDICTS_S
        return super().predict_typed(row)

    def predict_together(self, rows: Any) -> Prediction:
        self.now += PREDICTS_S
        return super().predict_together(rows)


@pytest.mark.parametrize(("batched", "took_ms"), [(False, [10, 30, 30, 30]), (True, [10, 10, 10, 10])])
def test_requests_that_come_together_wait_for_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batched: bool, took_ms: list[float]
) -> None:
    """Whether they are predicted one after the other or together; those of another turn do not count."""
    predictor = Timed.load(make_bundle(tmp_path / "bundle", seed=1))
    loaded = Loaded("1", "", predictor, batcher=Batcher(predictor, Pace(alone_s=1e-4, together_s=1e-5 if batched else 1e-4)))
    monkeypatch.setattr("raymlp.serve.answering.time", SimpleNamespace(perf_counter=lambda: predictor.now, time=time.time))
    log = PredictionLog(tmp_path / "log", Log())
    answering = Answering(Admission(KeyRing([], None), needs_key=False), log, ReplicaMetrics("m", "r"), max_rows=9)
    answering.know("1", predictor)
    state = State("1", {"1": loaded}, Routes.of("1", {"1": 1.0}), {"1": 1.0}, "r", {})

    async def receive() -> dict[str, Any]:
        return {"body": json.dumps({"instances": json_rows(1)}).encode()}

    async def ask() -> None:
        await asyncio.gather(*(answering.answer(state, [], receive) for _ in range(3)))
        await answering.answer(state, [], receive)

    asyncio.run(ask())
    log.flush()
    assert sorted(read_log(tmp_path / "log").column("latency_ms").to_pylist()) == pytest.approx(took_ms)
