"""Bytes in, typed values or a clear refusal out."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.core.errors import RequestError
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_row import row_checker
from raymlp.serve.guard import Guard
from raymlp.serve.openapi import openapi
from raymlp.serve.probe import example_row
from raymlp.serve.request import parse


def test_rows_and_routing_key_are_found() -> None:
    request = parse(b'{"instances": [{"a": 1}], "routing_key": "u7"}', max_rows=2)
    assert request == ([{"a": 1}], "u7")


@pytest.mark.parametrize(
    ("body", "field", "found"),
    [
        (b"{", "body", "no JSON"),
        (b"\xff\xfe", "body", "no JSON"),
        (b'{"instances": [{"a": NaN}]}', "body", "no JSON"),
        (b'{"instances": ["\\ud800"]}', "body", "no JSON"),
        (b"[1]", "body", "a JSON list"),
        (b"{}", "instances", "missing"),
        (b'{"instances": {}}', "instances", "a JSON object"),
        (b'{"instances": []}', "instances", "a list of 0 rows"),
        (b'{"instances": [1, 2, 3]}', "instances", "a list of 3 rows"),
        (b'{"instances": [1], "routing_key": 7}', "routing_key", "a JSON number"),
        (b'{"instances": [1], "more": 7}', "more", "not a field"),
    ],
)
def test_what_is_wrong_is_named(body: bytes, field: str, found: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse(body, max_rows=2)
    assert refused.value.field == field
    assert refused.value.found.startswith(found)
    assert refused.value.expected


@given(st.binary())
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    with suppress(RequestError):
        assert 1 <= len(parse(body, max_rows=10).instances) <= 10


def test_the_example_row_keeps_its_contract_even_where_it_has_no_examples() -> None:
    contract = Contract(
        columns={
            "a": ColumnContract(type="float", nullable=False, minimum=3, maximum=4),
            "b": ColumnContract(type="string", nullable=False, categories=("x", "y")),
            "c": ColumnContract(type="int", example=7),
            "d": ColumnContract(type="timestamp", nullable=False),
            "e": ColumnContract(type="bool"),
        }
    )
    row = example_row(contract)
    assert row == {"a": 3, "b": "x", "c": 7, "d": "2000-01-01T00:00:00Z", "e": None}
    assert row_checker(contract)(row, "example")["a"] == 3.0


def test_openapi_has_the_columns_of_the_contract() -> None:
    contract = Contract(columns={"a": ColumnContract(type="int", nullable=False, minimum=0, maximum=23), "b": ColumnContract(type="bool")})
    page = openapi("flights", contract, "binary", max_rows=5, needs_key=True)
    row = page["components"]["schemas"]["Row"]
    assert row["properties"]["a"] == {
        "type": "integer", "format": "int64", "minimum": 0, "maximum": 23, "description": "a whole number from 0 to 23",
    }  # fmt: skip
    assert row["properties"]["b"]["type"] == ["boolean", "null"]
    assert (row["required"], row["additionalProperties"]) == (["a"], False)
    assert "401" in page["paths"]["/v1/models/flights:predict"]["post"]["responses"]


def test_a_death_with_a_challenger_is_remembered_for_its_revision_only(tmp_path: Path) -> None:
    holder, other = Guard(tmp_path), Guard(tmp_path)
    holder.hold("r1")
    assert not other.is_suspect("r1"), "the holder lives"
    assert holder._held is not None
    os.close(holder._held[1])  # what the kernel does when the process dies
    assert other.is_suspect("r1")
    assert not other.is_suspect("r2"), "sent again, it gets another chance"
    assert list(tmp_path.iterdir()) == []


def test_a_release_in_good_order_leaves_no_trace(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    guard.hold("r1")
    guard.release()
    assert not guard.is_suspect("r1")
    assert list(tmp_path.iterdir()) == []
