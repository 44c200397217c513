"""Files that are broken, lie, or mean harm: read rightly, or an error that names file, row and column where known."""

from __future__ import annotations

import gzip
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raymlp.config.sources import CsvSource, ParquetSource
from raymlp.core.errors import DataError
from raymlp.data import sources
from raymlp.data.sources import files

NAMES = ["Zoë", "Łódź", "köln", "plain"]


def csv(path: Path, **settings: Any) -> CsvSource:
    return CsvSource(path=str(path), **settings)


def rows(source: Any, bad: sources.BadRows | None = None, types: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    types = types or sources.schema_of(source)
    found = []
    for part in sources.parts_of(source):
        for table in sources.read(source, part, types, batch_rows=100, bad=bad or sources.BadRows()):
            found += table.to_pylist()
    return found


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "utf-32", "utf-8"])
def test_text_is_read_in_the_encoding_that_is_set(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(("n,name\n" + "".join(f"{i},{name}\n" for i, name in enumerate(NAMES))).encode(encoding))
    assert rows(csv(tmp_path / "a.csv", encoding=encoding)) == [{"n": i, "name": name} for i, name in enumerate(NAMES)]


def test_latin_1_and_windows_text_is_read_when_set_also_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress("name\nZoë\ncafé\n".encode("latin-1")))
    assert [row["name"] for row in rows(csv(tmp_path / "a.csv.gz", encoding="latin-1"))] == ["Zoë", "café"]
    (tmp_path / "b.csv").write_bytes("price\n5 €\n".encode("cp1252"))
    assert rows(csv(tmp_path / "b.csv", encoding="cp1252")) == [{"price": "5 €"}]


@given(st.lists(st.text(st.characters(codec="utf-16", exclude_characters=',"\r\n?\0'), min_size=1), min_size=1, max_size=8))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_reads_the_same_from_utf_16_as_from_utf_8(tmp_path: Path, values: list[str]) -> None:
    text = "id,name\n" + "".join(f"{i},x{value}x\n" for i, value in enumerate(values))
    (tmp_path / "a.csv").write_bytes(text.encode("utf-16"))
    (tmp_path / "b.csv").write_bytes(text.encode("utf-8"))
    found = rows(csv(tmp_path / "a.csv", encoding="utf-16"))
    assert [row["name"] for row in found] == [f"x{value}x" for value in values]
    assert found == rows(csv(tmp_path / "b.csv"))


def test_wrong_bytes_are_named_by_file_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"n,name\n1,ok\n2,\xe9t\xe9\n3,ok\n")
    with pytest.raises(DataError, match=r"a\.csv, line 3: the column 'name' is not UTF-8 text.*data\.source\.encoding"):
        rows(csv(tmp_path / "a.csv"))


def test_wrong_bytes_far_behind_the_start_are_named_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"n,name\n" + b"1,ok\n" * 300_000 + b"2,\xe9\n")
    with pytest.raises(DataError, match=r"a\.csv, line 300002: the column 'name' is not UTF-8 text"):
        rows(csv(tmp_path / "a.csv"), types={"n": "int", "name": "string"})


def test_bytes_that_are_not_of_the_set_encoding_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("n,name\n1,ok\n".encode("utf-16") + b"\x00\xd8\x0a\x00")
    with pytest.raises(DataError, match=r"a\.csv is not utf-16 text in or after line 1.*data\.source\.encoding"):
        rows(csv(tmp_path / "a.csv", encoding="utf-16"))


def test_an_unknown_encoding_is_refused_with_the_config() -> None:
    with pytest.raises(ValueError, match="'utf-7x' is no text encoding"):
        CsvSource(path="a.csv", encoding="utf-7x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PAR1xxxx", "is a Parquet file; set data.source.kind=parquet"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "is gzip data; let its name end in .gz"),
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16 text; set data.source.encoding=utf-16"),
        ("a,b\n1,2\n".encode("utf-16-le"), "holds zero bytes"),
        (b"SQLite format 3\0" + b"\0" * 80, "is an SQLite database"),
        (b"PK\x03\x04" + b"\0" * 20, "is a zip archive or a workbook"),
        (b"a,b\n", "has a header and no rows"),
        (b"a,b,a\n1,2,3\n", "has 2 columns named 'a'"),
        (b"", "is empty"),
    ],
)
def test_a_csv_that_is_something_else_says_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.csv") as error:
        rows(csv(tmp_path / "a.csv"))
    assert words in str(error.value)


