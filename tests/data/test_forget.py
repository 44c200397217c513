from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlp.config.privacy import Generalise, Hash, Mask, Pseudonymise, Rule
from raymlp.core.errors import ConfigError, DataError
from raymlp.core.files import sha256_file
from raymlp.data import parquet
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.forget import Forgotten, Wanted, forget, person
from raymlp.data.place import recover
from raymlp.data.snapshot import load_contract, load_profile, open_snapshot, read_split
from tests.data.people import KEY, SECRET, SNAPSHOT_SECRET, USERS, make_snapshot


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET)
    monkeypatch.setenv("RAYMLP_SNAPSHOT_KEY", SNAPSHOT_SECRET)


HOUR = "2026-03-01T10"


def make_log(folder: Path) -> None:
    """Three files: of ten users by input, of one by routing key, and of user-3 alone; and a label a prediction."""
    (folder / "log" / HOUR).mkdir(parents=True)
    (folder / "labels").mkdir()
    token = KEY.hashed("user-3", column="user", length=32)
    routing = KEY.hashed("user-3", column="routing_key", length=32)
    files = {"a": (USERS[:10], ["-"] * 10), "b": ([None, None], [routing, "user-9"]), "c": ([token], ["-"])}
    number = 0
    for name, (users, routes) in files.items():
        ids = [f"id{number + i}" for i in range(len(users))]
        number += len(users)
        log = {"prediction_id": ids, "routing_key": routes, "time": pa.array([0] * len(ids), pa.timestamp("us", "UTC"))}
        pq.write_table(pa.table({**log, "in.user": pa.array(users, pa.string())}), folder / "log" / HOUR / f"{name}.parquet")
        pq.write_table(pa.table({"prediction_id": ids, "label": ["yes"] * len(ids)}), folder / "labels" / f"{name}.parquet")


def forgotten(folder: Path, wanted: Wanted, **changes: Any) -> Forgotten:
    return forget(wanted, snapshots=folder / "snapshots", log=folder / "log", labels=folder / "labels", **changes)


@pytest.mark.parametrize("rule", [None, Hash(), Pseudonymise()])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_person_is_gone_from_every_snapshot_and_the_digest_says_so(tmp_path: Path, rule: Rule | None, sealed: bool) -> None:
    folder = tmp_path / "snapshots"
    paths = [make_snapshot(folder, name, rule, sealed=sealed) for name in ("one", "two")]
    before = open_snapshot(paths[0])
    untouched = read_split(paths[0], "valid").num_rows
    found = forgotten(tmp_path, person(folder, "user", "user-3", {}))
    assert found.snapshots == {"one": 11, "two": 11}
    after = open_snapshot(paths[0])
    assert after.digest != before.digest
    assert found.digests >= {before.digest, after.digest}
    assert (after.rows, after.quarantined, untouched) == ({"train": 65, "valid": 25}, 0, 28)
    left = pa.concat_tables([read_split(paths[0], name) for name in after.rows])
    assert sorted(left.column("n").to_pylist()) == [i for i in range(100) if i % 10 != 3]
    profile = load_profile(paths[0])
    assert (profile.rows, len(profile.columns["user"].counts())) == (65, 9)
    manifest = json.loads((paths[0] / "manifest.json").read_text())
    assert manifest["files"] == {str(f.relative_to(paths[0])): sha256_file(f) for f in sorted(paths[0].rglob("*.parquet"))}
    assert manifest["forgotten"][0]["rows"] == 11
    assert manifest["forgotten"][0]["digest_before"] == before.digest
    assert manifest["key"] == "k"
    assert sorted(item.name for item in folder.iterdir()) == ["one", "suppressed.json", "two"]
    for file in (item for item in folder.rglob("*") if item.is_file()):
        assert b"user-3" not in file.read_bytes()
        assert file.suffix != ".parquet" or parquet.is_encrypted(file) is sealed
        values = parquet.read(file).column("user").to_pylist() if file.suffix == ".parquet" else []
        assert not {"user-3", KEY.hashed("user-3", column="user", length=32)} & set(values)
    again = forgotten(tmp_path, person(folder, "user", "user-3", {}))
    assert (again.snapshots, open_snapshot(paths[0]).digest) == ({}, after.digest)
    later = forgotten(tmp_path, person(folder, "user", "user-4", {}))
    assert later.digests >= {before.digest, after.digest, open_snapshot(paths[0]).digest}


