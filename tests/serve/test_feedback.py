"""True answers that clients send back: what is taken, what is written, and who finds it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.config.privacy import Generalise, Hash, Rule
from raymlp.config.problem import Problem
from raymlp.core.errors import ConfigError, RequestError
from raymlp.data.labels import read_labels, row_ids
from raymlp.data.privacy import PrivacyKey
from raymlp.data.profile import Profile
from raymlp.data.target import Target
from raymlp.serve.feedback import MAX_NAMES, MAX_WAITING, Answer, Answers, FeedbackLog, parse_feedback
from raymlp.serve.keys import add_key
from raymlp.serve.log import read_log
from tests.serve.bundles import json_rows, make_bundle, replica_settings
from tests.serve.replica import replica

ROUTE, PREDICT = "/v1/models/flights:feedback", "/v1/models/flights:predict"
SECRET = "a secret of the tests that is long enough"


def answers_of(values: Any, *, task: Any = "binary", rule: Rule | None = None, **problem: Any) -> Answers:
    profile = Profile().update(pa.table({"late": values}))
    return Answers.of(Target.fit(Problem(name="p", task=task, target="late", **problem), profile), profile, rule)


YES_NO = answers_of(["no", "yes", "no"])


def taken(row: Any, answers: Answers = YES_NO) -> Answer:
    return parse_feedback(orjson.dumps({"feedback": [row]}), answers, max_rows=5)[0]


@pytest.mark.parametrize(
    ("values", "task", "label", "written"),
    [
        (["no", "yes"], "binary", "yes", "yes"),
        ([0, 1, 0], "binary", 1, 1),
        ([0, 1, 0], "binary", 1.0, 1),
        ([True, False], "binary", False, False),
        (["a", "b", "c"], "multiclass", "c", "c"),
        ([0.5, 1.5], "regression", 2, 2.0),
        ([1, 2, 5], "regression", 40, 40),
    ],
)
def test_a_label_is_written_in_the_type_of_the_source(values: list[Any], task: str, label: Any, written: Any) -> None:
    found = taken({"prediction_id": "a", "label": label}, answers_of(values, task=task)).label
    assert (found, type(found)) == (written, type(written))


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (7, "feedback[0]"),
        ({"label": "yes"}, "feedback[0].prediction_id"),
        ({"prediction_id": "", "label": "yes"}, "feedback[0].prediction_id"),
        ({"prediction_id": "a" * 129, "label": "yes"}, "feedback[0].prediction_id"),
        ({"prediction_id": "a\n", "label": "yes"}, "feedback[0].prediction_id"),
        ({"prediction_id": "a", "row": 5, "label": "yes"}, "feedback[0].row"),
        ({"prediction_id": "a", "row": True, "label": "yes"}, "feedback[0].row"),
        ({"prediction_id": "a", "label": "yess"}, "feedback[0].label"),
        ({"prediction_id": "a", "label": 1}, "feedback[0].label"),
        ({"prediction_id": "a"}, "feedback[0].label"),
        ({"prediction_id": "a", "label": None}, "feedback[0].label"),
        ({"prediction_id": "a", "revenue": "much"}, "feedback[0].revenue"),
        ({"prediction_id": "a", "revenue": True}, "feedback[0].revenue"),
        ({"prediction_id": "a", "time": 1.0}, "feedback[0].time"),
        ({"prediction_id": "a", "in.hours": 1.0}, "feedback[0].in.hours"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(row: Any, field: str) -> None:
    with pytest.raises(RequestError) as found:
        taken(row)
    assert found.value.field == field


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"feedback": 1}', b'{"feedback": []}', b'{"feedback": [1], "x": 1}', b"[" * 9_999])
def test_no_list_of_rows_is_refused(body: bytes) -> None:
    with pytest.raises((RequestError, RecursionError)):
        parse_feedback(body, YES_NO, max_rows=5)
    with pytest.raises(RequestError, match="1 to 5 rows"):
        parse_feedback(orjson.dumps({"feedback": [{}] * 6}), YES_NO, max_rows=5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("prediction_id", "row", "label", "n", "")), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=40) | JSON.map(lambda rows: json.dumps({"feedback": rows}).encode()))
def test_whatever_comes_is_taken_or_refused(body: bytes) -> None:
    try:
        rows = parse_feedback(body, YES_NO, max_rows=5)
    except RequestError:
        return
    assert all(row.label in (None, "no", "yes") for row in rows)
    assert FeedbackLog(Path("unused"), writer="r").add(rows, "string")


def test_a_wrong_class_is_told_the_nearest_one() -> None:
    with pytest.raises(RequestError, match=r"'yess' \(str\); expected one of no, yes, as 'late' has in the source; did you mean 'yes'\?"):
        taken({"prediction_id": "a", "label": "yess"})


def test_a_model_without_answers_takes_numbers_of_the_business_alone() -> None:
    profile = Profile().update(pa.table({"x": [1.0, 2.0]}))
    none = Answers.of(Target.fit(Problem(name="p", task="clustering"), profile), profile, None)
    assert taken({"prediction_id": "a", "revenue": 2}, none) == Answer("a", 0, None, {"revenue": 2.0})
    with pytest.raises(RequestError, match="no column of answers"):
        taken({"prediction_id": "a", "label": 1}, none)


def test_privacy_rules_of_the_target_are_applied_before_anything_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYMLP_PRIVACY_KEY", raising=False)
    tens = answers_of([10, 20, 30], task="regression", rule=Generalise(width=10))
    assert taken({"prediction_id": "a", "label": 37}, tens).label == 30
    key = PrivacyKey(SECRET)
    hashed = [key.hashed(name, column="late", length=16) for name in ("ann", "bob")]
    with pytest.raises(ConfigError, match="RAYMLP_PRIVACY_KEY"):
        answers_of(hashed, rule=Hash(length=16), positive_class=hashed[0])
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET)
    people = answers_of(hashed, rule=Hash(length=16), positive_class=hashed[0])
    assert taken({"prediction_id": "a", "label": "ann"}, people).label == hashed[0]
    with pytest.raises(RequestError) as found:
        taken({"prediction_id": "a", "label": "carl"}, people)
    assert "carl" not in str(found.value)


def test_what_was_taken_is_what_readers_of_labels_find_and_the_first_answer_stays(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path, writer="r")
    assert log.add([Answer("a", 0, "yes", {}), Answer("b", 2, None, {"revenue": 2.5})], "string")
    assert (log.flush(), log.flush(), len(log)) == (2, 0, 0)
    assert log.add([Answer("a", 0, "no", {}), Answer("a", 1, "no", {"clicks": 3.0})], "string")
    log.flush()
    pq.write_table(pa.table({"prediction_id": ["old"], "label": ["no"]}), tmp_path / "1.parquet")
    found = read_labels(tmp_path)
    assert found is not None
    assert row_ids(found).to_pylist() == ["old/0", "a/0", "b/2", "a/0", "a/1"]
    assert found.column("label").to_pylist() == ["no", "yes", None, "no", "no"]
    assert found.column("revenue").to_pylist() == [None, None, 2.5, None, None]
    assert found.column("clicks").to_pylist() == [None, None, None, None, 3.0]
    assert abs((found.column("time")[1].as_py() - datetime.now(UTC)).total_seconds()) < 60


def test_what_cannot_be_written_waits_and_nothing_that_was_taken_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = FeedbackLog(tmp_path, writer="r")
    log.add([Answer("a", 0, "yes", {})], "string")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("raymlp.runtime.store.os.replace", full)
        with pytest.raises(OSError, match="no space"):
            log.flush()
    log.add([Answer("b", 0, "no", {})], "string")
    assert log.flush() == 2
    found = read_labels(tmp_path)
    assert found is not None
    assert found.column("prediction_id").to_pylist() == ["a", "b"]
    assert not log.add([Answer("c", 0, "no", {})] * (MAX_WAITING + 1), "string")
    assert len(log) == 0


def test_a_replica_takes_so_many_names_of_numbers_and_no_more(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path, writer="r")
    log.add([Answer("a", 0, None, {f"n{place}": 1.0 for place in range(MAX_NAMES)})], "string")
    with pytest.raises(RequestError, match=f"over {MAX_NAMES} different names"):
        log.add([Answer("a", 0, None, {"another": 1.0})], "string")
    assert len(log) == 1


def test_feedback_over_http_joins_the_prediction_it_is_about(tmp_path: Path) -> None:
    keys = {role: add_key(tmp_path / "keys.json", role, [role]) for role in ("predict", "feedback")}
    bearer = {role: f"Bearer {key}" for role, key in keys.items()}

    async def ask() -> None:
        settings = replica_settings(tmp_path, needs_key=True, keys_file=str(tmp_path / "keys.json"))
        async with replica(settings, None) as empty:
            assert (await empty.ask("POST", ROUTE, authorization=bearer["feedback"])).status == 503
        async with replica(settings, make_bundle(tmp_path / "bundle", seed=0)) as one:
            answer = await one.ask("POST", PREDICT, {"instances": json_rows(2)}, authorization=bearer["predict"])
            body = {"feedback": [{"prediction_id": answer.json["prediction_id"], "row": 1, "label": "yes", "revenue": 3}]}
            assert (await one.ask("POST", ROUTE, body, authorization=bearer["predict"])).status == 403
            assert (await one.ask("POST", ROUTE, body)).status == 401
            assert (await one.ask("POST", "/v1/models/other:feedback", body, authorization=bearer["feedback"])).status == 404
            wrong = await one.ask("POST", ROUTE, {"feedback": [{"prediction_id": "a", "label": 1}]}, authorization=bearer["feedback"])
            assert (wrong.status, wrong.json["error"]["field"]) == (422, "feedback[0].label")
            good = await one.ask("POST", ROUTE, body, authorization=bearer["feedback"])
            assert (good.status, good.json) == (202, {"accepted": 1})
            one.server.log.flush()
            one.server.hearing.log.flush()

    asyncio.run(ask())
    labels = read_labels(tmp_path / "labels")
    assert labels is not None
    assert labels.column("label").to_pylist() == ["yes"]
    assert row_ids(labels).to_pylist() == [row_ids(read_log(tmp_path / "log")).to_pylist()[1]]
