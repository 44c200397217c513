from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlp.core.errors import ConfigError, DataError, RequestError
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_batch import REASON, check_table
from raymlp.data.contract_row import row_checker, table_of
from raymlp.data.profile import Profile

CONTRACT = Contract(
    columns={
        "age": ColumnContract(type="int", nullable=False, minimum=0, maximum=120),
        "rate": ColumnContract(type="float"),
        "city": ColumnContract(type="string", categories=("bonn", "oslo")),
        "paid": ColumnContract(type="bool"),
        "when": ColumnContract(type="timestamp"),
    }
)
ROW: dict[str, Any] = {"age": 30, "rate": 0.5, "city": "bonn", "paid": True, "when": "2013-07-01T09:00:00Z"}
check = row_checker(CONTRACT)


def test_a_good_row_comes_back_typed() -> None:
    assert check(ROW, "row") == {**ROW, "when": datetime(2013, 7, 1, 9, tzinfo=UTC)}
    assert check({**ROW, "rate": None}, "row")["rate"] is None
    assert check({**ROW, "age": 30.0}, "row")["age"] == 30
    assert check({**ROW, "when": "2013-07-01T11:00:00+02:00"}, "row")["when"] == datetime(2013, 7, 1, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("change", "field", "found", "expected"),
    [
        ({"age": "30"}, "row.age", "'30' (str)", "a whole number from 0 to 120"),
        ({"age": 200}, "row.age", "200 (int)", "from 0 to 120"),
        ({"age": None}, "row.age", "null", "a whole number"),
        ({"age": True}, "row.age", "True (bool)", "a whole number"),
        ({"age": 1.5}, "row.age", "1.5 (float)", "a whole number"),
        ({"age": 10**30}, "row.age", "(int)", "a whole number"),
        ({"rate": float("nan")}, "row.rate", "nan (float)", "a number"),
        ({"city": "rome"}, "row.city", "'rome' (str)", "one of bonn, oslo"),
        ({"city": "\ud800"}, "row.city", "(str)", "one of"),
        ({"paid": 1}, "row.paid", "1 (int)", "true or false"),
        ({"when": "yesterday"}, "row.when", "'yesterday' (str)", "ISO 8601"),
        ({"agee": 3}, "row.agee", "not a field", "did you mean 'age'"),
    ],
)
def test_a_bad_value_is_named_with_found_and_expected(change: dict[str, Any], field: str, found: str, expected: str) -> None:
    with pytest.raises(RequestError) as error:
        check({**ROW, **change}, "row")
    assert error.value.field == field
    assert found in error.value.found
    assert expected in error.value.expected


def test_a_missing_field_and_a_row_that_is_no_object_are_refused() -> None:
    with pytest.raises(RequestError, match=r"row.age is missing; expected a whole number"):
        check({name: value for name, value in ROW.items() if name != "age"}, "row")
    with pytest.raises(RequestError, match="expected an object"):
        check([1, 2], "row")


@settings(max_examples=200)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3),
    )
)
def test_junk_is_refused_and_never_raises_anything_else(junk: object) -> None:
    for row in (junk, {**ROW, "age": junk}, {**ROW, "when": junk}, {**ROW, "city": junk}):
        try:
            check(row, "row")
        except RequestError as error:
            assert error.field.startswith("row")  # noqa: PT017


def test_a_table_is_divided_into_good_rows_and_bad_rows_with_reasons() -> None:
    table = pa.table(
        {
            "age": ["30", "old", "130", None],
            "rate": [1.0, 2.0, 3.0, 4.0],
            "city": ["bonn", "oslo", "bonn", "oslo"],
            "paid": ["true", "false", "true", "true"],
            "when": ["2013-07-01T09:00:00"] * 4,
        }
    )
    good, bad = check_table(CONTRACT, table)
    assert good.to_pylist() == [{"age": 30, "rate": 1.0, "city": "bonn", "paid": True, "when": datetime(2013, 7, 1, 9, tzinfo=UTC)}]
    assert bad.column(REASON).to_pylist() == ["age is not of type int", "age is above 120", "age is null"]
    assert bad.column("age").to_pylist() == ["old", "130", None]


def test_unknown_categories_are_quarantined_only_when_closed() -> None:
    table = pa.table({name: pa.array([value]) for name, value in {**ROW, "city": "rome"}.items()})
    assert check_table(CONTRACT, table)[1].column(REASON).to_pylist() == ["city is not one of its categories"]
    opened = Contract(columns={"city": ColumnContract(type="string")})
    assert check_table(opened, table)[1].num_rows == 0


def test_a_missing_column_is_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"has no column 'age'.*Did you mean 'ages'"):
        check_table(CONTRACT, pa.table({"ages": [1]}))


def test_numbers_do_not_pass_as_timestamps_nor_the_other_way() -> None:
    when = Contract(columns={"x": ColumnContract(type="timestamp")})
    number = Contract(columns={"x": ColumnContract(type="float")})
    assert check_table(when, pa.table({"x": [1]}))[1].num_rows == 1
    assert check_table(number, pa.table({"x": [datetime(2013, 1, 1, tzinfo=UTC)]}))[1].num_rows == 1