def test_the_log_and_the_labels_lose_the_person_under_every_form(tmp_path: Path) -> None:
    make_snapshot(tmp_path / "snapshots", "one", Hash())
    make_snapshot(tmp_path / "snapshots", "two")
    make_log(tmp_path)
    found = forgotten(tmp_path, person(tmp_path / "snapshots", "user", "user-3", {}))
    assert (found.log_rows, found.labels, found.notes) == (3, 3, ())
    ids = pa.concat_tables([pq.read_table(file) for file in (tmp_path / "log" / HOUR).iterdir()]).column("prediction_id").to_pylist()
    assert sorted(ids) == sorted(f"id{i}" for i in range(13) if i not in (3, 10, 12))
    assert sorted(file.name for file in (tmp_path / "log" / HOUR).iterdir()) == ["a.parquet", "b.parquet"]
    assert sorted(pq.read_table(tmp_path / "labels").column("prediction_id").to_pylist()) == sorted(ids)


def test_a_dry_run_counts_and_changes_nothing(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "snapshots", "one")
    make_log(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    found = forgotten(tmp_path, person(path.parent, "user", "user-3", {}), dry_run=True)
    assert (found.snapshots, found.log_rows) == ({"one": 11}, 1)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_number_is_found_however_it_is_written(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "snapshots", "one")
    assert forgotten(tmp_path, person(path.parent, "n", "007", {})).snapshots == {"one": 1}
    assert 7 not in read_split(path, "train").column("n").to_pylist()


def test_rows_that_are_too_old_go_with_their_predictions(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "snapshots", "one")
    make_log(tmp_path)
    found = forgotten(tmp_path, Wanted("at", oldest=datetime(2026, 3, 1, tzinfo=UTC) - timedelta(days=49)))
    assert (found.snapshots, found.log_rows, found.labels) == ({"one": 50}, 13, 13)
    assert open_snapshot(path).rows == {"train": 50}
    assert json.loads((path / "manifest.json").read_text())["forgotten"][0]["why"] == "older than 2026-01-11"


def test_what_cannot_name_one_person_is_refused_or_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    make_snapshot(folder, "one", Mask())
    with pytest.raises(ConfigError, match="'user' is masked or generalised in every snapshot"):
        person(folder, "user", "user-3", {})
    with pytest.raises(DataError, match=r"no snapshot has a column 'usr'.*Did you mean 'user'"):
        person(folder, "usr", "user-3", {})
    make_snapshot(folder, "two", Generalise(first=5))
    make_snapshot(folder, "three")
    make_log(tmp_path)
    found = forgotten(tmp_path, person(folder, "user", "user-3", {}))
    assert (found.snapshots, found.log_rows) == ({"three": 11}, 0)
    assert len(found.notes) == 3


def test_without_the_key_nothing_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_snapshot(tmp_path / "snapshots", "one", Hash())
    monkeypatch.delenv("RAYMLP_PRIVACY_KEY")
    with pytest.raises(ConfigError, match="RAYMLP_PRIVACY_KEY is not set"):
        person(tmp_path / "snapshots", "user", "user-3", {})


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_dies_between_two_renames_leaves_a_whole_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    folder = tmp_path / "snapshots"
    path = make_snapshot(folder, "one")
    wanted = person(folder, "user", "user-3", {})
    calls = iter(range(9))
    real = os.replace

    def dies(*places: Any) -> None:
        if next(calls) == failing:
            raise KeyboardInterrupt
        real(*places)

    monkeypatch.setattr("raymlp.runtime.store.os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        forgotten(tmp_path, wanted)
    monkeypatch.setattr("raymlp.runtime.store.os.replace", real)
    recover(folder)
    assert read_split(path, "train").num_rows == 72
    assert forgotten(tmp_path, wanted).snapshots == {"one": 11}
    assert read_split(path, "train").num_rows == 65


def test_an_example_that_names_the_person_goes(tmp_path: Path) -> None:
    path = make_snapshot(tmp_path / "snapshots", "one")
    contract = Contract(columns={**load_contract(path).columns, "user": ColumnContract(type="string", example="user-3")})
    (path / "contract.yaml").write_text(contract.to_yaml())
    forgotten(tmp_path, person(path.parent, "user", "user-3", {}))
    assert load_contract(path).columns["user"].example is None
