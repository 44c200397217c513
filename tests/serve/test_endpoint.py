"""The endpoint for real: one Ray session, one replica, HTTP over loopback."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlp import pipeline
from raymlp.config.loader import with_overrides
from raymlp.config.model import FtTransformer, Tabm
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.core.errors import ServingError
from raymlp.core.records import Endpoint, Version
from raymlp.model.predictor import Predictor
from raymlp.runtime.ports import free_port
from raymlp.serve.client import replay
from raymlp.serve.deploy import deploy, problems, set_versions, status, undeploy
from raymlp.serve.log import read_log
from raymlp.serve.routing import Routes, misrouted
from tests.serve.bundles import SHOTS, json_rows, make_bundle, make_config, source_table

pytestmark = pytest.mark.ray
KEY = "test-key"
OLD, NEW = FtTransformer(width=16, heads=2, blocks=1), Tabm(members=3, width=16)
"""Nets of the two versions."""
PREDICT = "/v1/models/flights:predict"


@dataclass
class Place:
    """A running endpoint, with what it was made of."""

    config: Config
    endpoint: Endpoint
    old: Path
    new: Path

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        connection = HTTPConnection(urlsplit(self.endpoint.url).netloc, timeout=30)
        sent = {"Authorization": f"Bearer {KEY}", **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection.request(method, path, body, {name: value for name, value in sent.items() if value})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(content) if is_json else content.decode(), dict(answer.headers)

    def predict(self, *rows: Any, **more: Any) -> tuple[int, Any]:
        code, content, _ = self.call("POST", PREDICT, json.dumps({"instances": rows, **more}).encode())
        return code, content

    def set_weights(self, challenger: float, *, salt: str = "") -> None:
        versions, weights = {"1": str(self.old), "2": str(self.new)}, {"1": 1 - challenger, "2": challenger}
        set_versions(self.config, self.endpoint, versions, weights, salt=salt)

    def report(self) -> dict[str, Any]:
        """What the replica says, without the machine's free memory."""
        (replica,) = status("flights")["replicas"]
        return {name: value for name, value in replica.items() if name != "free_bytes"}


@pytest.fixture(scope="module")
def place(ray_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("bundles")
    old, new = make_bundle(folder / "old", seed=1, model=OLD), make_bundle(folder / "new", seed=2, model=NEW)
    config = make_config(ray_runtime, port=free_port(), max_replicas=1, max_rows_per_request=50, cpus_per_replica=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYMLP_API_KEYS", f"other, {KEY}")
        yield Place(config, deploy(config, Version("1", str(old))), old, new)
    undeploy("flights")


def test_answers_equal_the_predictor_offline(place: Place) -> None:
    rows = json_rows(20)
    expected = Predictor.load(place.old).predict(rows).scores
    alone = [place.predict(row)[1]["predictions"][0]["probability"] for row in rows]
    together = [answer["probability"] for answer in place.predict(*rows)[1]["predictions"]]
    assert alone == pytest.approx(expected, abs=1e-6)
    assert together == pytest.approx(expected, abs=1e-6)


def test_answers_equal_those_of_a_batch(place: Place, tmp_path: Path) -> None:
    pq.write_table(source_table().slice(0, 40).drop(["late"]).append_column("row", pa.array(range(40))), tmp_path / "rows.parquet")
    settings = {
        "data.source": {"kind": "parquet", "path": str(tmp_path / "rows.parquet")},
        "predict": {"output": str(tmp_path / "out"), "keep": ["row"], "num_workers": 1, "cpus_per_worker": 0.1},
    }
    pipeline.predict(with_overrides(place.config, settings), place.old)
    batch = pq.read_table(tmp_path / "out").sort_by("row").to_pylist()
    answers = place.predict(*json_rows(40))[1]["predictions"]
    assert [row["label"] for row in batch] == [answer["label"] for answer in answers]
    assert [row["score"] for row in batch] == pytest.approx([answer["probability"] for answer in answers], abs=1e-6)


def test_an_answer_names_its_version_and_an_id(place: Place) -> None:
    code, content = place.predict(json_rows(1)[0])
    assert code == 200
    assert content["model_version"] == "1"
    assert len(content["prediction_id"]) == 36
    assert content["predictions"][0]["label"] in {"no", "yes"}


@pytest.mark.parametrize("header", ["", "Bearer wrong", KEY])
def test_no_answer_without_a_key(place: Place, header: str) -> None:
    for method, path in (("POST", PREDICT), ("GET", "/v1/models/flights")):
        code, content, headers = place.call(method, path, b"{}" if method == "POST" else None, Authorization=header)
        assert code == 401
        assert content["error"]["field"] == "Authorization"
        assert headers["www-authenticate"] == "Bearer"


def test_health_pages_need_no_key(place: Place) -> None:
    assert place.call("GET", "/healthz", Authorization="")[:2] == (200, {"status": "ok"})
    assert place.call("GET", "/readyz", Authorization="")[:2] == (200, {"status": "ready"})


def test_an_unknown_model_or_page_is_404(place: Place) -> None:
    for method, path in (("POST", "/v1/models/other:predict"), ("GET", "/v1/models/other"), ("GET", "/nothing")):
        code, content, _ = place.call(method, path, b"{}" if method == "POST" else None)
        assert code in (404, 405)
        assert content["error"]["expected"].startswith("POST /v1/models/flights:predict")


GOOD = json_rows(1)[0]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({**GOOD, "delay": "late"}, "instances[0].delay"),
        ({**GOOD, "hours": 1.5}, "instances[0].hours"),
        ({**GOOD, "note": 3}, "instances[0].note"),
        ({**GOOD, "shot": "no base64!"}, "instances[0].shot"),
        ({**GOOD, "shot": b64encode(SHOTS[0][:30]).decode()}, "instances[0].shot"),
        ({**GOOD, "at": "yesterday"}, "instances[0].at"),
        ({**GOOD, "dealy": 1.0}, "instances[0].dealy"),
        ({name: value for name, value in GOOD.items() if name != "carrier"}, "instances[0].carrier"),
        (7, "instances[0]"),
    ],
)
def test_a_row_that_breaks_the_contract_is_422_with_its_field(place: Place, row: Any, field: str) -> None:
    code, content = place.predict(row)
    assert code == 422
    assert content["error"]["field"] == field
    assert set(content["error"]) == {"field", "found", "expected"}


