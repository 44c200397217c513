"""Answers and business metrics that come in files of their own."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlp.core.errors import DataError
from raymlp.data.labels import read_labels, row_ids, with_values


def test_files_may_differ_in_their_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prediction_id": ["a", "b"], "label": [1, 0]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"prediction_id": ["a"], "revenue": [2.5]}), tmp_path / "2.parquet")
    pq.write_table(pa.table({"prediction_id": ["a"], "row": [1], "label": [0.5]}), tmp_path / "3.parquet")
    (tmp_path / ".half.parquet").write_bytes(b"PAR1")
    found = read_labels(tmp_path)
    assert found is not None
    assert found.column("label").to_pylist() == [1.0, 0.0, None, 0.5]
    assert found.column("revenue").to_pylist() == [None, None, 2.5, None]
    assert row_ids(found).to_pylist() == ["a/0", "b/0", "a/0", "a/1"]
    paid = with_values(found, "revenue")
    assert paid is not None
    assert paid.column("prediction_id").to_pylist() == ["a"]
    assert with_values(found, "clicks") is None


def test_no_files_are_no_labels(tmp_path: Path) -> None:
    assert read_labels(tmp_path / "none") is None
    assert with_values(None, "label") is None


def test_a_column_that_is_text_here_and_a_number_there_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prediction_id": ["a"], "label": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"prediction_id": ["b"], "label": ["yes"]}), tmp_path / "2.parquet")
    with pytest.raises(DataError, match=r"do not go together .*; expected each column in one type"):
        read_labels(tmp_path)
