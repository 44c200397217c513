from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raymlp.core.errors import ContractError
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.rules import broken_as_a_whole, hold_as_a_whole, hold_freshness, newest, repeat_reasons, repeats

NOW = datetime(2013, 7, 10, tzinfo=UTC)


def files_of(folder: Path, *tables: pa.Table) -> list[Path]:
    paths = [folder / f"part-{i:05}.parquet" for i in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        pq.write_table(table, path)
    return paths


def test_rows_that_repeat_a_key_are_found_across_parts_and_nulls_may_repeat(tmp_path: Path) -> None:
    contract = Contract(
        columns={"id": ColumnContract(type="int", unique=True), "a": ColumnContract(type="string"), "b": ColumnContract(type="string")},
        unique_keys=(("a", "b"),),
    )
    first = pa.table({"id": [1, 2, None], "a": ["x", "x", None], "b": ["1", "2", "3"]})
    second = pa.table({"id": [None, 2, 4, 5], "a": [None, "y", "x", "z"], "b": ["3", "1", "1", "1"]})
    found = repeat_reasons(contract)[repeats(contract, files_of(tmp_path, first, second))]
    assert found.tolist() == ["", "", "", "", "id repeats an earlier row", "a + b repeat an earlier row", ""]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("xyz")), min_size=1, max_size=40))
def test_repeats_are_those_of_pandas(tmp_path: Path, rows: list[tuple[int, str]]) -> None:
    contract = Contract(columns={"n": ColumnContract(type="int"), "k": ColumnContract(type="string")}, unique_keys=(("n", "k"),))
    table = pa.table({"n": [n for n, _ in rows], "k": [k for _, k in rows]})
    found = repeats(contract, files_of(tmp_path, table))
    assert np.array_equal(found > 0, pd.DataFrame(rows).duplicated().to_numpy())


def test_row_counts_and_age_are_held() -> None:
    contract = Contract(columns={"t": ColumnContract(type="timestamp")}, min_rows=5, max_rows=9, freshness={"t": timedelta(days=2)})
    fresh = {"t": (NOW - timedelta(days=2)).isoformat()}
    assert broken_as_a_whole(contract, 5, fresh, now=NOW) == []
    assert [item.rule for item in broken_as_a_whole(contract, 4, fresh, now=NOW)] == ["min_rows 5"]
    assert [item.rule for item in broken_as_a_whole(contract, 10, fresh, now=NOW)] == ["max_rows 9"]
    old = broken_as_a_whole(contract, 7, {"t": (NOW - timedelta(days=2, seconds=1)).isoformat()}, now=NOW)
    assert [(item.rule, item.first) for item in old] == [
        ("freshness of t: 2 days, 0:00:00", "the newest value is 2013-07-07T23:59:59+00:00")
    ]
    assert broken_as_a_whole(contract, 7, {}, now=NOW)[0].first == "no row has a value"
    with pytest.raises(ContractError, match=r"min_rows 5: 4 good rows; freshness of t"):
        hold_as_a_whole(contract, 4, {})
    with pytest.raises(ContractError, match="breaks the contract as a whole: freshness of t"):
        hold_freshness(contract, {"t": "2013-07-01T00:00:00+00:00"})


def test_the_newest_moment_is_that_of_all_parts(tmp_path: Path) -> None:
    contract = Contract(columns={"t": ColumnContract(type="timestamp")}, freshness={"t": timedelta(days=2)})
    moments = [pa.table({"t": pa.array(part, pa.timestamp("us", tz="UTC"))}) for part in ([None, NOW], [NOW - timedelta(days=1)])]
    assert newest(contract, files_of(tmp_path, *moments)) == {"t": NOW.isoformat()}