def test_the_place_of_a_bad_row_among_good_ones_is_named(place: Place) -> None:
    code, content = place.predict(GOOD, {**GOOD, "held": 1})
    assert (code, content["error"]["field"]) == (422, "instances[1].held")


NESTED = b'{"instances": [{"delay": ' + b"[" * 900 + b"]" * 900 + b"}]}"
JUNK = [
    b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe\x00", b'{"instances": 1}', b'{"instances": []}', b'{"instances": [null]}',
    b'{"instances": [{}]}', b'{"instances": [{"delay": NaN}]}', b'{"instances": [{"delay": 1e999}]}', NESTED, b"[" * 100_000,
    b'{"instances": [{"delay": "\\ud800"}]}', b'{"instances": [{"hours": ' + b"9" * 400 + b"}]}",
    json.dumps({"instances": [{**GOOD, "hours": 10**30}]}).encode(),
    json.dumps({"instances": [{**GOOD, "at": "0001-01-01T00:00:00+23:59"}]}).encode(),
    json.dumps({"instances": [{**GOOD, "at": 10**12}]}).encode(), json.dumps({"instances": [{**GOOD, "delay": 1e308}]}).encode(),
    json.dumps({"instances": [GOOD] * 51}).encode(), json.dumps({"instances": [GOOD], "routing_key": {"a": 1}}).encode(),
    json.dumps({"instances": [{**GOOD, "carrier": "\u0000" * 5}], "x": 1}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("body", JUNK, ids=range(len(JUNK)))
def test_junk_is_refused_and_never_a_500(place: Place, body: bytes) -> None:
    code, content, _ = place.call("POST", PREDICT, body)
    assert code == 422
    assert content["error"]["expected"]


def test_odd_but_allowed_values_are_answered(place: Place) -> None:
    for change in (
        {"carrier": "unseen \U0001f6eb"},
        {"hours": None},
        {"at": "0001-01-01T00:00:00Z"},
        {"at": "9999-12-31T23:59:59Z"},
        {"carrier": ""},
    ):
        code, content = place.predict({**GOOD, **change})
        assert code == 200, content
        assert 0 <= content["predictions"][0]["probability"] <= 1


def test_the_page_of_the_model_and_openapi_tell_the_truth(place: Place) -> None:
    code, content, _ = place.call("GET", "/v1/models/flights")
    assert code == 200
    assert content["versions"]["1"]["digest"] == Predictor.load(place.old).bundle.digest
    assert content["weights"] == {"1": 1.0}
    page = place.call("GET", "/openapi.json", Authorization="")[1]
    assert page["components"]["schemas"]["Row"]["properties"]["held"]["type"] == "boolean"
    assert page["components"]["schemas"]["Request"]["properties"]["instances"]["maxItems"] == 50


def test_metrics_count_by_version_and_status(place: Place) -> None:
    def count(code: int, version: str) -> float:
        text = place.call("GET", "/metrics", Authorization="")[1]
        wanted = ("raymlp_requests_total{", f'status="{code}"', f'version="{version}"', 'model="flights"', 'replica="')
        return sum(float(line.split()[-1]) for line in text.splitlines() if all(part in line for part in wanted))

    good, bad = count(200, "1"), count(422, "1")
    place.predict(GOOD)
    place.predict({**GOOD, "delay": "x"})
    assert (count(200, "1") - good, count(422, "1") - bad) == (1, 1)
    assert "raymlp_latency_seconds_bucket" in place.call("GET", "/metrics", Authorization="")[1]


def test_weights_change_live_and_the_same_key_goes_to_the_same_version(place: Place) -> None:
    before = place.report()
    place.set_weights(0.1)
    after = place.report()
    assert (after["replica"], after["pid"]) == (before["replica"], before["pid"]), "no replica was restarted"
    assert after["weights"] == {"1": 0.9, "2": 0.1}

    keys = [f"key-{i}" for i in range(400)]
    first = replay(place.endpoint.url, "flights", [GOOD] * 400, key=KEY, connections=4, routing_keys=keys)
    again = replay(place.endpoint.url, "flights", [GOOD] * 400, key=KEY, connections=4, routing_keys=keys)
    assert [answer.version for answer in first] == [answer.version for answer in again]
    assert abs(sum(answer.version == "2" for answer in first) - 40) < 4 * math.sqrt(400 * 0.1 * 0.9)

    place.set_weights(0.5)
    grown = replay(place.endpoint.url, "flights", [GOOD] * 400, key=KEY, connections=4, routing_keys=keys)
    moves = {(one.version, other.version) for one, other in zip(first, grown, strict=True) if one.version != other.version}
    assert moves == {("1", "2")}

    by_header = place.call("POST", PREDICT, json.dumps({"instances": [GOOD]}).encode(), X_Routing_Key=keys[0])[1]
    assert by_header["model_version"] == grown[0].version


def test_another_rollout_deals_the_keys_anew_and_the_log_can_be_recomputed(place: Place) -> None:
    keys = [f"key-{i}" for i in range(200)]
    versions, ids = [], set[str]()
    for salt in ("rollout-a", "rollout-b"):
        place.set_weights(0.5, salt=salt)
        answers = replay(place.endpoint.url, "flights", [GOOD] * 200, key=KEY, connections=4, routing_keys=keys)
        versions.append([answer.version for answer in answers])
        ids |= {str(answer.prediction_id) for answer in answers}
    same = sum(one == other for one, other in zip(*versions, strict=True))
    assert abs(same - 100) < 4 * math.sqrt(50)

    deadline, rows = time.monotonic() + 20, list[dict[str, Any]]()
    while len(rows) < 400 and time.monotonic() < deadline:
        rows = [entry for entry in read_log(place.endpoint.log).to_pylist() if entry["prediction_id"] in ids]
        time.sleep(0.1)
    assert misrouted(*([row[name] for row in rows] for name in ("routing_key", "version", "routes"))) == []
    assert {Routes.parse(row["routes"]).salt for row in rows} == {"rollout-a", "rollout-b"}
    assert {Routes.parse(row["routes"]).share("2") for row in rows} == {0.5}


def test_each_version_gives_its_own_answer(place: Place) -> None:
    place.set_weights(0.5)
    answers = replay(place.endpoint.url, "flights", json_rows(40), key=KEY, connections=4)
    models = {label: Predictor.load(path) for label, path in (("1", place.old), ("2", place.new))}
    assert {answer.version for answer in answers} == {"1", "2"}
    for row, answer in zip(json_rows(40), answers, strict=True):
        assert answer.prediction is not None
        assert answer.prediction["probability"] == pytest.approx(models[str(answer.version)].predict([row]).scores[0], abs=1e-6)


def test_a_bundle_that_cannot_load_changes_nothing(place: Place, tmp_path: Path) -> None:
    broken = make_bundle(tmp_path / "broken", seed=3)
    (broken / "plan.json").write_text("{}")
    before = place.report()
    with pytest.raises(ServingError, match=r"version 3 .* was refused: .*plan\.json was changed"):
        set_versions(place.config, "flights", {"1": str(place.old), "3": str(broken)}, {"1": 0.5, "3": 0.5})
    assert place.report() == before
    assert place.predict(GOOD)[0] == 200


def test_weights_that_do_not_sum_to_one_are_not_sent(place: Place) -> None:
    before = place.report()
    with pytest.raises(ServingError, match=r"sum to 0\.8"):
        set_versions(place.config, "flights", {"1": str(place.old), "2": str(place.new)}, {"1": 0.5, "2": 0.3})
    assert place.report() == before


def test_promotion_leaves_one_version(place: Place) -> None:
    set_versions(place.config, "flights", {"2": str(place.new)}, {"2": 1.0})
    assert place.predict(GOOD)[1]["model_version"] == "2"
    assert list(place.report()["versions"]) == ["2"]
    set_versions(place.config, "flights", {"1": str(place.old)}, {"1": 1.0})


def test_every_good_prediction_is_in_the_log(place: Place) -> None:
    row = {**GOOD, "delay": 0.123456}
    code, content, _ = place.call("POST", PREDICT, json.dumps({"instances": [row, row], "routing_key": "mine"}).encode())
    assert code == 200
    deadline = time.monotonic() + 20
    while True:
        rows = [entry for entry in read_log(place.endpoint.log).to_pylist() if entry["prediction_id"] == content["prediction_id"]]
        if rows or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert [(entry["row"], entry["version"], entry["routing_key"], entry["status"]) for entry in rows] == [
        (0, "1", "mine", 200),
        (1, "1", "mine", 200),
    ]
    assert rows[0]["in.delay"] == 0.123456
    assert rows[0]["in.at"].isoformat() == row["at"]
    assert rows[0]["prediction"] == pytest.approx(content["predictions"][0]["probability"], abs=1e-12)


def test_a_replica_killed_with_a_challenger_comes_back_without_it_and_says_so(place: Place) -> None:
    place.set_weights(0.5)
    before = place.report()
    os.kill(before["pid"], signal.SIGKILL)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        reports = status("flights")["replicas"]
        if reports and reports[0]["pid"] != before["pid"]:
            break
        time.sleep(0.2)
    after = place.report()
    assert after["weights"] == {"1": 1.0}
    assert "a replica died" in after["problems"]["2"]
    assert problems("flights") == after["problems"]
    answers = replay(place.endpoint.url, "flights", [GOOD] * 20, key=KEY, connections=2)
    assert {(answer.status, answer.version) for answer in answers} == {(200, "1")}
    place.set_weights(0.5)
    assert place.report()["weights"] == {"1": 0.5, "2": 0.5}, "sent again, it is tried again"
    set_versions(place.config, "flights", {"1": str(place.old)}, {"1": 1.0})


def test_no_key_in_the_environment_stops_a_deploy_with_what_to_set(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_API_KEYS", " , ")
    with pytest.raises(ServingError, match="Set RAYMLP_API_KEYS"):
        deploy(place.config, Version("1", str(place.old)))


def test_another_port_than_the_running_one_is_refused(place: Place) -> None:
    config = make_config(place.config.runtime, port=free_port())
    with pytest.raises(ServingError, match="already listens on"):
        deploy(config, Version("1", str(place.old)))


def test_a_name_that_is_not_deployed_is_refused_and_stopping_it_is_nothing(place: Place) -> None:
    with pytest.raises(ServingError, match="other is not deployed"):
        set_versions(place.config, "other", {"1": str(place.old)}, {"1": 1.0})
    assert status("other")["state"] == "NOT_STARTED"
    undeploy("other")
    assert place.predict(GOOD)[0] == 200


def test_rows_that_wait_are_written_when_the_endpoint_stops(place: Place) -> None:
    # The last test of the module: it stops the endpoint.
    _, content = place.predict(GOOD)
    undeploy("flights")
    assert content["prediction_id"] in read_log(place.endpoint.log)["prediction_id"].to_pylist()
    assert status("flights")["state"] == "NOT_STARTED"
