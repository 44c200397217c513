from __future__ import annotations

import hmac
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.config.data import Data
from raymlp.config.privacy import Hash, Mask, Privacy
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.config.sources import CsvSource, ParquetSource
from raymlp.config.split import RandomSplit
from raymlp.core.errors import ConfigError, DataError
from raymlp.data.conformance import check_source
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.forget import Wanted, forget, person
from raymlp.data.privacy import Mac
from raymlp.data.snapshot import find, load_association, load_profile, open_snapshot, prepare, read_split
from raymlp.data.suppression import Sieve, Suppressed, applied
from tests.data.people import KEY, SECRET, make_snapshot

PROBLEM = Problem(name="p", task="binary", target="y", positive_class="yes")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYMLP_PRIVACY_KEY", raising=False)


def contract(**types: Any) -> Contract:
    return Contract(columns={name: ColumnContract(type=kind) for name, kind in types.items()})


def listed(folder: Path, column: str, *values: str) -> Suppressed:
    _, after = Suppressed.load(folder).listing(column, values)
    after.save()
    return Suppressed.load(folder)


def left(sieve: Sieve, values: list[Any], *, read_as: Any = None, kind: Any = None) -> list[Any]:
    rules = contract(user=read_as) if read_as else contract(other="int")
    return list(sieve.let_through(pa.table({"user": pa.array(values, kind)}), rules).column("user").to_pylist())


def test_a_value_is_recognised_by_the_columns_type_and_not_beyond_it(tmp_path: Path) -> None:
    sieve = listed(tmp_path, "user", "007").sieve()
    assert left(sieve, [7, 70, None], read_as="int") == [70, None]
    assert left(sieve, [7.0, 7.5, None], read_as="float") == [7.5, None]
    assert left(sieve, [7.0, 8.0, None], read_as="int") == [8.0, None]
    assert left(sieve, ["007", "7", None], read_as="string") == ["7", None]
    assert left(sieve, ["007", "7", "x"], read_as="int") == ["x"]  # read as 7; what cannot be read is taken as it is
    assert left(sieve, ["007", "7"]) == ["7"]  # a column that goes no further than the door
    assert left(sieve, [7, 8], kind=pa.int32()) == [8]
    assert left(sieve, [None, None]) == [None, None]
    assert left(sieve, []) == []


def test_a_broken_value_of_a_person_is_recognised_too(tmp_path: Path) -> None:
    sieve = listed(tmp_path, "user", "ann").sieve()
    assert left(sieve, ["ann", "12", "bob"], read_as="int") == ["12", "bob"]


def test_what_is_hashed_at_the_door_is_recognised_by_its_raw_value(tmp_path: Path) -> None:
    sieve = listed(tmp_path, "user", "7").sieve()
    rules = Contract(columns={"user": ColumnContract(type="string", privacy=Hash())})
    assert sieve.let_through(pa.table({"user": [7.0, None, 70.0]}), rules).column("user").to_pylist() == [None, 70.0]
    assert sieve.let_through(pa.table({"user": ["7", "07"]}), rules).column("user").to_pylist() == ["07"]


@given(st.lists(st.sampled_from(["ann", "bob", "Ann", "", "é", "ann "]) | st.none()), st.sets(st.sampled_from(["ann", "", "é"])))
def test_the_rows_that_stay_are_those_a_plain_loop_keeps(values: list[str | None], gone: set[str]) -> None:
    mac = Mac(b"salt")
    sieve = Sieve({"user": [(mac, frozenset(mac.hex(f"user\0string\0{name}") for name in gone))]})
    rules = contract(user="string", row="int")
    table = pa.table({"user": pa.array(values, pa.string()), "row": pa.array(range(len(values)), pa.int64())})
    expected = [row for row, value in enumerate(values) if value not in gone]
    assert sieve.let_through(table, rules).column("row").to_pylist() == expected
    cut = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    assert sieve.let_through(cut, rules).column("row").to_pylist() == expected


def test_without_a_key_a_salt_is_made_that_only_its_owner_reads(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    listed(folder, "user", "user-3")
    salt = bytes.fromhex((folder / "suppressed.salt").read_text())
    digest = hmac.digest(salt, b"user\0string\0user-3", "sha256").hex()
    assert json.loads((folder / "suppressed.json").read_text()) == {"version": 1, "columns": {"user": {"salt": [digest]}}}
    assert (folder / "suppressed.salt").stat().st_mode & 0o777 == 0o600
    assert len(salt) == 32
    assert left(listed(folder, "user", "user-4").sieve(), ["user-3", "user-4", "user-5"], read_as="string") == ["user-5"]
    assert bytes.fromhex((folder / "suppressed.salt").read_text()) == salt


def test_with_the_privacy_key_nothing_lies_beside_the_list_and_lists_of_both_keys_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET)
    made = listed(tmp_path, "user", "user-3")
    assert [file.name for file in tmp_path.iterdir()] == ["suppressed.json"]
    assert made.columns == {"user": {KEY.check: frozenset({KEY.suppression.hex("user\0string\0user-3")})}}
    monkeypatch.delenv("RAYMLP_PRIVACY_KEY")
    with pytest.raises(ConfigError, match=r"RAYMLP_PRIVACY_KEY is not set, and .*suppressed.json was made with it"):
        made.sieve()
    with pytest.raises(ConfigError, match="RAYMLP_PRIVACY_KEY is not set"):
        made.listing("user", ["user-4"])
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET * 2)
    with pytest.raises(ConfigError, match=rf"another key than the one that .*suppressed.json was made with.*expected {KEY.check}"):
        made.sieve()
    monkeypatch.delenv("RAYMLP_PRIVACY_KEY")
    listed(other := tmp_path / "other", "user", "user-1")
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET)
    both = listed(other, "user", "user-2")
    assert set(both.columns["user"]) == {"salt", KEY.check}
    sieve = pickle.loads(pickle.dumps(both.sieve()))
    assert left(sieve, ["user-1", "user-2", "user-3"], read_as="string") == ["user-3"]


