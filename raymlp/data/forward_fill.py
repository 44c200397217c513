"""Carrying the last known value forward in time, over all staged rows: from the past only, across parts.

The driver holds a hash and a moment of every row, and works on one column at a time: which rows know it, and the values that are
carried. They go to the tasks that rewrite the parts through files beside the staged ones.

Legend: N rows of all parts, in the order of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.config.data import Data, ForwardFill, flag_of
from raymlp.config.problem import Problem
from raymlp.core.errors import ConfigError, nearest
from raymlp.core.files import Place, digest_of
from raymlp.data import parquet
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.rowhash import row_hashes
from raymlp.data.tasks import each_part

Rows = NDArray[np.int64]
NONE = -1
PLACE = "raymlp_row"
"""Column of a file of carried values: the row's place in its part."""


def check(problem: Problem, data: Data, types: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the rules fit the columns of the snapshot, given with their types."""
    time = problem.time_column or ""
    for i, rule in enumerate(data.forward_fill):
        key = f"data.forward_fill.{i}"
        if types.get(time) != "timestamp":
            found = f"'{time}', {f'of type {types[time]}' if time in types else 'no column of the snapshot'}" if time else "not set"
            raise ConfigError(f"{key} follows problem.time_column, which is {found}; expected a timestamp. Set problem.time_column.")
        for setting, names in (("columns", rule.columns), ("by", rule.by)):
            missing = next((name for name in names if name not in types), None)
            if missing is not None:
                raise ConfigError(f"{key}.{setting} names '{missing}', which the snapshot does not have.{nearest(missing, types)}")
        refused = {
            f"the {problem.answer_kind}": tuple(filter(None, [problem.answer])),
            "problem.time_column": (time,),
            f"in {key}.by": rule.by,
        }
        for what, taken in refused.items():
            wrong = next((name for name in rule.columns if name in taken), None)
            if wrong is not None:
                raise ConfigError(f"{key}.columns names '{wrong}', which is {what}; expected other columns. Set {key}.columns.")
    clash = next((flag for flag in data.flags if flag in types), None)
    if clash is not None:
        raise ConfigError(f"data.forward_fill would add '{clash}', which is a column already. Set its flag to false, or data.drop.")


def with_fills(contract: Contract, data: Data) -> Contract:
    """The contract with the columns that `forward_fill` adds at its end. Null is allowed in them and, when the contract is inferred,
    where values were filled: a request has no past."""
    filled = [name for rule in data.forward_fill for name in rule.columns] if data.contract is None else []
    flags = {name: contract.columns.get(name, ColumnContract(type="bool")) for name in data.flags}
    columns = {name: rule for name, rule in contract.columns.items() if name not in flags} | flags
    nullable = {name: columns[name].model_copy(update={"nullable": True}) for name in (*filled, *flags)}
    return contract.model_copy(update={"columns": columns | nullable})


def forward_fill(problem: Problem, data: Data, files: Sequence[Place], seal: parquet.SnapshotKey | None) -> dict[str, int]:
    """Fill staged files in place, by all rules; gives the number of filled values by column. Needs Ray.

    A row without a time, or with a null among its keys, neither gives nor takes. What has no earlier value stays null.
    """
    filled: dict[str, int] = {}
    for rule in data.forward_fill:
        assert problem.time_column is not None
        filled |= _carry(rule, problem.time_column, files, seal)
    if data.forward_fill:
        each_part(lambda index: _rewrite(data.forward_fill, files[index], seal), len(files))
    return filled


def donors(order: Rows, first: NDArray[np.bool_], times: Rows, known: NDArray[np.bool_], max_gap: int | None) -> Rows:
    """The row that each row's value comes from, int64 (N,); -1 for a row that knows its own, or that nothing came before.

    `order` (M,) sorts the rows that take part by series and time, `first` (M,) marks where a series begins in it. `times` (N,) are in
    the unit of `max_gap`.
    """
    place = np.arange(len(order))
    begin = np.maximum.accumulate(np.where(first, place, 0))
    last = np.maximum.accumulate(np.where(known[order], place, NONE))
    takes = (last >= begin) & (last != place)
    if max_gap is not None:
        takes &= times[order] - times[order[last]] <= max_gap
    found = np.full(len(known), NONE, np.int64)
    found[order[takes]] = order[last[takes]]
    return found


def _carry(rule: ForwardFill, time: str, files: Sequence[Place], seal: parquet.SnapshotKey | None) -> dict[str, int]:
    """Write the values that are carried beside each file, column by column; gives their number by column."""
    order, first, times = _series(rule, time, files, seal)
    gap = None if rule.max_gap is None else round(rule.max_gap.total_seconds() * 1_000_000)
    bounds = np.cumsum([0] + [parquet.num_rows(file, key=seal) for file in files])
    counts = {}
    for name in rule.columns:
        known = np.concatenate([~_missing(parquet.read(file, [name], key=seal).column(0)) for file in files])
        sources = donors(order, first, times, known, gap)
        wanted = np.unique(sources[sources != NONE])
        counts[name] = int(np.sum(sources != NONE))
        if not len(wanted):
            continue
        pieces = []
        for file, (start, end) in zip(files, pairwise(bounds), strict=True):
            inside = wanted[(wanted >= start) & (wanted < end)] - start
            if len(inside):
                pieces.append(parquet.read(file, [name], key=seal).column(0).take(pa.array(inside)))
        values = pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks])
        for file, (start, end) in zip(files, pairwise(bounds), strict=True):
            rows = np.flatnonzero(sources[start:end] != NONE)
            carried = values.take(pa.array(np.searchsorted(wanted, sources[start:end][rows])))
            writer = parquet.Writer(_beside(file, name), seal)
            writer.write(pa.table({PLACE: pa.array(rows), name: carried}))
            writer.close()
    return counts


def _series(rule: ForwardFill, time: str, files: Sequence[Place], seal: parquet.SnapshotKey | None) -> tuple[Rows, NDArray[np.bool_], Rows]:
    """Rows sorted by series and time, ties as in the source (M,); where a series begins among them (M,); all moments (N,)."""
    hashes, times, part = [], [], []
    for file in files:
        table = parquet.read(file, [*rule.by, time], key=seal)
        moments = table.column(time).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
        hashes.append(row_hashes(table.select(rule.by)))
        times.append(pc.fill_null(moments, 0).to_numpy())
        part.append(~np.any([_missing(table.column(name)) for name in (*rule.by, time)], axis=0))
    keys, moments = np.concatenate(hashes), np.concatenate(times)
    rows = np.flatnonzero(np.concatenate(part))
    order = rows[np.lexsort((moments[rows], keys[rows]))]
    sorted_keys = keys[order]
    return order, np.r_[True, sorted_keys[1:] != sorted_keys[:-1]][: len(order)], moments


def _rewrite(rules: Sequence[ForwardFill], file: Place, seal: parquet.SnapshotKey | None) -> dict[str, Any]:
    """Put a staged file with its carried values in the place of the old one, a batch at a time. Twice is once: Ray may try again."""
    beside = {name: _beside(file, name) for rule in rules for name in rule.columns}
    carried = {name: parquet.read(path, key=seal) for name, path in beside.items() if path.exists()}
    flagged = [name for rule in rules if rule.flag for name in rule.columns]
    if not carried and not flagged:
        return {}
    aside = file.with_name(file.name.replace(".parquet", ".filled"))
    writer = parquet.Writer(aside, seal)
    start = 0
    for table in parquet.batches(file, key=seal):
        table = table.select([name for name in table.column_names if name not in map(flag_of, flagged)])
        hits = {name: np.zeros(table.num_rows, bool) for name in beside}
        for name, given in carried.items():
            places = given.column(PLACE).to_numpy()
            low, high = np.searchsorted(places, [start, start + table.num_rows])
            hits[name][places[low:high] - start] = True
            values = given.column(name).slice(low, high - low).combine_chunks()
            filled = pc.replace_with_mask(table.column(name).combine_chunks(), pa.array(hits[name]), values)
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), filled)
        for name in flagged:
            table = table.append_column(flag_of(name), pa.array(hits[name], mask=~hits[name]))
        writer.write(table)
        start += table.num_rows
    writer.close()
    aside.replace(file)
    return {}


def _beside(file: Place, name: str) -> Place:
    return file.with_name(file.name.replace(".parquet", f"-{digest_of(name)[:16]}.carried"))


def _missing(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False))
