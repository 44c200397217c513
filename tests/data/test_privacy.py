from __future__ import annotations

import hashlib
import hmac
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from raymlp.config.data import Data
from raymlp.config.privacy import Generalise, Hash, Mask, Privacy, Pseudonymise, Rule
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.config.sources import CsvSource, ParquetSource
from raymlp.config.split import GroupSplit, RandomSplit
from raymlp.core.errors import ConfigError, RequestError
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_batch import REASON, check_table
from raymlp.data.contract_row import row_checker, table_of
from raymlp.data.privacy import Mac, PrivacyKey, environment_key, masked, revealed, routing_key_hider, single, transformed
from raymlp.data.snapshot import load_contract, prepare, read_split, snapshot_key

SECRET = "a secret of the tests that is long enough"
KEY = PrivacyKey(SECRET)
RULES: dict[str, Rule] = {
    "user": Hash(),
    "email": Pseudonymise(),
    "phone": Mask(keep_last=2),
    "age": Generalise(width=10),
    "pay": Generalise(width=0.1),
    "birth": Generalise(to="quarter"),
    "zip": Generalise(first=2),
}
CONTRACT = Contract(
    columns={
        "user": ColumnContract(type="string"),
        "email": ColumnContract(type="string"),
        "phone": ColumnContract(type="string"),
        "age": ColumnContract(type="int", minimum=0, maximum=90),
        "pay": ColumnContract(type="float"),
        "birth": ColumnContract(type="timestamp"),
        "zip": ColumnContract(type="string"),
    }
).with_privacy(RULES, KEY)
ROW: dict[str, Any] = {
    "user": "u1", "email": "ann@example.org", "phone": "0171234567", "age": 37, "pay": 0.37,
    "birth": "1985-08-21T12:00:00Z", "zip": "53113",
}  # fmt: skip


@pytest.fixture(autouse=True)
def privacy_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET)


def test_each_rule_gives_what_a_hand_worked_case_expects() -> None:
    row = row_checker(CONTRACT)(ROW, "row")
    derived = hmac.new(SECRET.encode(), b"raymlp privacy: hash", hashlib.sha256).digest()
    assert row["user"].split("-")[0] == hmac.new(derived, b"user\0u1", hashlib.sha256).hexdigest()[:32]
    assert revealed(row["email"], column="email") == "ann@example.org"
    assert (row["phone"], row["age"], row["zip"]) == ("********67", 30, "53")
    assert row["pay"] == pytest.approx(0.3)
    assert row["birth"] == datetime(1985, 7, 1, tzinfo=UTC)


def test_equal_values_get_equal_tokens_and_columns_and_keys_do_not_share_them() -> None:
    def token(column: str, value: Any, key: PrivacyKey = KEY, rule: Rule = RULES["user"]) -> str:
        return str(single(column, rule, key)(value))

    assert token("user", "7") == token("user", 7) == token("user", "7")
    other = PrivacyKey(SECRET + "!")
    for rule in (RULES["user"], RULES["email"]):
        assert len({token("user", "7", rule=rule), token("friend", "7", rule=rule), token("user", "7", other, rule)}) == 3
    assert len(token("user", "7", rule=Hash(length=16))) == 16 + 1 + 8


@given(st.binary(min_size=32, max_size=64), st.text())
def test_the_mac_is_the_standard_librarys(key: bytes, text: str) -> None:
    assert pickle.loads(pickle.dumps(Mac(key))).hex(text) == Mac(key).hex(text) == hmac.new(key, text.encode(), "sha256").hexdigest()


def test_a_short_value_is_masked_too() -> None:
    assert [masked(text, keep_last=4) for text in ("", "1", "12", "123", "12345678", "123456789")] == [
        "", "*", "*2", "**3", "****5678", "*****6789",
    ]  # fmt: skip


TEXT = st.text(max_size=12)
NUMBER = st.floats(-1e300, 1e300) | st.floats(-1e6, 1e6)
MOMENT = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "user": st.none() | TEXT | st.integers(-(2**62), 2**62),
                "email": st.none() | TEXT,
                "phone": st.none() | TEXT,
                "age": st.none() | st.integers(0, 99),
                "pay": st.none() | NUMBER,
                "birth": st.none() | MOMENT,
                "zip": st.none() | TEXT,
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_arrow_path_and_the_row_path_agree_and_do_nothing_the_second_time(rows: list[dict[str, Any]]) -> None:
    check = row_checker(CONTRACT)
    single_rows = [check(row, "row") for row in rows]
    as_written = {name: [None if row[name] is None else str(row[name]) for row in rows] for name in ("user", "email", "phone", "zip")}
    raw = pa.table(
        {**as_written, "age": [r["age"] for r in rows], "pay": [r["pay"] for r in rows], "birth": [r["birth"] for r in rows]}
    ).select(list(CONTRACT.columns))
    once, broken = check_table(CONTRACT, raw)
    assert broken.num_rows == 0
    assert once.to_pylist() == single_rows
    assert check_table(CONTRACT, once)[0].to_pylist() == single_rows
    assert [check(row, "row") for row in single_rows] == single_rows
    assert table_of(single_rows, CONTRACT) == once