def test_a_wrong_delimiter_is_found_in_a_single_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a;b;c\n1;2;3\n4;5;6\n")
    with pytest.raises(DataError, match=r"a\.csv has the one column 'a;b;c'.*found ';' in every row. Set data.source.delimiter"):
        sources.schema_of(csv(tmp_path / "a.csv"))
    assert sources.schema_of(csv(tmp_path / "a.csv", delimiter=";")) == {"a": "int", "b": "int", "c": "int"}


def test_a_true_single_column_is_no_wrong_delimiter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("time|place\nnoon\nevening|park\n")
    assert sources.schema_of(csv(tmp_path / "a.csv")) == {"time|place": "string"}


def test_ragged_rows_are_counted_and_numbered_also_when_a_type_breaks_later(tmp_path: Path) -> None:
    good = "1,2\n" * 2000
    (tmp_path / "a.csv").write_text("a,b\n7\n" + good + "8,9,10\n" + "oops,1\n" + "5\n")
    bad = sources.BadRows()
    found = rows(csv(tmp_path / "a.csv"), bad, {"a": "int", "b": "int"})
    assert len(found) == 2001
    assert found[-1] == {"a": "oops", "b": "1"}
    assert bad.count == 3
    assert bad.reasons[:2] == ["row 2 has 1 fields; expected 2", "row 2003 has 3 fields; expected 2"]


def test_reasons_of_bad_rows_do_not_grow_without_end() -> None:
    bad = sources.BadRows()
    for i in range(12_000):
        bad.add(str(i))
    assert (bad.count, len(bad.reasons)) == (12_000, 10_000)


@pytest.mark.parametrize("body", [b'1,"' + b"x" * (12 << 20) + b'"\n2,y\n', b'1,"never closed\n' + b"2,y\n" * (3 << 20)])
def test_a_row_beyond_the_limit_stops_with_its_place(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n" + b"0,ok\n" * 3 + body)
    with pytest.raises(DataError, match=r"a\.csv: the row after row \d+ is longer than 1 MiB.*data\.source\.max_row_mb"):
        rows(csv(tmp_path / "a.csv", max_row_mb=1), types={"a": "int", "b": "string"})


def test_a_long_row_is_read_when_the_limit_is_raised(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n0,ok\n1," + b"x" * (5 << 20) + b"\n" + b"2,y\n" * (1 << 20))
    found = csv(tmp_path / "a.csv", max_row_mb=8)
    sizes = [
        len(value)
        for part in sources.parts_of(found)
        for table in sources.read(found, part, {"a": "int", "b": "string"}, batch_rows=1 << 21, bad=sources.BadRows())
        for value in table.column("b").slice(0, 2).to_pylist()
    ]
    assert 5 << 20 in sizes


@pytest.mark.parametrize("ending", ["gz", "zip"])
def test_a_compressed_bomb_is_refused_while_it_streams(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FREE_BYTES", 1 << 20)
    path, text = tmp_path / f"a.csv.{ending}", b"a,b\n" + b"1,2\n" * (4 << 20)
    if ending == "gz":
        path.write_bytes(gzip.compress(text))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.csv", text)
    with pytest.raises(DataError, match=rf"a\.csv\.{ending} expands .* decompression bomb .*data\.source\.max_expansion"):
        rows(csv(path), types={"a": "int", "b": "int"})
    assert len(rows(csv(path, max_expansion=2000), types={"a": "int", "b": "int"})) == 4 << 20


@pytest.mark.parametrize("ending", ["gz", "zip"])
def test_a_truncated_archive_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.csv.{ending}"
    path.write_bytes(gzip.compress(b"a,b\n" + np.random.default_rng(0).bytes(9000).hex().encode())[:-300])
    with pytest.raises(DataError, match=r"a\.csv\.\w+ cannot be read"):
        rows(csv(path))


def test_a_folder_in_place_of_a_file_gives_its_csv_files_or_says_that_it_has_none(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"data names no file; .*\.csv"):
        sources.parts_of(csv(tmp_path / "data"))
    (tmp_path / "data" / "_SUCCESS").write_text("")
    (tmp_path / "data" / "notes.md").write_text("not a table")
    (tmp_path / "data" / "b.csv").write_text("a\n2\n")
    (tmp_path / "data" / "a.CSV").write_text("a\n1\n")
    assert rows(csv(tmp_path / "data")) == [{"a": 1}, {"a": 2}]


# ------------------------------------------------------------------------------------------------- parquet


def parquet(path: Path, **settings: Any) -> ParquetSource:
    return ParquetSource(path=str(path), **settings)


def test_a_parquet_bomb_of_numbers_is_refused_by_its_footer(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pq.ParquetWriter(
        path, pa.schema({"x": pa.int64()}), compression="zstd", data_page_size=1 << 30, max_rows_per_page=20_000_000
    ) as writer:
        zeros = pa.table({"x": np.zeros(20_000_000, np.int64)})
        for _ in range(14):
            writer.write_table(zeros, row_group_size=20_000_000)
    assert path.stat().st_size < 8192
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match=r"a\.parquet expands .* to 2,240,\d+,\d+ or more, as a decompression bomb does"):
        sources.schema_of(parquet(path))
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def text_bomb(path: Path, num: int, size: int) -> ParquetSource:
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num, np.int32)), pa.array(["y" * size]))
    pq.write_table(pa.table({"n": np.arange(num) % 2, "x": column}), path, compression="zstd")
    return parquet(path)


