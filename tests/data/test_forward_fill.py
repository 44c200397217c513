"""Values carried forward in time, beside pandas' groupby().ffill()."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlp.config.data import Data, ForwardFill
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.config.sources import ParquetSource
from raymlp.config.split import RandomSplit, TimeSplit
from raymlp.core.errors import ConfigError
from raymlp.data import forward_fill as module
from raymlp.data import parquet
from raymlp.data.contract_row import row_checker
from raymlp.data.snapshot import load_contract, prepare, read_split
from raymlp.data.staging import columns_of

PROBLEM = Problem(name="p", task="regression", target="y", time_column="t")
START = datetime(2020, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema(
    {"k": pa.string(), "j": pa.int64(), "t": pa.timestamp("us", tz="UTC"), "x": pa.float64(), "s": pa.string(), "b": pa.bool_()}
)
row = st.fixed_dictionaries(
    {
        "k": st.sampled_from(["a", "b", None]),
        "j": st.sampled_from([0, 1]),
        "t": st.none() | st.integers(0, 12).map(lambda hours: START + timedelta(hours=hours)),
        "x": st.none() | st.sampled_from([0.0, 1.5, float("nan"), -2.0]),
        "s": st.none() | st.sampled_from(["", "u", "ü"]),
        "b": st.none() | st.booleans(),
    }
)


def in_turn(work: Any, count: int) -> list[dict[str, Any]]:
    """`each_part` without Ray."""
    return [work(index) for index in range(count)]


def fill(monkeypatch: pytest.MonkeyPatch, folder: Path, parts: list[pa.Table], seal: Any = None, **rule: Any) -> tuple[pa.Table, Any]:
    """The filled rows of parts, and the counts."""
    monkeypatch.setattr(module, "each_part", in_turn)
    monkeypatch.setattr(parquet, "ROW_GROUP", 3)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, part in enumerate(parts):
        files.append(folder / f"part-{index:05}.parquet")
        writer = parquet.Writer(files[-1], seal)
        writer.write(part)
        writer.close()
    data = Data(source=ParquetSource(path="-"), split=RandomSplit(), forward_fill=(ForwardFill(**rule),))
    counts = module.forward_fill(PROBLEM, data, files, seal)
    return pa.concat_tables([parquet.read(file, key=seal) for file in files]), counts


def by_pandas(frame: pd.DataFrame, by: list[str], gap: timedelta | None) -> pd.DataFrame:
    """The same with pandas: sorted by time, ties as they are, filled by group; then what is too old is taken out again."""
    part = frame.dropna(subset=[*by, "t"]).sort_values("t", kind="stable")
    out = frame.copy()
    for name in ("x", "s", "b"):
        groups = part.assign(one=1).groupby([*by] or ["one"])
        filled = groups[name].ffill()
        moments = part["t"].where(part[name].notna())
        age = part["t"] - moments.groupby([part[key] for key in by] or part.assign(one=1)["one"]).ffill()
        out.loc[part.index, name] = filled if gap is None else filled.where(part[name].notna() | (age <= gap))
    return out


@settings(max_examples=150)
@given(
    rows=st.lists(row, min_size=1, max_size=20),
    cuts=st.lists(st.integers(1, 19), max_size=3),
    by=st.sampled_from([[], ["k"], ["j"], ["k", "j"]]),
    hours=st.none() | st.integers(0, 6),
)
def test_it_is_what_pandas_gives_on_any_rows_in_any_parts(
    rows: list[dict[str, Any]], cuts: list[int], by: list[str], hours: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    table = pa.Table.from_pylist(rows, SCHEMA)
    edges = sorted({0, *(cut for cut in cuts if cut < len(rows)), len(rows)})
    parts = [table.slice(start, end - start) for start, end in pairwise(edges)]
    gap = None if hours is None else timedelta(hours=hours)
    with pytest.MonkeyPatch.context() as patch:
        found, counts = fill(patch, tmp_path_factory.mktemp("fill"), parts, columns=["x", "s", "b"], by=by, max_gap=gap, flag=True)
    frame = table.to_pandas().astype({"x": "Float64", "s": "object", "b": "object"})
    frame["x"] = frame["x"].where(~table.column("x").to_pandas().isna())
    expected = by_pandas(frame, by, gap)
    for name in ("x", "s", "b"):
        before = [None if value != value else value for value in table.column(name).to_pylist()]
        wanted = [None if pd.isna(value) else value for value in expected[name]]
        got = [None if value != value else value for value in found.column(name).to_pylist()]
        assert got == wanted
        assert counts[name] == sum(b is None and w is not None for b, w in zip(before, wanted, strict=True))
        flags = [True if b is None and w is not None else None for b, w in zip(before, wanted, strict=True)]
        assert found.column(f"{name}_filled").to_pylist() == flags


def hourly(**columns: Any) -> pa.Table:
    rows = len(next(iter(columns.values())))
    return pa.table({"t": pa.array([START + timedelta(hours=i) for i in range(rows)], pa.timestamp("us", tz="UTC")), **columns})


def test_a_hand_worked_table_across_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = hourly(k=["a", "b", "a", "b", "a", "a"], x=[1, None, None, 5, None, None])
    late_first = [table.slice(3), table.slice(0, 3)]  # the source is not in the order of time
    found, counts = fill(monkeypatch, tmp_path / "all", late_first, columns=["x"], by=["k"])
    assert found.column("x").to_pylist() == [5, 1, 1, 1, None, 1]
    assert found.schema == table.schema
    assert counts == {"x": 3}
    found, counts = fill(monkeypatch, tmp_path / "gap", late_first, columns=["x"], by=["k"], max_gap="4h")
    assert found.column("x").to_pylist() == [5, 1, None, 1, None, 1]
    assert not list((tmp_path / "all").glob("*.filled"))


def test_a_part_that_is_rewritten_again_stays_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, _ = fill(monkeypatch, tmp_path, [hourly(x=[1, None, 3])], columns=["x"], flag=True)
    module._rewrite([ForwardFill(columns=["x"], flag=True)], tmp_path / "part-00000.parquet", None)
    assert parquet.read(tmp_path / "part-00000.parquet").equals(found)


def test_the_future_is_never_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = hourly(x=pa.array(rng.normal(size=200), mask=rng.random(200) < 0.5))
    whole, _ = fill(monkeypatch, tmp_path / "whole", [table], columns=["x"])
    early, _ = fill(monkeypatch, tmp_path / "early", [table.slice(0, 80)], columns=["x"])
    assert whole.slice(0, 80).column("x").to_pylist() == early.column("x").to_pylist()


def test_an_encrypted_part_stays_encrypted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = parquet.SnapshotKey("k" * 40)
    table = hourly(x=[1.0, None, 3.0])
    found, _ = fill(monkeypatch, tmp_path / "sealed", [table], seal=key, columns=["x"])
    assert found.column("x").to_pylist() == [1.0, 1.0, 3.0]
    assert all(parquet.is_encrypted(path) for path in (tmp_path / "sealed").iterdir())


@pytest.mark.ray
def test_a_snapshot_is_filled_before_it_is_split_and_says_how_often(ray_runtime: Runtime, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = 400
    table = hourly(k=rng.choice(["a", "b"], rows), x=pa.array(np.arange(rows), mask=rng.random(rows) < 0.3), y=rng.normal(size=rows))
    table = table.set_column(2, "x", pa.array([None] * 3 + table.column("x").to_pylist()[3:], pa.int64()))
    for index in range(2):
        pq.write_table(table.slice(index * 200, 200), tmp_path / f"{index}.parquet")
    cut = TimeSplit(column="t", valid_start=START + timedelta(hours=300))
    source = ParquetSource(path=str(tmp_path / "?.parquet"))
    plain = Data(source=source, split=cut)
    data = Data(source=source, split=cut, forward_fill=(ForwardFill(columns=("x",), by=("k",), flag=True),))
    assert (plain.is_grown_by_new_parts, data.is_grown_by_new_parts) == (True, False)
    assert columns_of(PROBLEM, data)["x_filled"] == "bool"
    snapshot = prepare(PROBLEM, data, tmp_path / "out")
    found = pd.concat([read_split(snapshot.path, name).to_pandas() for name in ("train", "valid")], ignore_index=True)
    frame = table.to_pandas()
    assert found["x"].equals(frame.groupby("k")["x"].ffill())
    assert (found["x_filled"].notna() == (frame["x"].isna() & found["x"].notna())).all()
    manifest = json.loads((snapshot.path / "manifest.json").read_text())
    assert manifest["filled"] == {"x": int(found["x_filled"].notna().sum())}
    contract = load_contract(snapshot.path)
    assert (contract.columns["x"].nullable, contract.columns["x_filled"].nullable) == (True, True)
    check = row_checker(contract)
    assert check({"t": "2020-01-01T00:00:00Z", "k": "a", "y": 1.0}, "row")["x"] is None
    other = PROBLEM.model_copy(update={"name": "q"})
    (tmp_path / "contract.yaml").write_text(contract.to_yaml())
    again = prepare(other, data.model_copy(update={"contract": str(tmp_path / "contract.yaml")}), tmp_path / "out")
    assert again.rows == snapshot.rows
    assert read_split(again.path, "train").column("x_filled").equals(read_split(snapshot.path, "train").column("x_filled"))
    assert read_split(again.path, "valid").column("x_filled").equals(read_split(snapshot.path, "valid").column("x_filled"))


@pytest.mark.parametrize(
    ("problem", "rule", "words"),
    [
        (PROBLEM.model_copy(update={"time_column": None}), {"columns": ["x"]}, r"follows problem.time_column, which is not set"),
        (PROBLEM.model_copy(update={"time_column": "k"}), {"columns": ["x"]}, r"which is 'k', of type string; expected a timestamp"),
        (PROBLEM.model_copy(update={"time_column": "tt"}), {"columns": ["x"]}, r"which is 'tt', no column of the snapshot"),
        (PROBLEM, {"columns": ["xx"]}, r"data.forward_fill.0.columns names 'xx'.*Did you mean 'x'"),
        (PROBLEM, {"columns": ["x"], "by": ["kk"]}, r"data.forward_fill.0.by names 'kk'.*Did you mean 'k'"),
        (PROBLEM, {"columns": ["y"]}, r"names 'y', which is the target"),
        (PROBLEM, {"columns": ["t"]}, r"names 't', which is problem.time_column"),
        (PROBLEM, {"columns": ["k"], "by": ["k"]}, r"names 'k', which is in data.forward_fill.0.by"),
        (PROBLEM, {"columns": ["x"], "flag": True}, r"would add 'x_filled', which is a column already"),
    ],
)
def test_a_rule_that_does_not_fit_is_explained(problem: Problem, rule: dict[str, Any], words: str) -> None:
    data = Data(source=ParquetSource(path="-"), split=RandomSplit(), forward_fill=(ForwardFill(**rule),))
    types = {"k": "string", "t": "timestamp", "x": "float", "y": "float", "x_filled": "bool"}
    with pytest.raises(ConfigError, match=words):
        module.check(problem, data, types)


def test_a_column_has_one_rule() -> None:
    with pytest.raises(ValueError, match="names the column 'x' twice"):
        Data(source=ParquetSource(path="-"), split=RandomSplit(), forward_fill=[{"columns": ["x"]}, {"columns": ["x"], "by": ["k"]}])