@given(TEXT)
def test_a_pseudonym_is_turned_back_and_tells_nothing_without_the_key(text: str) -> None:
    token = single("email", Pseudonymise(), KEY)(text)
    assert revealed(token, column="email", key=KEY) == text
    with pytest.raises(ConfigError, match="no pseudonym of the column 'user'"):
        revealed(token, column="user", key=KEY)
    with pytest.raises(ConfigError, match="no pseudonym"):
        revealed(token, column="email", key=PrivacyKey("x" * 40))


def test_a_text_that_only_looks_like_a_token_is_transformed() -> None:
    fake = "0" * 32 + "-" + "0" * 8
    assert single("user", Hash(), KEY)(fake) != fake
    assert single("email", Pseudonymise(), KEY)("A" * 40) != "A" * 40


def test_a_quarantined_row_holds_no_raw_value() -> None:
    raw = pa.table({**{name: [value] for name, value in ROW.items()}, "age": ["old as ann@example.org"]}).select(list(CONTRACT.columns))
    good, broken = check_table(CONTRACT, raw)
    assert (good.num_rows, broken.column(REASON).to_pylist()) == (0, ["age is not of type int"])
    kept = str(broken.to_pylist())
    assert not any(text in kept for text in ("u1'", "ann@", "0171", "1985-08", "53113"))


def test_ranges_speak_of_the_result_and_a_refusal_does_not_show_the_value() -> None:
    check = row_checker(CONTRACT)
    assert check({**ROW, "age": 99}, "row")["age"] == 90
    for change in ({"age": 100}, {"user": True}, {"birth": "ann"}, {"email": "\ud800 ann"}, {"zip": 5.5}):
        with pytest.raises(RequestError) as error:
            check({**ROW, **change}, "row")
        assert error.value.found.startswith("a value (")


def test_a_whole_number_read_as_a_float_gets_the_token_of_the_number() -> None:
    contract = Contract(columns={"user": ColumnContract(type="string")}).with_privacy({"user": Hash()}, KEY)
    good, broken = check_table(contract, pa.table({"user": [7.0, None, 1.5]}))
    assert good.column("user").to_pylist() == [row_checker(contract)({"user": 7}, "row")["user"], None]
    assert broken.num_rows == 1


@pytest.mark.parametrize(("secret", "words"), [(None, "is not set"), ("short", "has 5 characters")])
def test_a_missing_or_short_key_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, secret: str | None, words: str) -> None:
    monkeypatch.delenv("RAYMLP_PRIVACY_KEY")
    if secret:
        monkeypatch.setenv("RAYMLP_PRIVACY_KEY", secret)
    with pytest.raises(ConfigError, match=f"RAYMLP_PRIVACY_KEY {words}.*at least 32 characters") as error:
        environment_key()
    assert "short" not in str(error.value)
    with pytest.raises(ConfigError, match="RAYMLP_PRIVACY_KEY"):
        row_checker(CONTRACT)
    without = Contract(columns={"zip": ColumnContract(type="string")}).with_privacy({"zip": Mask()}, None)
    assert row_checker(without)({"zip": "53113"}, "row") == {"zip": "***13"}


def test_another_key_than_the_training_datas_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", "another secret, which is long enough as well")
    with pytest.raises(ConfigError, match=f"another key than the one that 'user' was transformed with.*expected {KEY.check}"):
        row_checker(CONTRACT)


def test_a_contract_keeps_its_rules_as_text_and_never_the_key() -> None:
    text = CONTRACT.to_yaml()
    assert Contract.from_yaml(text) == CONTRACT
    assert SECRET not in text + repr(CONTRACT) + repr(KEY)
    with pytest.raises(ConfigError, match=r"type is int with privacy hash; expected string"):
        Contract.from_yaml("columns: {user: {type: int, privacy: {kind: hash}}}")


def test_the_short_form_and_wrong_rules_are_told_apart() -> None:
    rules = TypeAdapter(dict[str, Rule])
    assert rules.validate_python({"a": "drop", "b": {"kind": "mask", "keep_last": 2}})["b"] == Mask(keep_last=2)
    for wrong in ({"kind": "generalise"}, {"kind": "generalise", "width": 1, "first": 2}, {"kind": "hash", "length": 8}, "hide"):
        with pytest.raises(ValidationError):
            rules.validate_python({"a": wrong})


def test_a_routing_key_is_logged_as_a_hash_where_there_is_a_key() -> None:
    assert routing_key_hider(None)("ann") == "ann"
    assert "ann" not in routing_key_hider(KEY)("ann")


def test_the_key_travels_to_workers_and_shows_itself_to_nobody() -> None:
    assert pickle.loads(pickle.dumps(KEY)).check == KEY.check
    assert repr(KEY) == str(KEY) == "PrivacyKey(***)"


def test_work_is_done_once_for_each_distinct_value() -> None:
    array = pa.chunked_array([["a", "b", None, "a"] * 1000, []], pa.string())
    calls: list[Any] = []
    key = PrivacyKey(SECRET)
    key.hashed = lambda text, **_: calls.append(text) or text  # type: ignore[method-assign,func-returns-value]
    assert transformed(array, "user", Hash(), key).to_pylist() == ["a", "b", None, "a"] * 1000
    assert calls == ["a", "b"]


