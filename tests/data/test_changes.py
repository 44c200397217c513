from __future__ import annotations

import pyarrow as pa

from raymlp.data.changes import Change, differences
from raymlp.data.profile import Profile


def compared(old: dict[str, list[object]], new: dict[str, list[object]]) -> list[Change]:
    before, after = (Profile().update(pa.table(columns)) for columns in (old, new))
    types = [{name: column.type for name, column in profile.columns.items()} for profile in (before, after)]
    return differences(types[0], before, types[1], after)


def test_each_kind_of_change_is_told_by_name() -> None:
    found = compared(
        {"gone": [1, 1], "n": [1.0, 11.0], "k": ["a", "b"], "t": ["1", "2"]},
        {"n": [1.0, 13.0], "k": ["b", "c"], "t": [1, 2], "new": [True, True]},
    )
    assert [(change.kind, change.column, change.detail) for change in found] == [
        ("added", "new", "type bool"),
        ("removed", "gone", "was of type int"),
        ("range moved", "n", "1 to 11 before, 1 to 13 now"),
        ("new categories", "k", "c"),
        ("retyped", "t", "string before, int now"),
    ]


def test_equal_data_and_small_moves_are_no_change() -> None:
    assert compared({"n": [0.0, 10.0], "k": ["a", "b"]}, {"n": [-0.5, 10.9], "k": ["b", "b"]}) == []
    assert compared({"n": [1.0], "k": ["a"]}, {"n": [float("nan")], "k": ["a"]}) == []


def test_many_new_categories_are_counted() -> None:
    found = compared({"k": ["a"]}, {"k": [f"v{i}" for i in range(9)]})
    assert found[0].detail == "v0, v1, v2, v3, v4 and 4 more"
    many = [f"v{i}" for i in range(2_000)]
    assert compared({"k": ["a"]}, {"k": list(many)}) == []
