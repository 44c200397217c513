"""From a source to the rows that a model takes: types, joins that are needed, columns that are kept, people who were forgotten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raymlp.config.data import Data
from raymlp.config.predict import Predict
from raymlp.config.problem import Problem
from raymlp.core.errors import ConfigError, DataError
from raymlp.data import sources
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.suppression import Sieve, Suppressed
from raymlp.predict import rows as reading
from raymlp.predict.rows import Rows, _cut, rows_of, without_target

MODEL = Contract(
    columns={"zip": ColumnContract(type="string"), "n": ColumnContract(type="int", maximum=9), "size": ColumnContract(type="float")}
)
"""What the model of these tests reads: `size` comes from a join."""
PROBLEM = Problem(name="toy", task="binary", target="y", id_columns=("id",))


@pytest.fixture(autouse=True)
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("new.csv").write_text("id,zip,n,shop,note\n" + "".join(f"{i},0050{i},{i},{i % 2},a{i}\n" for i in range(8)))
    Path("shops.csv").write_text("shop,size,town\n0,1.5,1\n1,2.5,2\n")
    Path("towns.csv").write_text("town,people\n1,10\n2,20\n")


def data(**changes: Any) -> Data:
    joins = [
        {"source": {"kind": "csv", "path": "shops.csv"}, "keys": ["shop"]},
        {"source": {"kind": "csv", "path": "towns.csv"}, "keys": ["town"]},
    ]
    return Data.model_validate({"source": {"kind": "csv", "path": "new.csv"}, "split": {"kind": "random"}, "joins": joins, **changes})


def made(settings: Data, *, sieve: Sieve | None = None, **predict: Any) -> Rows:
    found, _ = rows_of(PROBLEM, settings, Predict(**predict), MODEL, sieve or Sieve(), sources.parts_of(settings.source))
    return found


def checked(rows: Rows) -> tuple[pa.Table, pa.Table, int]:
    """All rows of the first part."""
    (part, *_) = sources.parts_of(rows.data.source)
    found = [rows.checked(chunk, "here") for chunk in rows.chunks(part, 0)]
    return pa.concat_tables([good for good, _, _ in found]), pa.concat_tables([bad for _, bad, _ in found]), sum(n for _, _, n in found)


def test_columns_are_read_as_the_model_knows_them_and_joined_where_needed() -> None:
    rows = made(data())
    assert [join.source.name for join, _ in rows.lookups] == ["shops.csv"]
    assert rows.kept == ("id",)
    good, _, _ = checked(rows)
    assert good.slice(0, 2).to_pylist() == [
        {"zip": "00500", "n": 0, "size": 1.5, "raymlp_row": 0, "id": 0},
        {"zip": "00501", "n": 1, "size": 2.5, "raymlp_row": 1, "id": 1},
    ]


def test_a_join_is_made_for_what_is_kept_too_with_those_that_give_its_keys() -> None:
    rows = made(data(), keep=("people", "note"))
    assert [join.source.name for join, _ in rows.lookups] == ["shops.csv", "towns.csv"]
    assert checked(rows)[0].column("people").to_pylist() == [10, 20] * 4


def test_a_source_that_has_the_columns_already_is_not_joined() -> None:
    Path("new.csv").write_text("id,zip,n,size\n1,00501,1,3.5\n")
    rows = made(data())
    assert rows.lookups == ()
    assert checked(rows)[0].column("size").to_pylist() == [3.5]


def test_all_of_the_source_can_be_kept() -> None:
    assert made(data(), keep="all").kept == ("id", "zip", "n", "shop", "note")


def test_a_value_of_another_type_turns_one_row_away_and_chunks_stay_the_same() -> None:
    lines = Path("new.csv").read_text().splitlines()
    Path("new.csv").write_text("\n".join([*lines[:6], "x,00509,many,1,b", *lines[6:]]) + "\n")
    rows = made(data(), file_rows=3)
    good, broken, _ = checked(rows)
    assert good.column("raymlp_row").to_pylist() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert broken.select(["raymlp_row", "zip", "raymlp_reason"]).to_pylist() == [
        {"raymlp_row": "5", "zip": "00509", "raymlp_reason": "n is not of type int"}
    ]
    (part,) = sources.parts_of(rows.data.source)
    whole = list(rows.chunks(part, 0))
    assert [(chunk.number, chunk.start, chunk.table.num_rows, chunk.last) for chunk in whole] == [
        (0, 0, 3, False), (1, 3, 3, False), (2, 6, 3, True),
    ]  # fmt: skip
    some = list(rows.chunks(part, 0, {0, 2}))
    assert [chunk.number for chunk in some] == [1]
    assert some[0].table == whole[1].table


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 7), st.integers(1, 40))
def test_rows_are_cut_in_order_and_never_into_more_than_was_asked(sizes: list[int], rows: int, most: int) -> None:
    starts = np.cumsum([0, *sizes])
    tables = [pa.table({"x": np.arange(start, start + size)}) for start, size in zip(starts, sizes, strict=False)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK_BYTES", most)
        found = list(_cut(iter(tables), rows))
    assert [x for table in found for x in table.column("x").to_pylist()] == list(range(starts[-1]))
    assert all(0 < table.num_rows <= rows for table in found)
    full = [table.num_rows == rows or table.nbytes >= most for table in found]
    assert all(full[:-1])
    assert all(table.nbytes < most + 8 for table in found)  # a row has eight bytes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 300), max_size=9), max_size=6), st.integers(1, 400))
def test_a_chunk_of_rows_of_any_size_has_at_most_a_row_more_than_its_bytes(batches: list[list[int]], most: int) -> None:
    tables = [pa.table({"x": pa.array([b"x" * length for length in batch], pa.binary())}) for batch in batches]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK_BYTES", most)
        found, again = (list(_cut(iter(tables), 5)) for _ in range(2))
    assert [len(x) for table in found for x in table.column("x").to_pylist()] == [length for batch in batches for length in batch]
    assert all(table.num_rows == 1 or table.slice(0, table.num_rows - 1).nbytes < most for table in found)
    assert [table.num_rows for table in found] == [table.num_rows for table in again]


def test_few_rows_of_bytes_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def read(*_: Any, batch_rows: int, bad: Any) -> Any:
        asked.append(batch_rows)
        return iter(())

    monkeypatch.setattr(sources, "read", read)
    rows = made(data(joins=[], batch_rows=50_000), missing_as_null=True)
    for types in (rows.types, {**rows.types, "note": "bytes"}):
        list(replace(rows, types=types).chunks(sources.Part("new.csv"), 0))
    assert asked == [50_000, reading.BYTES_ROWS]


def test_a_part_without_rows_has_one_empty_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made(data())
    monkeypatch.setattr(sources, "read", lambda *_, **__: iter(()))
    (chunk,) = rows.chunks(sources.Part("new.csv"), 0)
    assert (chunk.table.num_rows, chunk.last) == (0, True)
    assert rows.checked(chunk, "here")[0].num_rows == 0


def test_what_is_missing_is_told_before_anything_starts() -> None:
    with pytest.raises(DataError, match=r"new.csv has no column 'size'; expected all that the model reads: zip, n, size"):
        made(data(joins=[]))
    with pytest.raises(ConfigError, match=r"predict.keep names 'nte'.*Did you mean 'note'"):
        made(data(), keep=("nte",))
    rows = made(data(joins=[]), missing_as_null=True)
    assert checked(rows)[0].column("size").null_count == 8


def test_the_flag_of_a_filled_column_is_null_where_the_source_lacks_it() -> None:
    model = Contract(columns={**MODEL.columns, "n_filled": ColumnContract(type="bool")})
    settings = data(forward_fill=[{"columns": ["n"], "flag": True}])
    rows, _ = rows_of(PROBLEM, settings, Predict(), model, Sieve(), sources.parts_of(settings.source))
    assert rows.absent == ("n_filled",)
    assert checked(rows)[0].column("n_filled").null_count == 8


def test_a_kept_column_of_a_person_is_transformed_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", "k" * 40)
    settings = data(privacy={"columns": {"note": {"kind": "hash"}, "shop": {"kind": "drop"}, "id": {"kind": "mask"}}})
    rows = made(settings, keep=("note", "id"))
    monkeypatch.delenv("RAYMLP_PRIVACY_KEY")
    found = checked(rows)[0]
    assert not {f"a{i}" for i in range(8)} & set(found.column("note").to_pylist())
    assert len(set(found.column("note").to_pylist())) == 8
    assert set(found.column("id").to_pylist()) == {"*"}
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", "k" * 40)
    assert made(settings, keep="all").kept == ("id", "zip", "n", "note")
    with pytest.raises(ConfigError, match=r"predict.keep names 'shop', which data.privacy.columns drops"):
        made(settings, keep=("shop",))


def test_people_who_were_forgotten_are_left_out(tmp_path: Path) -> None:
    listed = Suppressed(tmp_path).listing("note", ["a3"])[1]
    good, broken, left_out = checked(made(data(), sieve=listed.sieve()))
    assert good.column("raymlp_row").to_pylist() == [0, 1, 2, 4, 5, 6, 7]
    assert (broken.num_rows, left_out) == (0, 1)


def test_the_source_is_not_asked_for_the_target() -> None:
    pq.write_table(pa.table({"zip": ["1"], "n": [1], "size": [1.0]}), "new.parquet")
    settings = data(source={"kind": "parquet", "path": "new.parquet", "columns": ["zip", "n", "size", "y"]}, joins=[])
    assert checked(made(without_target(settings, "y")))[0].num_rows == 1
    typed = data(source={"kind": "csv", "path": "new.csv", "types": {"y": "int", "n": "int"}})
    assert without_target(typed, "y").source.types == {"n": "int"}  # type: ignore[union-attr]