# ---------------------------------------------------------------------- snapshots

PROBLEM = Problem(name="p", task="binary", target="y", positive_class="yes")
PEOPLE = 300


def people(folder: Path) -> Path:
    lines = ["user,email,phone,age,birth,city,y"]
    for i in range(PEOPLE):
        age = "ancient" if i == 7 else 20 + i % 60
        lines.append(f"{i % 50},p{i}@example.org,0171{i:06},{age},19{50 + i % 50}-05-17,city{i % 3},{'yes' if i % 4 else 'no'}")
    (folder / "people.csv").write_text("\n".join(lines) + "\n")
    return folder / "people.csv"


def private(path: Path, **changes: Any) -> Data:
    rules = {"email": "drop", "phone": {"kind": "mask", "keep_last": 2}, "user": "hash", "birth": {"kind": "generalise", "to": "year"}}
    source = CsvSource(path=str(path), types={"age": "int", "birth": "timestamp"})
    settings = {"source": source, "split": RandomSplit(), "privacy": Privacy.model_validate({"columns": rules}), **changes}
    return Data(**settings)


@pytest.mark.ray
def test_a_snapshot_holds_only_transformed_values_and_no_key(ray_runtime: Runtime, tmp_path: Path) -> None:
    snapshot = prepare(PROBLEM, private(people(tmp_path)), tmp_path / "out")
    assert snapshot.quarantined == 1
    table = read_split(snapshot.path, "train")
    assert "email" not in table.column_names
    assert set(table.column("phone").to_pylist()[0][:-2]) == {"*"}
    assert len(set(read_split(snapshot.path, "train").column("user").to_pylist())) == 50
    assert {moment.timetuple()[1:3] for moment in table.column("birth").to_pylist()} == {(1, 1)}
    contract = load_contract(snapshot.path)
    assert contract.columns["user"].privacy == Hash()
    assert contract.columns["user"].privacy_key == KEY.check
    raw = {f"p{i}@example.org" for i in range(PEOPLE)} | {f"0171{i:06}" for i in range(PEOPLE)} | {SECRET}
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert any(file.parent.name == "quarantine" for file in written)
    for file in written:
        text = str(pq.read_table(file).to_pylist()) if file.suffix == ".parquet" else file.read_text()
        assert not any(value in text for value in raw)
        assert SECRET.encode() not in file.read_bytes()
    held_out = read_split(snapshot.path, "test").to_pylist()[0]
    check = row_checker(contract.only(["user", "phone", "birth"]))
    kept = {name: held_out[name] for name in ("user", "phone", "birth")}
    assert check(kept, "row") == kept


@pytest.mark.ray
def test_another_key_is_another_snapshot_and_no_key_stops_before_the_work(
    ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = private(people(tmp_path))
    before = snapshot_key(PROBLEM, data)
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET * 2)
    assert snapshot_key(PROBLEM, data) != before
    monkeypatch.delenv("RAYMLP_PRIVACY_KEY")
    with pytest.raises(ConfigError, match="RAYMLP_PRIVACY_KEY is not set, and the column 'user' is to be hashed"):
        prepare(PROBLEM, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_a_group_split_by_a_hashed_column_keeps_people_together(ray_runtime: Runtime, tmp_path: Path) -> None:
    snapshot = prepare(PROBLEM, private(people(tmp_path), split=GroupSplit(column="user")), tmp_path / "out")
    groups = [set(read_split(snapshot.path, name).column("user").to_pylist()) for name in snapshot.rows]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 50


@pytest.mark.ray
@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"usr": "hash"}, r"data.privacy.columns names 'usr'.*Did you mean 'user'"),
        ({"y": "hash"}, "names 'y', the target"),
        ({"birth": "hash"}, r"data.privacy.columns.birth is hash, and the column's type is timestamp; expected string or int"),
        ({"city": {"kind": "generalise", "width": 2}}, r"data.privacy.columns.city is generalise.* string; expected int or float"),
        ({"age": {"kind": "generalise", "width": 2.5}}, r"data.privacy.columns.age.width is 2.5 for whole numbers"),
    ],
)
def test_a_rule_that_does_not_fit_is_named(ray_runtime: Runtime, tmp_path: Path, rules: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        prepare(PROBLEM, private(people(tmp_path), privacy=Privacy.model_validate({"columns": rules})), tmp_path / "out")


@pytest.mark.ray
def test_parquet_sources_are_transformed_alike(ray_runtime: Runtime, tmp_path: Path) -> None:
    rows = {"user": list(range(100)), "y": ["yes", "no"] * 50}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    data = private(tmp_path, source=ParquetSource(path=str(tmp_path / "a.parquet")), privacy=Privacy(columns={"user": Hash()}))
    snapshot = prepare(PROBLEM, data, tmp_path / "out")
    tokens = {token for name in snapshot.rows for token in read_split(snapshot.path, name).column("user").to_pylist()}
    assert tokens == {KEY.hashed(str(i), column="user", length=32) for i in range(100)}