def test_a_parquet_bomb_of_text_is_refused_before_it_is_written_out(tmp_path: Path) -> None:
    source = text_bomb(tmp_path / "a.parquet", 100_000, 100_000)
    assert (tmp_path / "a.parquet").stat().st_size < 4096
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match=r"a\.parquet, column 'x', rows 0 to [\d,]+, expands [\d,]+ bytes to [\d,]+ or more"):
        next(sources.read(source, sources.parts_of(source)[0], sources.schema_of(source), batch_rows=65_536, bad=sources.BadRows()))
    assert pa.total_allocated_bytes() - before < 16 << 20


def test_long_values_that_are_allowed_come_in_batches_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raymlp.data.sources import parquet as kind

    monkeypatch.setattr(files, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(kind, "BATCH_BYTES", 1 << 20)
    source = text_bomb(tmp_path / "a.parquet", 1000, 10_000).model_copy(update={"max_expansion": 1e6})
    tables = list(sources.read(source, sources.parts_of(source)[0], sources.schema_of(source), batch_rows=65_536, bad=sources.BadRows()))
    assert sum(table.num_rows for table in tables) == 1000
    assert all(table.nbytes < 1.2 * (1 << 20) for table in tables)
    assert all(table.column("x")[0].as_py() == "y" * 10_000 for table in tables)
    assert [value for table in tables for value in table.column("n").to_pylist()] == [i % 2 for i in range(1000)]


def test_an_honest_repetitive_parquet_is_no_bomb(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": np.zeros(1_000_000), "k": ["same"] * 1_000_000}), tmp_path / "a.parquet", compression="zstd")
    assert sources.read_all(parquet(tmp_path / "a.parquet")).num_rows == 1_000_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n1,2\n", "cannot be read"),
        (b"PAR1", "cannot be read"),
        (b"PAR1" + b"\xff" * 40 + b"PAR1", "cannot be read"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_parquet_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.parquet {words}"):
        sources.read_all(parquet(tmp_path / "a.parquet"))


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_parquet_with_a_changed_byte_is_read_or_refused_by_name(tmp_path: Path, place: int, change: int) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"x": list(range(300)), "k": [f"v{i % 7}" for i in range(300)]})
    pq.write_table(table, path, row_group_size=100)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= change
    path.write_bytes(data)
    outcome: Any = table
    try:
        outcome = sources.read_all(parquet(path))
    except DataError as error:
        outcome = str(error)
    assert "a.parquet" in outcome if isinstance(outcome, str) else outcome.num_rows >= 0


def test_a_parquet_folder_without_files_and_a_file_without_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty names no file"):
        sources.parts_of(parquet(tmp_path / "empty"))
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet.*no rows"):
        sources.read_all(parquet(tmp_path / "a.parquet"))
