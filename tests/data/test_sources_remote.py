"""Remote sources: patience, the fallback, what is pushed into Parquet, and a real S3 protocol server."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raymlp.config.data import Data, Join
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.config.sources import CsvSource, ParquetSource, Retry
from raymlp.config.split import RandomSplit
from raymlp.core.errors import ConfigError, DataError, SourceUnavailable
from raymlp.data import sources
from raymlp.data.snapshot import prepare, snapshot_key
from raymlp.data.sources import files, retry

# ------------------------------------------------------------------------------------------------- pushed into Parquet


@pytest.fixture
def table(tmp_path: Path) -> pa.Table:
    rng = random.Random(0)
    rows = [
        {"n": i, "k": rng.choice(["AA", "UA", None]), "t": datetime(2013, 1, 1 + i // 10, tzinfo=UTC), "x": rng.random()}
        for i in range(200)
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    return table


def rows_of(source: ParquetSource, batch_rows: int = 64) -> list[dict[str, Any]]:
    types, bad = sources.schema_of(source), sources.BadRows()
    tables = [t for part in sources.parts_of(source) for t in sources.read(source, part, types, batch_rows=batch_rows, bad=bad)]
    return pa.concat_tables(tables).to_pylist()


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path, table: pa.Table) -> None:
    source = ParquetSource(path=str(tmp_path), columns=("x", "n"))
    assert list(sources.schema_of(source)) == ["x", "n"]
    assert rows_of(source) == table.select(["x", "n"]).to_pylist()


def test_row_groups_that_cannot_hold_a_row_are_never_opened(tmp_path: Path, table: pa.Table) -> None:
    source = ParquetSource(path=str(tmp_path), where=(("n", ">=", 175), ("k", "in", ("AA", "UA"))), columns=("x",))
    assert [part.piece for part in sources.parts_of(source)] == [(17, 18, 19)]
    assert rows_of(source) == table.slice(175).filter(pc.is_valid(pc.field("k"))).select(["x"]).to_pylist()


def test_moments_are_compared_as_utc(tmp_path: Path, table: pa.Table) -> None:
    source = ParquetSource(path=str(tmp_path), where=(("t", "<", "2013-01-03"),))
    assert len(rows_of(source)) == 20


@given(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), st.integers(-5, 205), st.sampled_from(["in", "not in"]))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_where_chooses_the_rows_that_python_would(tmp_path: Path, table: pa.Table, operator: Any, bound: int, membership: Any) -> None:
    import operator as op

    compare = {"==": op.eq, "!=": op.ne, "<": op.lt, "<=": op.le, ">": op.gt, ">=": op.ge}[operator]
    inside = membership == "in"
    wanted = [r for r in table.to_pylist() if compare(r["n"], bound) and r["k"] is not None and (r["k"] == "AA") == inside]
    source = ParquetSource(path=str(tmp_path), where=(("n", operator, bound), ("k", membership, ("AA",))))
    if wanted:
        assert rows_of(source) == wanted


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"columns": ("m",)}, "data.source.columns names 'm', which .* does not have"),
        ({"where": (("m", "==", 1),)}, "data.source.where names 'm'"),
        ({"where": (("n", "<", "many"),)}, r"data.source.where compares 'n' \(int64\) with 'many'"),
    ],
)
def test_a_column_or_value_that_does_not_fit_is_named(tmp_path: Path, table: pa.Table, settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sources.schema_of(ParquetSource(path=str(tmp_path), **settings))


def test_where_that_no_row_fits_says_so(tmp_path: Path, table: pa.Table) -> None:
    with pytest.raises(DataError, match=r"holds no rows; expected at least one that fits data\.source\.where"):
        sources.parts_of(ParquetSource(path=str(tmp_path), where=(("n", ">", 999),)))


# ------------------------------------------------------------------------------------------------- patience


class Flaky(pafs.FileSystemHandler):  # type: ignore[misc]
    """A folder on a store whose answers fail a given number of times, at the call or in the middle of a file."""

    def __init__(self, folder: Path, *, listings: int = 0, reads: int = 0) -> None:
        self.folder, self.listings, self.reads = folder, listings, reads
        self.local = pafs.LocalFileSystem()

    def get_type_name(self) -> str:
        return "flaky"

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        if self.listings:
            self.listings -= 1
            raise OSError("503 slow down")
        infos = self.local.get_file_info([str(self.folder / path) for path in paths])
        return [pafs.FileInfo(path, info.type, size=info.size) for path, info in zip(paths, infos, strict=True)]

    def open_input_stream(self, path: str) -> Any:
        return pa.PythonFile(self._file(path), mode="r")

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(self._file(path), mode="r")

    def _file(self, path: str) -> Any:
        handler = self

        class File:
            def __init__(self) -> None:
                self.file = (handler.folder / path).open("rb")
                self.closed = False

            def read(self, size: int = -1) -> bytes:
                if self.file.tell() > 1 << 20 and handler.reads:
                    handler.reads -= 1
                    raise OSError("connection reset")
                return self.file.read(size)

            def seek(self, *place: int) -> int:
                return self.file.seek(*place)

            def tell(self) -> int:
                return self.file.tell()

            def size(self) -> int:
                return (handler.folder / path).stat().st_size

            def close(self) -> None:
                self.file.close()
                self.closed = True

            def readable(self) -> bool:
                return True

            def seekable(self) -> bool:
                return True

            def writable(self) -> bool:
                return False

        return File()

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(name)

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_file = delete_root_dir_contents = None
    get_file_info_selector = move = open_append_stream = open_output_stream = normalize_path = None


def flaky(monkeypatch: pytest.MonkeyPatch, folder: Path, **failures: int) -> list[float]:
    """Makes every path one on a flaky store; gives the list of waits."""
    handler = Flaky(folder, **failures)
    handler.normalize_path = lambda path: path  # type: ignore[assignment]
    waits: list[float] = []
    monkeypatch.setattr(files, "locate", lambda path: (pafs.PyFileSystem(handler), path))
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    return waits


def test_a_store_that_fails_twice_is_asked_a_third_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    waits = flaky(monkeypatch, tmp_path, listings=2)
    assert sources.parts_of(CsvSource(path="a.csv", retry=Retry(attempts=3, first_wait_s=2)))[0].path == "a.csv"
    assert len(waits) == 2
    assert 1 <= waits[0] <= 2 <= waits[1] <= 4


def test_a_read_that_breaks_off_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("a,b\n7\n" + "".join(f"{i},x\n" for i in range(500_000)))
    waits = flaky(monkeypatch, tmp_path, reads=2)
    source, bad = CsvSource(path="a.csv", max_row_mb=0.5), sources.BadRows()
    part = sources.parts_of(source)[0]
    found = list(sources.read(source, part, {"a": "int", "b": "string"}, batch_rows=50_000, bad=bad))
    assert [value for table in found for value in table.column("a").to_pylist()] == list(range(500_000))
    assert (len(waits), bad.count) == (2, 1)


def test_a_store_that_keeps_failing_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("a\n1\n")
    waits = flaky(monkeypatch, tmp_path, listings=99)
    with pytest.raises(SourceUnavailable, match=r"a\.csv broke off: .*503 slow down.*Tried 4 times"):
        sources.parts_of(CsvSource(path="a.csv"))
    assert len(waits) == 3


def test_a_local_file_that_is_wrong_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError):
        sources.parts_of(ParquetSource(path=str(tmp_path / "a.parquet")))
    assert waits == []


# ------------------------------------------------------------------------------------------------- the fallback

PROBLEM = Problem(name="toy", task="binary", target="y", positive_class="1")


def test_patience_is_no_part_of_what_a_snapshot_holds(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,0\n2,1\n")
    patient = [Data(source=CsvSource(path=str(tmp_path / "a.csv"), retry=Retry(attempts=n)), split=RandomSplit()) for n in (1, 9)]
    assert snapshot_key(PROBLEM, patient[0]) == snapshot_key(PROBLEM, patient[1])


@pytest.mark.ray
def test_the_fallback_is_read_when_the_source_is_gone_and_the_manifest_names_both(
    ray_runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "yesterday.csv").write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(200)))
    gone, kept = CsvSource(path=str(tmp_path / "today.csv")), CsvSource(path=str(tmp_path / "yesterday.csv"))
    with pytest.raises(SourceUnavailable, match=r"today\.csv names no file"):
        prepare(PROBLEM, Data(source=gone, split=RandomSplit()), tmp_path / "out")
    with caplog.at_level("WARNING"):
        snapshot = prepare(PROBLEM, Data(source=gone, fallback=kept, split=RandomSplit()), tmp_path / "out")
    warning = json.loads((snapshot.path / "manifest.json").read_text())["warnings"][0]
    assert warning in caplog.text
    assert "today.csv is unavailable" in warning
    assert "yesterday.csv was read in its place" in warning
    assert sum(snapshot.rows.values()) == 200
    plain = prepare(PROBLEM, Data(source=kept, split=RandomSplit()), tmp_path / "out")
    assert plain.path != snapshot.path
    assert json.loads((plain.path / "manifest.json").read_text())["warnings"] == []


# ------------------------------------------------------------------------------------------------- S3


def put(store: Any, path: str, content: bytes) -> None:
    with store.open_output_stream(path) as file:
        file.write(content)


def test_csv_and_parquet_are_read_from_s3_by_address_folder_and_glob(bucket: Any) -> None:
    store, query = bucket
    put(store, "lake/csv/b.csv", b"n,name\n3,c\n")
    put(store, "lake/csv/a.csv", "n,name\n1,Zoë\n2,b\n".encode())
    expected = [{"n": 1, "name": "Zoë"}, {"n": 2, "name": "b"}, {"n": 3, "name": "c"}]
    for path in ("lake/csv", "lake/csv/*.csv"):
        assert sources.read_all(CsvSource(path=f"s3://{path}?{query}")).to_pylist() == expected
    pq.write_table(pa.table({"n": list(range(100))}), "lake/p/a.parquet", filesystem=store, row_group_size=10)
    source = ParquetSource(path=f"s3://lake/p/a.parquet?{query}", where=(("n", ">=", 95),))
    assert sources.read_all(source).column("n").to_pylist() == [95, 96, 97, 98, 99]
    assert [fact["file"] for fact in sources.fingerprint(source)] == ["a.parquet"]


def test_a_fingerprint_on_s3_changes_with_the_object(bucket: Any) -> None:
    store, query = bucket
    source = CsvSource(path=f"s3://lake/f/a.csv?{query}")
    put(store, "lake/f/a.csv", b"a\n1\n")
    before = sources.fingerprint(source)
    assert before == sources.fingerprint(source)
    put(store, "lake/f/a.csv", b"a\n123\n")
    assert before != sources.fingerprint(source)


def test_what_is_not_on_s3_or_broken_there_is_named(bucket: Any) -> None:
    store, query = bucket
    with pytest.raises(SourceUnavailable, match=r"s3://lake/none\.csv.* names no file"):
        sources.parts_of(CsvSource(path=f"s3://lake/none.csv?{query}"))
    put(store, "lake/broken/a.parquet", b"PAR1 no more")
    with pytest.raises(DataError, match=r"lake/broken/a\.parquet"):
        sources.parts_of(ParquetSource(path=f"s3://lake/broken/a.parquet?{query}", retry=Retry(attempts=1)))


def test_an_s3_server_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    address = "s3://lake/a.csv?endpoint_override=http://127.0.0.1:9&region=us-east-1"
    with pytest.raises(SourceUnavailable, match=r"lake/a\.csv.*Tried 1 time\."):
        sources.parts_of(CsvSource(path=address, retry=Retry(attempts=1)))


def test_a_plan_goes_by_the_fallback_when_the_source_is_gone(tmp_path: Path) -> None:
    from raymlp.data.snapshot import reachable
    from raymlp.data.staging import columns_of

    (tmp_path / "kept.csv").write_text("x,y\n1,0\n")
    gone, kept = CsvSource(path=str(tmp_path / "gone.csv")), CsvSource(path=str(tmp_path / "kept.csv"))
    both = Data(source=gone, fallback=kept, split=RandomSplit())
    assert columns_of(PROBLEM, reachable(both)) == {"x": "int", "y": "int"}
    assert reachable(both.fallen_back()) == both.fallen_back()
    with pytest.raises(SourceUnavailable, match=r"gone\.csv"):
        reachable(both.model_copy(update={"fallback": None}))


def test_a_table_to_join_that_is_gone_does_not_call_for_the_fallback(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,0\n2,1\n")
    kept, gone = CsvSource(path=str(tmp_path / "a.csv")), CsvSource(path=str(tmp_path / "side.csv"))
    data = Data(source=kept, fallback=kept, joins=(Join(source=gone, keys=("x",)),), split=RandomSplit())
    with pytest.raises(DataError, match=r"data\.joins: .*side\.csv names no file") as error:
        prepare(PROBLEM, data, tmp_path / "out")
    assert not isinstance(error.value, SourceUnavailable)
