"""What answers when no version can, and what is written down of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymlp.config.fallback import Constant, Rule
from raymlp.config.rollout import Rollout
from raymlp.config.serve import Serve
from raymlp.core.errors import ServingError
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.profile import Profile
from raymlp.data.target import Target
from raymlp.serve.evidence import Versions, gather
from raymlp.serve.fallback import Fallback, _rule
from raymlp.serve.log import read_log
from tests.serve.bundles import json_rows, make_bundle, source_table
from tests.serve.in_process import OPERATOR, Replica, replica

PREDICT, INFER = "/v1/models/flights:predict", "/v2/models/flights/infer"
HALF = Constant(kind="constant", value=0.25)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "one", seed=1)


def break_predictor(here: Replica, label: str) -> None:
    """The net of a version gives an error for every row, as one with a bug for some inputs would."""

    def fails(tensors: Any) -> Any:
        raise FloatingPointError("the net broke")

    assert here.server.state is not None
    bundle = here.server.state.loaded[label].predictor.bundle
    object.__setattr__(bundle, "scorer", fails)


def logged(here: Replica) -> list[dict[str, Any]]:
    here.server.log.flush()
    return list(read_log(here.server.log.folder).to_pylist())


def test_a_version_that_fails_is_answered_for_and_has_the_error(tmp_path: Path, bundle: Path) -> None:
    with replica(tmp_path, bundle, fallback=HALF) as here:
        here.reconfigure({"1": bundle})
        break_predictor(here, "1")
        for rows in (json_rows(1), json_rows(3)):
            reply = here.post(PREDICT, {"instances": rows, "routing_key": "mine"})
            assert (reply.status, reply.json["model_version"], reply.json["fallback"]) == (200, "fallback", True)
            assert reply.json["predictions"] == [{"probability": 0.25, "label": "no"}] * len(rows)
        infer = {"inputs": [{"name": "delay", "datatype": "FP64", "shape": [1], "data": [1.0]}]}
        assert here.post(INFER, infer).status == 422, "a bad request is the client's fault, and gets no fallback"
        metrics = here.call("GET", "/metrics").body.decode()
        found = logged(here)
    assert [(row["version"], row["status"], row["prediction"]) for row in found if row["routes"]] == [("1", 500, None)] * 4
    assert [(row["version"], row["status"], row["prediction"]) for row in found if not row["routes"]] == [("fallback", 200, 0.25)] * 4
    assert {row["prediction_id"] for row in found if row["version"] == "1"} == {row["prediction_id"] for row in found if not row["routes"]}
    assert 'replica="here",status="500",version="1"} 2.0' in metrics
    assert 'replica="here",status="200",version="fallback"} 2.0' in metrics


def test_without_a_fallback_a_failure_is_500(tmp_path: Path, bundle: Path) -> None:
    with replica(tmp_path, bundle) as here:
        here.reconfigure({"1": bundle})
        break_predictor(here, "1")
        assert here.post(PREDICT, {"instances": json_rows(1)}).status == 500
        assert [(row["version"], row["status"]) for row in logged(here)] == [("1", 500)]


def test_evidence_of_a_rollout_counts_the_failure_and_not_the_fallback(tmp_path: Path, bundle: Path) -> None:
    with replica(tmp_path, bundle, fallback=HALF) as here:
        here.reconfigure({"1": bundle, "2": bundle}, {"1": 0.5, "2": 0.5})
        break_predictor(here, "2")
        for place in range(40):
            assert here.post(PREDICT, {"instances": json_rows(1), "routing_key": f"key-{place}"}).status == 200
        here.server.log.flush()
        log, state = read_log(here.server.log.folder), here.server.state
        assert state is not None
        champion, challenger = (state.loaded[label].predictor for label in "12")
        (step,) = gather(log, None, Versions("1", "2", champion, challenger), "", Rollout()).steps
    theirs = sum(row["version"] == "2" for row in log.to_pylist())
    assert 10 < theirs < 30
    assert (step.requests.champion, step.requests.challenger) == (40 - theirs, theirs)
    assert (step.errors.champion, step.errors.challenger) == (0, theirs)


def test_a_replica_starts_with_the_fallback_alone_and_takes_a_version_that_comes(tmp_path: Path, bundle: Path) -> None:
    gone = shutil.copytree(bundle, tmp_path / "gone")
    with replica(tmp_path / "log", gone, fallback=HALF) as here:
        assert here.call("GET", "/readyz").status == 503
        shutil.rmtree(gone)
        here.reconfigure({"1": gone})
        assert here.call("GET", "/readyz").json == {"status": "fallback"}
        assert here.call("GET", "/v2/health/ready").status == 200
        reply = here.post(PREDICT, {"instances": json_rows(2)})
        assert (reply.status, reply.json["model_version"]) == (200, "fallback")
        assert here.post(PREDICT, {"instances": [{"delay": 1.0}]}).json["error"]["field"] == "instances[0].carrier"
        report = here.call("GET", "/v1/models/flights", key=OPERATOR).json
        assert (report["versions"], report["champion"], report["fallback"]) == ({}, "1", True)
        assert "cannot be loaded" in report["problems"]["1"]
        for path in ("/", "/openapi.json", "/metrics", "/v2/models/flights"):
            assert here.call("GET", path).status == 200
        shutil.copytree(bundle, gone)
        here.reconfigure({"1": gone})
        assert here.call("GET", "/readyz").json == {"status": "ready"}
        assert here.post(PREDICT, {"instances": json_rows(1)}).json["model_version"] == "1"


def test_without_a_fallback_a_replica_that_has_nothing_to_serve_does_not_start(tmp_path: Path, bundle: Path) -> None:
    with replica(tmp_path, bundle) as here, pytest.raises(ServingError, match="nothing to serve"):
        here.reconfigure({"1": tmp_path / "nothing"})


def test_the_rule_is_what_evaluation_calls_the_rule(bundle: Path) -> None:
    share = np.mean(np.array(source_table().column("late").to_pylist()) == "yes")
    assert Fallback.of(Rule(), str(bundle)).answer(2).scores == pytest.approx([share, share])
    column = pa.table({"y": pa.array(["a", "b", "b", "c"])})
    three = Target(column="y", task="multiclass", classes=("a", "b", "c"))
    assert _rule(three, Profile().update(column)) == (0.25, 0.5, 0.25)
    assert _rule(Target(column="y", task="regression", mean=7.5), Profile()) == (7.5,)
    contract = Contract(columns={"x": ColumnContract(type="float")})
    answer = Fallback("multiclass", three.classes, (0.25, 0.5, 0.25), contract).answer(2)
    assert (answer.labels, answer.scores.shape) == (["b", "b"], (2, 3))


def test_a_fallback_survives_its_way_to_the_replica(bundle: Path) -> None:
    made = Fallback.of(Rule(), str(bundle))
    again = Fallback.read(made.facts())
    assert (again.task, again.classes, again.scores, again.contract) == (made.task, made.classes, made.scores, made.contract)


@pytest.mark.parametrize(
    ("settings", "target", "words"),
    [
        (Rule(), Target(task="clustering"), "has no rule"),
        (Constant(kind="constant", value=1.5), Target(column="y", task="binary"), "from 0 to 1"),
        (HALF, Target(column="y", task="multiclass", classes=("a", "b")), "fallback.kind=rule"),
    ],
)
def test_a_fallback_that_the_task_cannot_have_is_refused(settings: Any, target: Target, words: str) -> None:
    from raymlp.serve.fallback import _constant

    with pytest.raises(ServingError, match=words):
        _rule(target, Profile()) if isinstance(settings, Rule) else _constant(target, settings.value)


def test_settings_of_the_fallback_and_of_grpc() -> None:
    assert Serve.model_validate({"fallback": {"kind": "rule"}}).fallback == Rule()
    assert Serve.model_validate({"fallback": {"kind": "constant", "value": 0.25}}).fallback == HALF
    for wrong in ({"fallback": {"kind": "constant"}}, {"grpc_port": 8000}, {"grpc_port": 9000, "auth": "none"}):
        with pytest.raises(ValueError, match=r"value|grpc_port"):
            Serve.model_validate(wrong)
