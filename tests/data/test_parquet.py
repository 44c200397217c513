from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlp.config.data import Data
from raymlp.config.privacy import Privacy
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.config.sources import CsvSource
from raymlp.config.split import RandomSplit
from raymlp.core.errors import ConfigError, DataError
from raymlp.data import parquet
from raymlp.data.snapshot import load_profile, prepare, read_split

SECRET = "a snapshot secret of the tests, long enough"
KEY = parquet.SnapshotKey(SECRET)
TABLE = pa.table({"who": ["somebody in particular"] * 300, "n": range(300)})


def written(path: Path, key: parquet.SnapshotKey | None) -> Path:
    writer = parquet.Writer(path, key)
    writer.write(TABLE.slice(0, 0))
    writer.write(TABLE.slice(0, 100))
    writer.write(TABLE.slice(100))
    writer.close()
    return path


@pytest.mark.parametrize("key", [None, KEY])
def test_rows_come_back_as_they_were_written(tmp_path: Path, key: parquet.SnapshotKey | None) -> None:
    path = written(tmp_path / "a.parquet", key)
    assert parquet.read(path, key=key) == TABLE
    assert parquet.read(path, ["n"], key=key) == TABLE.select(["n"])
    assert pa.concat_tables(parquet.batches(path, rows=70, key=key)) == TABLE
    assert (parquet.num_rows(path, key=key), parquet.is_encrypted(path)) == (300, key is not None)


def test_a_file_without_rows_is_not_there(tmp_path: Path) -> None:
    parquet.Writer(tmp_path / "a.parquet").close()
    assert not (tmp_path / "a.parquet").exists()


def test_an_encrypted_file_shows_neither_values_nor_columns_nor_key(tmp_path: Path) -> None:
    plain, secret = (written(tmp_path / name, key).read_bytes() for name, key in (("a", None), ("b", KEY)))
    assert b"somebody" in plain
    assert not any(text in secret for text in (b"somebody", b"who", SECRET.encode()))
    assert repr(KEY) == "SnapshotKey(***)"


def test_no_key_another_key_and_a_changed_file_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.parquet", KEY)
    monkeypatch.delenv("RAYMLP_SNAPSHOT_KEY", raising=False)
    with pytest.raises(ConfigError, match="RAYMLP_SNAPSHOT_KEY is not set, and the snapshot is encrypted"):
        parquet.read(path)
    monkeypatch.setenv("RAYMLP_SNAPSHOT_KEY", "x" * 31)
    with pytest.raises(ConfigError, match="has 31 characters"):
        parquet.read(path)
    monkeypatch.setenv("RAYMLP_SNAPSHOT_KEY", "x" * 32)
    with pytest.raises(DataError, match=r"a\.parquet cannot be decrypted: .*another key.*Set RAYMLP_SNAPSHOT_KEY"):
        parquet.read(path)
    monkeypatch.setenv("RAYMLP_SNAPSHOT_KEY", SECRET)
    assert parquet.read(path) == TABLE
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="cannot be decrypted"):
        parquet.read(path)
    with pytest.raises(OSError, match="no decryption found"):
        pq.read_table(path)


@pytest.mark.ray
def test_a_snapshot_is_encrypted_as_a_whole_and_read_with_the_key_alone(
    ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (f"somebody{i % 7},{'x' if i == 9 else i},{'yes' if i % 3 else 'no'}" for i in range(300))
    (tmp_path / "a.csv").write_text("\n".join(["who,n,y", *rows]) + "\n")
    problem = Problem(name="p", task="binary", target="y", positive_class="yes")
    source = CsvSource(path=str(tmp_path / "a.csv"), types={"n": "int"})
    data = Data(source=source, split=RandomSplit(), privacy=Privacy(encrypt_snapshots=True))
    monkeypatch.delenv("RAYMLP_SNAPSHOT_KEY", raising=False)
    with pytest.raises(ConfigError, match="RAYMLP_SNAPSHOT_KEY is not set"):
        prepare(problem, data, tmp_path / "out")
    monkeypatch.setenv("RAYMLP_SNAPSHOT_KEY", SECRET)
    snapshot = prepare(problem, data, tmp_path / "out")
    assert (sum(snapshot.rows.values()), snapshot.quarantined) == (299, 1)
    assert read_split(snapshot.path, "train").num_rows == load_profile(snapshot.path).rows == snapshot.rows["train"]
    files = [file for file in snapshot.path.rglob("*") if file.is_file()]
    assert len([file for file in files if file.suffix == ".parquet" and parquet.is_encrypted(file)]) == 4
    assert not any(text in file.read_bytes() for file in files for text in (b"somebody", SECRET.encode()))
    assert json.loads((snapshot.path / "manifest.json").read_text())["rows"] == snapshot.rows
    monkeypatch.setenv("RAYMLP_SNAPSHOT_KEY", SECRET + "!")
    with pytest.raises(DataError, match=r"profile\.json cannot be decrypted"):
        load_profile(snapshot.path)
