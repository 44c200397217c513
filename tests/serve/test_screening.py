"""What is asked of a row beyond its types, and what becomes of one that falls short."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest

from raymlp.core.errors import RequestError
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.profile import Profile
from raymlp.serve.log import read_log
from raymlp.serve.screening import Screen
from tests.serve.bundles import json_rows, make_bundle, replica_settings, source_table
from tests.serve.replica import replica

TRAINED = Profile().update(
    pa.table({"hours": [0, 10, 20], "size": [1.0, 2.0, 5.0], "carrier": ["x", "yy", "zzz"], "code": ["a1", "b2", "c3"]})
)
CONTRACT = Contract(
    columns={
        "hours": ColumnContract(type="int", minimum=0, maximum=23),
        "size": ColumnContract(type="float"),
        "carrier": ColumnContract(type="string", categories=("x", "yy", "zzz")),
        "code": ColumnContract(type="string", pattern="[a-z][0-9]", example="a1"),
    }
)
GOOD = {"hours": 5, "size": 2.0, "carrier": "x", "code": "a1"}


def screen(guard: Any, factor: float = 10) -> Screen:
    return Screen(CONTRACT, TRAINED.columns, guard=guard, absurd_factor=factor)


def judged(guard: Screen, row: dict[str, Any]) -> tuple[str, ...]:
    return guard.judged(guard.check(row, "row"), "row")


@pytest.mark.parametrize("guard", ["reject", "flag", "off"])
@pytest.mark.parametrize(
    ("change", "field"),
    [({"hours": 1.5}, "hours"), ({"size": "2"}, "size"), ({"new": 1}, "new"), ({"carrier": None}, ""), ({"size": 1e999}, "size")],
)
def test_types_and_unknown_fields_are_refused_whatever_is_set(guard: Any, change: dict[str, Any], field: str) -> None:
    if not field:
        assert screen(guard).check({**GOOD, **change}, "row")["carrier"] is None
        return
    with pytest.raises(RequestError) as found:
        screen(guard).check({**GOOD, **change}, "row")
    assert found.value.field == f"row.{field}"


# size: 1 to 5 in training, so one width is 5 and ten of them reach from -49 to 55
@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({}, ()),
        ({"hours": 24}, ("hours",)),
        ({"size": 55.0}, ()),
        ({"size": 55.1}, ("size",)),
        ({"size": -49.1}, ("size",)),
        ({"carrier": "unseen"}, ("carrier",)),
        ({"code": "1a"}, ("code",)),
        ({"hours": -1, "code": "a" * 101}, ("hours", "code")),
        ({"hours": None, "size": None, "carrier": None, "code": None}, ()),
    ],
)
def test_values_out_of_place_are_refused_flagged_or_let_be(change: dict[str, Any], fields: tuple[str, ...]) -> None:
    row = {**GOOD, **change}
    if fields:
        with pytest.raises(RequestError) as found:
            judged(screen("reject"), row)
        assert found.value.field == f"row.{fields[0]}"
    else:
        assert judged(screen("reject"), row) == ()
    assert judged(screen("flag"), row) == fields
    assert judged(screen("off"), row) == ()


def test_how_far_is_absurd_can_be_set_and_a_text_of_100_characters_never_is() -> None:
    assert judged(screen("flag", factor=2), {**GOOD, "size": 16.0}) == ("size",)
    assert judged(screen("flag", factor=2), {**GOOD, "size": 15.0}) == ()
    open_contract = Contract(columns={"carrier": ColumnContract(type="string")})
    absurd = Screen(open_contract, TRAINED.columns, guard="reject", absurd_factor=10)
    assert judged(absurd, {"carrier": "c" * 100}) == ()
    with pytest.raises(RequestError, match="far from every row of training; expected text of at most 100 characters"):
        judged(absurd, {"carrier": "c" * 101})


def test_a_flagged_row_is_answered_and_marked_in_the_answer_the_log_and_the_metrics(tmp_path: Path) -> None:
    good, far = json_rows(2)
    far = {**far, "delay": 1e9, "carrier": "c" * 1_000}

    async def ask() -> None:
        bundle = make_bundle(tmp_path / "bundle", seed=0)
        path, body = "/v1/models/flights:predict", {"instances": [good, far]}
        async with replica(replica_settings(tmp_path / "reject"), bundle) as strict:
            refused = await strict.ask("POST", path, body)
            assert (refused.status, refused.json["error"]["field"]) == (422, "instances[1].delay")
        async with replica(replica_settings(tmp_path / "flag", access={"guard": "flag"}), bundle) as marking:
            answer = await marking.ask("POST", path, body)
            assert (answer.status, answer.json["flags"]) == (200, [[], ["delay", "carrier"]])
            assert "flags" not in (await marking.ask("POST", path, {"instances": [good]})).json
            marking.server.log.flush()
            text = (await marking.ask("GET", "/metrics")).body.decode()
            assert 'raymlp_flagged_rows_total{field="delay",model="flights",replica="r",version="v1"} 1.0' in text
        async with replica(replica_settings(tmp_path / "off", access={"guard": "off"}), bundle) as blind:
            answer = await blind.ask("POST", path, body)
            assert (answer.status, "flags" in answer.json) == (200, False)

    asyncio.run(ask())
    assert read_log(tmp_path / "flag" / "log")["flags"].to_pylist() == [None, "delay,carrier", None]


def test_a_table_meets_the_same_guard_and_the_same_limit_on_rows(tmp_path: Path) -> None:
    table = source_table().slice(0, 2).drop(["late"])
    far = table.set_column(table.schema.get_field_index("delay"), "delay", pa.array([0.5, 1e9]))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, far.schema) as stream:
        stream.write_table(far)
    body, kind = bytes(sink.getvalue()), "application/vnd.apache.arrow.stream"

    async def ask() -> None:
        bundle = make_bundle(tmp_path / "bundle", seed=0)
        async with replica(replica_settings(tmp_path / "reject"), bundle) as strict:
            assert (await strict.ask("POST", "/v1/models/flights:predict", body, content_type=kind)).status == 422
        access = {"guard": "flag", "extraction_limit": 2}
        async with replica(replica_settings(tmp_path / "flag", access=access), bundle) as marking:
            answers = [await marking.ask("POST", "/v1/models/flights:predict", body, content_type=kind) for _ in range(2)]
            assert [answer.status for answer in answers] == [200, 429]
            marking.server.log.flush()

    asyncio.run(ask())
    assert read_log(tmp_path / "flag" / "log")["flags"].to_pylist() == [None, "delay"]