def test_a_list_or_salt_that_cannot_be_used_stops(tmp_path: Path) -> None:
    made = listed(tmp_path, "user", "user-3")
    (tmp_path / "suppressed.salt").write_text("ab")
    with pytest.raises(DataError, match="has 1 bytes; expected 32"):
        made.sieve()
    (tmp_path / "suppressed.salt").unlink()
    with pytest.raises(DataError, match=r"suppressed.salt cannot be read .*Restore it"):
        made.sieve()
    (tmp_path / "suppressed.json").write_text("[]")
    with pytest.raises(DataError, match=r"suppressed.json cannot be read .*expected the list"):
        Suppressed.load(tmp_path)


def test_only_forgetting_a_person_for_real_writes_the_list(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    path = make_snapshot(folder, "one")
    places = {"snapshots": folder, "log": tmp_path / "log", "labels": tmp_path / "labels"}
    wanted = person(folder, "user", "user-3", {})
    forget(wanted, **places, dry_run=True)
    forget(Wanted("at", oldest=pa.scalar("2026-01-11T00:00:00Z").cast(pa.timestamp("us", "UTC")).as_py()), **places)
    assert sorted(item.name for item in folder.iterdir()) == ["one"]
    forget(wanted, **places)
    assert sorted(item.name for item in folder.iterdir()) == ["one", "suppressed.json", "suppressed.salt"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["suppressed"] == {"list": Suppressed.load(folder).digest, "rows": 0}
    assert "user-3" not in (folder / "suppressed.json").read_text()


def test_a_snapshot_keeps_the_list_only_when_it_was_cleaned_of_all_who_are_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET)
    folder = tmp_path / "snapshots"
    plain, masked = make_snapshot(folder, "one"), make_snapshot(folder, "two", Mask())
    places = {"snapshots": folder, "log": tmp_path / "log", "labels": tmp_path / "labels"}

    def kept(path: Path) -> bool:
        return applied(json.loads((path / "manifest.json").read_text())) == Suppressed.load(folder).digest

    found = forget(person(folder, "user", "user-3", {}), **places)
    assert found.notes == ("snapshot two has 'user' masked or generalised and was left as it is; the next `prepare` makes it anew",)
    assert (kept(plain), kept(masked)) == (True, False)
    forget(person(folder, "n", "5", {}), **places)
    assert (kept(plain), kept(masked)) == (True, False)
    forget(person(folder, "n", "5", {}), **places)  # as after a crash
    assert (kept(plain), kept(masked)) == (True, False)
    forget(person(folder, "user", "nobody", {}), **places)  # no row of theirs is there: it is clean
    assert (kept(plain), kept(masked)) == (True, False)


def test_a_crash_after_the_list_was_written_is_made_good_by_the_next_run(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    path = make_snapshot(folder, "one")
    listed(folder, "user", "user-3")
    assert applied(json.loads((path / "manifest.json").read_text())) == ""
    forget(person(folder, "user", "user-3", {}), snapshots=folder, log=tmp_path / "log", labels=tmp_path / "labels")
    assert applied(json.loads((path / "manifest.json").read_text())) == Suppressed.load(folder).digest


def test_a_token_removes_rows_and_says_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET)
    folder = tmp_path / "snapshots"
    make_snapshot(folder, "one", Hash())
    wanted = person(folder, "user", KEY.hashed("user-3", column="user", length=32), {})
    found = forget(wanted, snapshots=folder, log=tmp_path / "log", labels=tmp_path / "labels")
    assert found.snapshots == {"one": 11}
    assert found.notes == ("the value is a token of 'user': where the source has the raw value, `prepare` reads the person in again",)


# ---------------------------------------------------------------------- with Ray


def people(folder: Path, parts: int = 2) -> str:
    """200 rows of 20 people in each part; a row of user 3 breaks the contract, one has no answer."""
    folder.mkdir(exist_ok=True)
    for part in range(parts):
        rows = [f"u{i % 20},{i},{'yes' if i % 3 else 'no'}" for i in range(200)]
        rows[3], rows[23] = "u3,oops,yes", "u3,5,"
        (folder / f"part{part}.csv").write_text("\n".join(["user,n,y", *rows]) + "\n")
    return str(folder / "part*.csv")


def data(path: str, rule: Any = None, **changes: Any) -> Data:
    privacy = Privacy(columns={"user": rule} if rule else {})
    settings = {"source": CsvSource(path=path, types={"n": "int"}), "split": RandomSplit(), "privacy": privacy, "max_bad_share": 0.1}
    return Data(**{**settings, **changes})


def gone(folder: Path, column: str, value: str, rules: Any = None) -> None:
    forget(person(folder / "p", column, value, rules or {}), snapshots=folder / "p", log=folder / "log", labels=folder / "labels")


def users(path: Path) -> list[str]:
    return [user for name in open_snapshot(path).rows for user in read_split(path, name).column("user").to_pylist()]


@pytest.mark.ray
@pytest.mark.parametrize("rule", [None, "hash", "pseudonymise"])
def test_a_person_stays_out_of_the_next_snapshot_and_the_cleaned_one_is_found(
    ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str | None
) -> None:
    if rule:
        monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET)
    settings, out = data(people(tmp_path / "in"), rule), tmp_path / "out"
    first = prepare(PROBLEM, settings, out)
    assert (sum(first.rows.values()), first.quarantined) == (396, 2)
    gone(out, "user", "u3")
    again = prepare(PROBLEM, settings, out)
    assert (again.path, again.reused) == (first.path, True)
    assert (sum(again.rows.values()), again.quarantined) == (380, 0)
    assert len(set(users(again.path))) == 19
    assert {name: load_profile(again.path, name).rows for name in again.rows} == again.rows
    answers = load_association(again.path).answers("user")
    assert ({answer.of for answer in answers}, len(answers), sum(answer.rows for answer in answers)) == (
        {"values"},
        19,
        again.rows["train"],
    )
    assert find(PROBLEM, settings, out) == again
    people(tmp_path / "in", parts=3)
    newer = prepare(PROBLEM, settings, out)
    assert not newer.reused
    assert (sum(newer.rows.values()), newer.quarantined) == (570, 0)
    assert set(users(newer.path)) == set(users(again.path))
    manifest = json.loads((newer.path / "manifest.json").read_text())
    assert manifest["suppressed"] == {"list": Suppressed.load(out / "p").digest, "rows": 30}
    assert manifest["unlabelled"] == 0
    for file in (item for item in out.rglob("*") if item.is_file()):
        text = str(pq.read_table(file).to_pylist()) if file.suffix == ".parquet" else file.read_text()
        assert not re.search(r"\bu3\b", text)