def test_rows_that_were_profiled_keep_the_inferred_contract() -> None:
    table = pa.table({"a": [1.5, 2.5, None], "n": [1, 2, 3], "k": ["x", None, "y"], "t": pa.array([0, 1, 2], pa.timestamp("us", tz="UTC"))})
    contract = Contract.infer(Profile().update(table))
    assert check_table(contract, table)[1].num_rows == 0
    assert not contract.columns["n"].nullable
    assert contract.columns["k"].nullable
    assert (contract.columns["n"].minimum, contract.columns["n"].maximum) == (-2, 6)


def test_yaml_gives_the_same_contract_back_and_bad_yaml_is_named() -> None:
    assert Contract.from_yaml(CONTRACT.to_yaml()) == CONTRACT
    with pytest.raises(ConfigError, match=r"my.yaml: columns.age.type"):
        Contract.from_yaml("columns: {age: {type: integer}}", source="my.yaml")


def test_typed_rows_and_table_say_the_same() -> None:
    table = table_of([check(ROW, "row")], CONTRACT)
    assert table.to_pylist() == [check(ROW, "row")]


# ---------------------------------------------------------------------- patterns, and rules about all rows

FLIGHT = ColumnContract(type="string", nullable=False, pattern=r"[A-Z]{2}\d{1,4}", example="UA12")


def test_a_pattern_is_matched_as_a_whole_in_batches_and_in_requests() -> None:
    contract = Contract(columns={"flight": FLIGHT})
    texts = ["UA12", "xUA12", "UA12 ", "UA12\n", "ua12", "AA1234", "A" * 2_000]
    good, bad = check_table(contract, pa.table({"flight": texts}))
    assert good.column("flight").to_pylist() == ["UA12", "AA1234"]
    assert set(bad.column(REASON).to_pylist()) == {"flight does not match its pattern"}
    one = row_checker(contract)
    assert one({"flight": "UA12"}, "row") == {"flight": "UA12"}
    for text in bad.column("flight").to_pylist():
        with pytest.raises(RequestError, match="text of at most 1,000 characters that matches"):
            one({"flight": text}, "row")


@settings(max_examples=100)
@given(st.text(alphabet="ab|1\n é", max_size=6), st.sampled_from(["a|b", "(a|b)+1?", ".", "\\s*", "[^a]+", "(?i)A"]))
def test_batches_and_requests_agree_on_every_text(text: str, pattern: str) -> None:
    contract = Contract(columns={"x": ColumnContract(type="string", pattern=pattern)})
    kept = check_table(contract, pa.table({"x": [text]}))[0].num_rows == 1
    try:
        row_checker(contract)({"x": text}, "row")
        assert kept
    except RequestError:
        assert not kept


@pytest.mark.timeout(20)
def test_a_pattern_that_would_run_for_ever_elsewhere_is_quick() -> None:
    rule = ColumnContract(type="string", pattern="(a+)+b")
    contract = Contract(columns={"x": rule})
    attack = "a" * 900 + "!"
    assert check_table(contract, pa.table({"x": [attack] * 100}))[1].num_rows == 100
    with pytest.raises(RequestError):
        row_checker(contract)({"x": attack}, "row")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"type": "string", "pattern": "("}, "which RE2 does not take"),
        ({"type": "string", "pattern": "(?<=a)b"}, "which RE2 does not take"),
        ({"type": "string", "pattern": "a)|(?:b"}, "which RE2 does not take"),
        ({"type": "string", "pattern": "(?:a{1000}){1000}"}, "which RE2 does not take"),
        ({"type": "int", "pattern": "1"}, "expected type string"),
        ({"type": "string", "pattern": "a", "example": "b"}, "does not match the pattern"),
        ({"type": "string", "pattern": "a", "nullable": False}, "needs an example"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused_at_the_door(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ColumnContract.model_validate(rule)


def test_the_openapi_page_shows_the_pattern() -> None:
    from raymlp.serve.openapi import openapi

    page = openapi("m", Contract(columns={"flight": FLIGHT}), "binary", max_rows=1, needs_key=False)
    shown = page["components"]["schemas"]["Row"]["properties"]["flight"]
    assert (shown["pattern"], shown["maxLength"], shown["examples"]) == (r"^(?:[A-Z]{2}\d{1,4})$", 1_000, ["UA12"])


WHOLE = """
columns:
  id: {type: int, unique: true}
  k: {type: string}
  t: {type: timestamp}
unique_keys: [[k, t]]
min_rows: 10
freshness: {t: 36h}
"""


def test_rules_about_all_rows_are_read_from_yaml_and_written_as_people_write_them() -> None:
    contract = Contract.from_yaml(WHOLE)
    assert contract.keys == (("id",), ("k", "t"))
    assert "t: 36h" in contract.to_yaml()
    assert Contract.from_yaml(contract.to_yaml()) == contract
    assert contract.only(["k"]) == Contract(columns={"k": ColumnContract(type="string")})
    assert contract.without(["t"]).keys == (("id",),)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("unique_keys: [[k, tt]]", "unique_keys names 'tt'.*Did you mean 't'"),
        ("freshness: {k: 1d}", "a column of type string; expected a timestamp"),
        ("min_rows: 5\nmax_rows: 4", "min_rows is 5; expected at most max_rows"),
    ],
)
def test_a_rule_that_names_what_is_not_there_is_refused(change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Contract.from_yaml("columns: {k: {type: string}, t: {type: timestamp}}\n" + change)
