"""True answers that come after the predictions: Parquet files with `prediction_id`, and `label`, a metric of the business, or both.

What comes later or from elsewhere has files of its own, so files may differ in their columns. `row` is the place in a request of several
rows; without it an answer is the first row's.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from raymlp.core.errors import DataError
from raymlp.core.files import Place
from raymlp.data.hours import read_table


def read_labels(folder: Place) -> pa.Table | None:
    """All columns of all files, null where a file does not have one; None without files.

    Raises DataError when a column is text in one file and a number in another."""
    tables = [read_table(path) for path in sorted(folder.glob("[!.]*.parquet"))]
    try:
        return pa.concat_tables(tables, promote_options="permissive") if tables else None
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise DataError(f"the labels in {folder} do not go together ({error}); expected each column in one type. Mend the files.") from None


def with_values(labels: pa.Table | None, column: str) -> pa.Table | None:
    """The rows that hold a value in a column; None without any."""
    if labels is None or column not in labels.column_names:
        return None
    some = labels.filter(pc.is_valid(labels.column(column)))
    return some if some.num_rows else None


def row_ids(table: pa.Table) -> pa.ChunkedArray:
    """`prediction_id` and row number as one text, of labels or of the prediction log; no row number means the first."""
    rows = pc.fill_null(pc.cast(table.column("row"), pa.string()), "0") if "row" in table.column_names else "0"
    return pc.binary_join_element_wise(pc.cast(table.column("prediction_id"), pa.string()), rows, "/")
