"""What a model is judged on: rows, and beside each what `raymlp.core.metrics` compares a score with.

With an answer to learn that is the answer. Clusters are judged by where the rows lie, on a sample, since every row is compared with every
other. An anomaly detector is judged by its label where there is one, and by rows that were put together from the values of several:
each column is drawn by itself, so that only what goes together tells them from real ones.

Legend: N rows, F coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymlp.core.errors import DataError
from raymlp.core.metrics import SHUFFLED
from raymlp.data.parquet import spread
from raymlp.features.plan import FeaturePlan

CLUSTERED_ROWS = 4_000
"""Most rows that clusters are judged on."""
SHUFFLED_ROWS = 20_000
"""Most rows that are made up."""
SEED = 0


class Judged(NamedTuple):
    """A table whose rows are to be scored, and `y` as the metrics of the task have it. `rows` are those of them that are real."""

    table: pa.Table
    y: NDArray[Any]
    rows: int


def judged(table: pa.Table, plan: FeaturePlan) -> Judged:
    """What a model with this plan is judged on, of rows that hold the plan's inputs and what `plan.target` reads.

    Raises DataError when a task that needs an answer finds none.
    """
    target = plan.target
    if target.task == "clustering":
        chosen = spread(table.num_rows, CLUSTERED_ROWS)
        table = table.take(pa.array(chosen))
        return Judged(table, coordinates(plan, plan.transform(table)), table.num_rows)
    y, usable = target.answers(table)
    if target.task == "anomaly":
        made = shuffled_table(table.take(pa.array(spread(table.num_rows, SHUFFLED_ROWS))), plan)
        return Judged(pa.concat_tables([table, made]), np.r_[y, np.full(made.num_rows, SHUFFLED)], table.num_rows)
    if not usable.any():
        found = f"none of {table.num_rows} rows has a known answer in '{target.column}'"
        raise DataError(f"{found}; expected labelled rows. Check the split and problem.target.")
    return Judged(table.filter(pa.array(usable)), y[usable], int(usable.sum()))


# ---------------------------------------------------------------- clusters

CATEGORY = 0.5**0.5
"""What a category's own column holds: two rows that differ in one category lie one standard deviation apart."""


def coordinates(plan: FeaturePlan, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Where rows lie for what measures distances, (N, F): the plan's numbers, then a column for each id of each category that holds
    `CATEGORY` where the row has it."""
    numbers, ids = tensors["numeric"], tensors["categorical"]
    found = np.zeros((len(numbers), plan.num_numeric + sum(plan.cardinalities)), np.float32)
    found[:, : plan.num_numeric] = numbers
    starts = plan.num_numeric + np.cumsum([0, *plan.cardinalities])[:-1].astype(np.int64)
    found[np.arange(len(numbers))[:, None], starts + ids] = CATEGORY
    return found


# ---------------------------------------------------------------- anomalies


def shuffled_table(table: pa.Table, plan: FeaturePlan) -> pa.Table:
    """The rows with the columns of each step drawn by themselves; columns that share a step stay together. A label is left out."""
    groups = _groups([step.columns for step in plan.steps])
    rng = np.random.default_rng(SEED)
    order: dict[str, pa.Array] = {}
    for names in groups:
        drawn = pa.array(rng.permutation(table.num_rows))
        order |= dict.fromkeys(names, drawn)
    columns = {name: table.column(name).take(order[name]) if name in order else table.column(name) for name in table.column_names}
    for name in plan.target.columns:
        columns[name] = pa.nulls(table.num_rows, table.column(name).type)
    return pa.table(columns)


def shuffled_tensors(tensors: Mapping[str, NDArray[Any]], plan: FeaturePlan) -> dict[str, NDArray[Any]]:
    """What `shuffled_table` does, of rows that the plan has transformed."""
    steps = [(step, "numeric", len(step.names)) for step in plan.numbers] + [(step, "categorical", 1) for step in plan.categories]
    made = {name: values.copy() for name, values in tensors.items()}
    rng, rows = np.random.default_rng(SEED), len(tensors["numeric"])
    order = {names: rng.permutation(rows) for names in _groups([step.columns for step in plan.steps])}
    place = {"numeric": 0, "categorical": 0}
    for step, kind, width in steps:
        drawn = next(found for names, found in order.items() if step.columns[0] in names)
        columns = slice(place[kind], place[kind] + width)
        made[kind][:, columns] = tensors[kind][drawn, columns]
        place[kind] += width
    return made


def _groups(columns: Sequence[Sequence[str]]) -> list[frozenset[str]]:
    """Columns that some step reads together, or through others."""
    groups: list[frozenset[str]] = []
    for names in columns:
        touched = [group for group in groups if group & set(names)]
        groups = [group for group in groups if group not in touched] + [frozenset(names).union(*touched)]
    return groups