@pytest.mark.ray
def test_a_snapshot_that_could_not_be_cleaned_is_made_anew_without_the_person(ray_runtime: Runtime, tmp_path: Path) -> None:
    path, out = people(tmp_path / "in"), tmp_path / "out"
    whole, dropped = prepare(PROBLEM, data(path), out), prepare(PROBLEM, data(path, "drop"), out)
    assert sum(dropped.rows.values()) == 396
    gone(out, "user", "u3")
    anew = prepare(PROBLEM, data(path, "drop"), out)
    assert (anew.reused, sum(anew.rows.values()), anew.quarantined) == (False, 380, 0)
    assert anew.path != dropped.path
    assert find(PROBLEM, data(path, "drop"), out) == prepare(PROBLEM, data(path, "drop"), out)
    assert prepare(PROBLEM, data(path), out).path == whole.path
    masked = prepare(PROBLEM, data(path, {"kind": "mask", "keep_last": 0}), out)
    assert sum(masked.rows.values()) == 380


@pytest.mark.ray
def test_a_check_of_a_contract_reads_nobody_who_was_forgotten(ray_runtime: Runtime, tmp_path: Path) -> None:
    path, out = people(tmp_path / "in"), tmp_path / "out"
    (tmp_path / "contract.yaml").write_text(contract(user="string", n="int", y="string").to_yaml())
    settings = data(path, contract=str(tmp_path / "contract.yaml"))
    assert [item.rows for item in check_source(PROBLEM, settings, out)] == [2]
    gone(out, "user", "u3")
    assert check_source(PROBLEM, settings, out) == []


@pytest.mark.ray
def test_a_list_that_fits_nothing_or_everything_is_named(ray_runtime: Runtime, tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [7] * 100, "y": ["yes", "no"] * 50}), tmp_path / "a.parquet")
    settings, out = data("", source=ParquetSource(path=str(tmp_path / "a.parquet"))), tmp_path / "out"
    gone(out, "person", "7")
    found = json.loads((prepare(PROBLEM, settings, out).path / "manifest.json").read_text())
    assert "the data has no column 'person', by which people were forgotten: their rows cannot be told from others" in found["warnings"]
    assert found["suppressed"]["rows"] == 0
    (tmp_path / "out" / "p").rename(tmp_path / "old")
    gone(out, "user", "7")
    with pytest.raises(DataError, match="all 100 rows belong to people who were forgotten"):
        prepare(PROBLEM, settings, out)
    assert sorted(item.name for item in (out / "p").iterdir()) == ["suppressed.json", "suppressed.salt"]
