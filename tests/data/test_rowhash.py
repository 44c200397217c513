from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlp.data.rowhash import row_hashes

ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(-(2**62), 2**62),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.text(max_size=3),
        st.none() | st.booleans(),
    ),
    min_size=1,
    max_size=30,
)
TYPES = [pa.int64(), pa.float64(), pa.string(), pa.bool_()]


def table_of(rows: list[tuple[Any, ...]]) -> pa.Table:
    return pa.table([pa.array([row[i] for row in rows], kind) for i, kind in enumerate(TYPES)], names=list("abcd"))


@settings(max_examples=100)
@given(ROWS)
def test_rows_have_one_hash_exactly_when_they_are_equal(rows: list[tuple[Any, ...]]) -> None:
    hashes = row_hashes(table_of(rows)).tolist()
    by_row = dict(zip(rows, hashes, strict=True))
    assert [by_row[row] for row in rows] == hashes
    assert len(set(hashes)) == len(set(rows))


@settings(max_examples=50)
@given(ROWS, st.randoms())
def test_a_rows_hash_does_not_depend_on_the_rows_beside_it(rows: list[tuple[Any, ...]], random: Any) -> None:
    before = dict(zip(rows, row_hashes(table_of(rows)).tolist(), strict=True))
    mixed = [*rows, (1, 1.0, "x", True)]
    random.shuffle(mixed)
    after = dict(zip(mixed, row_hashes(table_of(mixed)).tolist(), strict=True))
    assert all(after[row] == before[row] for row in rows)


def test_values_that_change_places_change_the_hash() -> None:
    left, right = (row_hashes(pa.table({"a": [x], "b": [y]})) for x, y in (("p", "q"), ("q", "p")))
    assert left[0] != right[0]
    whole, parts = pa.table({"a": np.arange(9.0)}), pa.concat_tables([pa.table({"a": [float(i)]}) for i in range(9)])
    assert row_hashes(whole).tolist() == row_hashes(parts).tolist()


def test_the_order_of_the_columns_does_not_matter() -> None:
    """Training rows come in the source's order, held-out ones in the contract's."""
    table = pa.table({"z": [1, 2], "a": ["u", "v"]})
    assert row_hashes(table).tolist() == row_hashes(table.select(["a", "z"])).tolist()
