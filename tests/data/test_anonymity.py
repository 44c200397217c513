from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raymlp.config.data import Data
from raymlp.config.privacy import Generalise, Privacy
from raymlp.config.problem import Problem
from raymlp.config.runtime import Runtime
from raymlp.config.sources import CsvSource
from raymlp.config.split import RandomSplit
from raymlp.core.errors import ConfigError, DataError
from raymlp.data.anonymity import Groups, merged_groups
from raymlp.data.door import oldest_kept
from raymlp.data.snapshot import prepare, read_split, snapshot_key

PROBLEM = Problem(name="p", task="binary", target="y", positive_class="yes")


def test_k_is_the_smallest_group_of_a_hand_worked_table() -> None:
    table = pa.table({"zip": ["53", "53", "53", "10", "10", None], "sex": ["f", "f", "f", "m", "m", "m"], "pay": [1, 2, 3, 4, 5, 6]})
    groups = Groups().update(table, ["zip", "sex"])
    assert sorted(groups.counts.tolist()) == [1, 2, 3]
    assert (groups.k, groups.rows_below(2), groups.rows_below(3), groups.rows_below(4)) == (1, 1, 3, 6)
    assert Groups().update(table, ["sex"]).k == 3
    assert (Groups().k, Groups().rows_below(5)) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 3)), max_size=40), st.integers(1, 40))
def test_counts_of_parts_are_those_of_the_whole(rows: list[tuple[str, int | None]], size: int) -> None:
    def table(part: list[tuple[str, int | None]]) -> pa.Table:
        return pa.table({"a": pa.array([a for a, _ in part], pa.string()), "b": pa.array([b for _, b in part], pa.int64())})

    parts = [Groups().update(table(rows[i : i + size]), ["a", "b"]).to_bytes() for i in range(0, len(rows), size)]
    groups = merged_groups(parts)
    expected = Counter(rows)
    assert sorted(groups.counts.tolist()) == sorted(expected.values())
    assert groups.k == min(expected.values(), default=0)
    assert groups.rows_below(3) == sum(count for count in expected.values() if count < 3)


def people(folder: Path, parts: int = 2) -> str:
    today = datetime.now(UTC).replace(hour=12)
    for part in range(parts):
        rows = (f"{20 + i % 40},c{i % 2},{(today - timedelta(days=i)).isoformat()},{'yes' if i % 3 else 'no'}" for i in range(100))
        (folder / f"part{part}.csv").write_text("\n".join(["age,city,seen,y", *rows]) + "\n")
    return str(folder / "part*.csv")


def data(path: str, **privacy: Any) -> Data:
    return Data(source=CsvSource(path=path, types={"seen": "timestamp"}), split=RandomSplit(), privacy=Privacy(**privacy))


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text()))


@pytest.mark.ray
def test_a_snapshot_reports_k_over_all_parts_and_warns_or_stops(ray_runtime: Runtime, tmp_path: Path) -> None:
    path = people(tmp_path)
    quasi = {"quasi_identifiers": ("age", "city")}
    found = manifest_of(prepare(PROBLEM, data(path, **quasi), tmp_path / "out").path)
    # 40 groups (a person's age decides the city); 20 of 3 rows and 20 of 2 rows in each of two parts
    assert found["anonymity"] == {"quasi_identifiers": ["age", "city"], "k": 4, "min_k": 5, "groups": 40, "rows_below_min_k": 80}
    assert found["warnings"] == [
        "80 of 200 rows share age, city with fewer than 5 rows (k is 4); expected groups of 5 or more (data.privacy.min_k)"
    ]
    with pytest.raises(DataError, match=r"80 of 200 rows share age, city .*Generalise one of them"):
        prepare(PROBLEM, data(path, **quasi, min_k_action="stop"), tmp_path / "out")
    coarse = data(path, **quasi, min_k_action="stop", columns={"age": Generalise(width=20)})
    found = manifest_of(prepare(PROBLEM, coarse, tmp_path / "out").path)
    assert (found["anonymity"]["k"], found["warnings"]) == (40, [])
    with pytest.raises(ConfigError, match=r"data.privacy.quasi_identifiers names 'ag'.*Did you mean 'age'"):
        prepare(PROBLEM, data(path, quasi_identifiers=("ag",)), tmp_path / "out")


@pytest.mark.ray
def test_rows_older_than_the_retention_stay_out(ray_runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = data(people(tmp_path, parts=1), retention_days=30, retention_column="seen")
    made = prepare(PROBLEM, rule, tmp_path / "out")
    assert (sum(made.rows.values()), manifest_of(made.path)["expired"]) == (31, 69)
    oldest = oldest_kept(rule.privacy)
    assert oldest is not None
    assert min(moment for name in made.rows for moment in read_split(made.path, name).column("seen").to_pylist()) >= oldest
    today = snapshot_key(PROBLEM, rule)
    monkeypatch.setattr("raymlp.data.snapshot.oldest_kept", lambda _: oldest + timedelta(days=1))
    assert snapshot_key(PROBLEM, rule) != today
    with pytest.raises(ConfigError, match=r"data.privacy.retention_column 'city' is of type string; expected timestamp"):
        prepare(PROBLEM, data(rule.source.path, retention_days=1, retention_column="city"), tmp_path / "out")  # type: ignore[arg-type]


def test_retention_needs_a_column_and_counts_from_midnight() -> None:
    with pytest.raises(ValidationError, match="retention_days is set without retention_column"):
        Privacy(retention_days=3)
    privacy = Privacy(retention_days=3, retention_column="t")
    assert oldest_kept(privacy, datetime(2026, 3, 10, 18, tzinfo=UTC)) == datetime(2026, 3, 7, tzinfo=UTC)
    assert oldest_kept(Privacy()) is None
