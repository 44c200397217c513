"""The prediction log, from memory to files and back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raymlp.config.serve import Log
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.hours import log_files
from raymlp.serve.log import SCHEMA, Entry, PredictionLog, read_log
from raymlp.serve.routing import Routes

CONTRACT = Contract(columns={"hours": ColumnContract(type="int"), "at": ColumnContract(type="timestamp")})
MOMENT = datetime(2013, 7, 1, 9, tzinfo=UTC)


def entry(number: int, *, version: str = "1", status: int = 200) -> Entry:
    inputs = {"hours": number, "at": MOMENT} if status == 200 else None
    return Entry(f"id{number}", 0, 1_000.5 + number, version, f"key{number}", status, 0.25 if status == 200 else None, 1.5, inputs, "r")


def log_in(folder: Path, **settings: int) -> PredictionLog:
    log = PredictionLog(folder, Log(**settings), writer="replica")
    log.know("1", CONTRACT)
    return log


def test_rows_come_back_with_their_types_and_values(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.add(entry(1))
    log.add(entry(2, status=500))
    assert log.flush() == 2
    table = read_log(tmp_path)
    assert table.schema.field("time").type == pa.timestamp("us", tz="UTC")
    assert table.schema.field("in.hours").type == pa.int64()
    good, bad = table.to_pylist()
    assert good == {
        "prediction_id": "id1", "row": 0, "time": datetime.fromtimestamp(1_001.5, UTC), "version": "1", "routing_key": "key1",
        "status": 200, "prediction": 0.25, "latency_ms": 1.5, "routes": "r", "flags": None, "in.hours": 1, "in.at": MOMENT,
    }  # fmt: skip
    assert (bad["status"], bad["prediction"], bad["in.hours"], bad["in.at"]) == (500, None, None, None)


def test_a_log_without_files_has_columns_and_no_rows(tmp_path: Path) -> None:
    assert read_log(tmp_path / "absent").schema == SCHEMA
    assert read_log(tmp_path / "absent").num_rows == 0


def test_the_oldest_rows_go_when_too_many_wait_and_are_counted(tmp_path: Path) -> None:
    log = log_in(tmp_path, max_rows=3)
    for number in range(5):
        log.add(entry(number))
    log.flush()
    assert log.dropped == 2
    assert read_log(tmp_path)["prediction_id"].to_pylist() == ["id2", "id3", "id4"]


def test_it_is_due_when_enough_rows_wait(tmp_path: Path) -> None:
    log = log_in(tmp_path, flush_rows=2)
    log.add(entry(1))
    assert not log.is_due
    log.add(entry(2))
    assert log.is_due


def test_versions_with_other_columns_and_types_are_read_as_one_table_in_order_of_time(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.know("2", Contract(columns={"hours": ColumnContract(type="float"), "carrier": ColumnContract(type="string")}))
    log.add(entry(1))
    log.add(entry(0, version="2")._replace(inputs={"hours": 0.5, "carrier": "x"}))
    log.flush()
    assert len(log_files(tmp_path)) == 2
    table = read_log(tmp_path)
    assert table["in.hours"].to_pylist() == [0.5, 1.0]
    assert table["in.carrier"].to_pylist() == ["x", None]


def test_a_column_that_was_a_number_and_is_text_now_is_read_as_text(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.know("2", Contract(columns={"hours": ColumnContract(type="string")}))
    log.add(entry(1))
    log.add(entry(2, version="2")._replace(inputs={"hours": "two"}))
    log.flush()
    assert read_log(tmp_path)["in.hours"].to_pylist() == ["1", "two"]


def test_a_file_that_is_not_finished_is_not_read(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.add(entry(1))
    log.flush()
    (tmp_path / ".half.parquet").write_bytes(b"PAR1")
    assert read_log(tmp_path).num_rows == 1


def test_rows_wait_again_when_the_disk_refuses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_in(tmp_path)
    log.add(entry(1))
    log.add(entry(2))

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("raymlp.runtime.store.os.replace", full)
        with pytest.raises(OSError, match="no space"):
            log.flush()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert log.flush() == 2
    assert read_log(tmp_path)["prediction_id"].to_pylist() == ["id1", "id2"]


def test_each_hour_has_a_folder_and_a_reader_of_later_ones_opens_no_earlier_file(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for number, hour in ((1, 9), (2, 10), (3, 10), (4, 23)):
        log.add(entry(number)._replace(time=datetime(2026, 3, 1, hour, 59, 59, tzinfo=UTC).timestamp()))
    assert log.flush() == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2026-03-01T09", "2026-03-01T10", "2026-03-01T23"]
    (tmp_path / ".challengers").mkdir()
    since = datetime(2026, 3, 1, 10, 30, tzinfo=UTC)
    assert [path.parent.name for path in log_files(tmp_path, since=since)] == ["2026-03-01T10", "2026-03-01T23"]
    (tmp_path / "2026-03-01T09" / "broken.parquet").write_bytes(b"PAR1")
    assert read_log(tmp_path, since=since)["prediction_id"].to_pylist() == ["id2", "id3", "id4"]


def test_a_log_of_before_there_were_hours_is_read_too(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.add(entry(1))
    log.flush()
    (old,) = log_files(tmp_path)
    old.rename(tmp_path / old.name)
    log.add(entry(2))
    log.flush()
    assert read_log(tmp_path)["prediction_id"].to_pylist() == ["id1", "id2"]


def test_a_sample_is_the_same_again_has_its_share_and_nothing_to_do_with_the_version(tmp_path: Path) -> None:
    routes = Routes.of("1", {"1": 0.5, "2": 0.5})
    log = PredictionLog(tmp_path, Log(sample=0.25), writer="replica")
    for number in range(4_000):
        name = f"id{number}"  # without a routing key the version is chosen by the id as well
        log.add(entry(number, version=routes.choose(name), status=500 if number % 10 == 0 else 200)._replace(row=0, routing_key=name))
        log.add(entry(number, version=routes.choose(name))._replace(row=1, routing_key=name))
    log.flush()
    table = read_log(tmp_path)
    ids = table["prediction_id"].to_pylist()
    assert abs(len(set(ids)) - 1_000) < 4 * (4_000 * 0.25 * 0.75) ** 0.5
    assert len(ids) == 2 * len(set(ids)), "all rows of a request, or none"
    first = table.filter(pc.equal(table["row"], 0))
    share = first["version"].to_pylist().count("2") / first.num_rows
    failed = first["status"].to_pylist().count(500) / first.num_rows
    assert abs(share - 0.5) < 4 * (0.25 / first.num_rows) ** 0.5
    assert abs(failed - 0.1) < 4 * (0.09 / first.num_rows) ** 0.5
    again = PredictionLog(tmp_path / "again", Log(sample=0.25), writer="replica")
    for number in range(4_000):
        again.add(entry(number))
    again.flush()
    assert set(read_log(tmp_path / "again")["prediction_id"].to_pylist()) == set(ids)
