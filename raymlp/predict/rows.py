"""From the parts of a source to chunks of rows, and from a chunk to rows that a model takes and rows that it cannot take.

A model is given what its contract names: columns are read in the contract's types, joined where the source lacks them, and
checked as at ingestion. Nothing is asked of the target.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raymlp.config.data import Data, Join
from raymlp.config.predict import Predict
from raymlp.config.problem import Problem
from raymlp.config.sources import ColumnType
from raymlp.core.errors import ConfigError, DataError, nearest
from raymlp.data import sources
from raymlp.data.casting import ARROW
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_batch import REASON, check_table
from raymlp.data.privacy import PrivacyKey, key_for, makes_text, type_after
from raymlp.data.staging import joining, look_up, lookup_table, types_of
from raymlp.data.suppression import Sieve

CHUNK_BYTES = 32 << 20
"""A chunk ends before `file_rows` when it holds this many bytes: it has at most a row more."""
BYTES_ROWS = 256
"""Rows that are read at a time where a column holds bytes, as of images, of which thousands would fill the memory."""
ROW = "raymlp_row"
"""Place of a row among those read from its part, from 0."""


@dataclass(frozen=True)
class Chunk:
    """Some rows of a part, as they were read. `unreadable` are the reasons of rows that could not be split into fields, in the last
    chunk of a part."""

    part: int
    number: int
    start: int
    table: pa.Table
    last: bool
    unreadable: tuple[str, ...] = ()
    more_unreadable: int = 0


@dataclass(frozen=True)
class Rows:
    """What workers need to read and check rows: plain values, sent once. `types` are what the source is read with, `columns` what is
    taken of it; `contract` covers the model's columns, those that are kept, and the row's place; `absent` are null in every row."""

    data: Data
    types: Mapping[str, ColumnType]
    columns: tuple[str, ...]
    lookups: tuple[tuple[Join, pa.Table], ...]
    contract: Contract
    key: PrivacyKey | None
    absent: tuple[str, ...]
    kept: tuple[str, ...]
    sieve: Sieve
    file_rows: int

    def chunks(self, part: sources.Part, index: int, skip: Collection[int] = ()) -> Iterator[Chunk]:
        """The rows of a part in their order, in chunks that are the same each time; those numbered in `skip` are left out.

        A part without rows has one chunk without any. Raises DataError when the part cannot be read.
        """
        bad = sources.BadRows()
        most = BYTES_ROWS if "bytes" in self.types.values() else self.data.batch_rows
        batch_rows = min(most, self.data.batch_rows, self.file_rows)
        tables = sources.read(self.data.source, part, dict(self.types), batch_rows=batch_rows, bad=bad)
        start = number = 0
        waiting: pa.Table | None = None
        for table in _cut((table.select(list(self.columns)) for table in tables), self.file_rows):
            if waiting is not None and number not in skip:
                yield Chunk(index, number, start, waiting, last=False)
            if waiting is not None:
                start, number = start + waiting.num_rows, number + 1
            waiting = table
        empty = pa.table({name: pa.nulls(0, ARROW[self.types[name]]) for name in self.columns})
        if number not in skip:
            reasons = tuple(bad.reasons)
            yield Chunk(index, number, start, empty if waiting is None else waiting, True, reasons, bad.count - len(reasons))

    def checked(self, chunk: Chunk, where: str) -> tuple[pa.Table, pa.Table, int]:
        """Rows of a chunk that keep the contract, in its types; those that break it, as text with the reason; and how many were
        left out, since they belong to people who were forgotten."""
        table = chunk.table.append_column(ROW, pa.array(range(chunk.start, chunk.start + chunk.table.num_rows), pa.int64()))
        for join, lookup in self.lookups:
            table = look_up(table, join, lookup)
        for name in self.absent:
            table = table.append_column(name, pa.nulls(table.num_rows, ARROW[self.contract.columns[name].type]))
        let = self.sieve.let_through(table, self.contract)
        good, broken = check_table(self.contract, let, where=where, key=self.key)
        if not broken.num_rows:
            broken = pa.table({name: pa.nulls(0, pa.string()) for name in (*self.contract.columns, REASON)})
        return good, broken, table.num_rows - let.num_rows


def _cut(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows` rows, and fewer where they reach CHUNK_BYTES; the same each time that they come alike."""
    waiting: list[pa.Table] = []
    num = size = 0
    for table in tables:
        if waiting and waiting[-1].schema != table.schema:  # a value that did not fit its type: from here on the column is text
            yield pa.concat_tables(waiting)
            waiting, num, size = [], 0, 0
        while table.num_rows:
            space = CHUNK_BYTES - size
            piece = table.slice(0, min(rows - num, max(1, space * table.num_rows // max(1, table.nbytes))))
            while piece.num_rows > 1 and piece.nbytes > space:  # rows that are larger than those after them
                piece = piece.slice(0, piece.num_rows // 2)
            table = table.slice(piece.num_rows)
            waiting.append(piece)
            num, size = num + piece.num_rows, size + piece.nbytes
            if num >= rows or size >= CHUNK_BYTES:
                yield pa.concat_tables(waiting)
                waiting, num, size = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting)


def rows_of(
    problem: Problem, data: Data, settings: Predict, model: Contract, sieve: Sieve, parts: list[sources.Part]
) -> tuple[Rows, tuple[str, ...]]:
    """What workers need, and warnings. `model` is the bundle's contract.

    Raises ConfigError or DataError when the source lacks a column of the model, or one that is to be kept.
    """
    types = _as_the_model_reads(sources.schema_of(data.source, parts), data, model)
    offered = [(join, _added(join, types)) for join in data.joins]
    kept = _kept(problem, data, settings, types, [name for _, names in offered for name in names])
    wanted = {*model.columns, *kept}
    used = _used(offered, wanted, types)
    lookups, columns, warnings = [], dict(types), []
    for join in used:
        lookup, doubled = lookup_table(join, columns)
        lookups.append((join, lookup))
        columns |= types_of(lookup, exclude=join.keys)
        if doubled:
            warnings.append(f"{doubled} rows of {join.source.name} repeat a key of an earlier row and were left out")
    absent = _absent(data, settings, model, columns)
    extra = [name for name in kept if name not in model.columns]
    rules = {name: rule for name, rule in data.privacy.columns.items() if name in extra}
    after = {name: type_after(name, columns[name], rules[name]) if name in rules else columns[name] for name in extra}
    key = key_for(rules)
    others = Contract(columns={ROW: ColumnContract(type="int"), **{name: ColumnContract(type=kind) for name, kind in after.items()}})
    contract = Contract(columns={**model.columns, **others.with_privacy(rules, key).columns})
    read = {name for join in used for name in join.keys} | wanted | set(sieve.columns)
    rows = Rows(
        data=data,
        # Of CSV all columns are parsed, whatever is wanted: each needs its type, so that none is guessed anew.
        types={name: kind for name, kind in types.items() if name in read or data.source.kind == "csv"},
        columns=tuple(name for name in types if name in read),
        lookups=tuple(lookups),
        contract=contract,
        key=contract.key(key),
        absent=absent,
        kept=kept,
        sieve=sieve,
        file_rows=settings.file_rows,
    )
    return rows, tuple(warnings)


def without_target(data: Data, target: str | None) -> Data:
    """The settings for rows that have no answer: the source is not asked for the target, where the model has one."""
    if target is None:
        return data
    source = data.source
    changes: dict[str, Any] = {}
    if source.kind in ("parquet", "delta", "iceberg") and target in source.columns:  # a CSV file's are names by place
        changes["columns"] = tuple(name for name in source.columns if name != target)
    if target in getattr(source, "types", {}):
        changes["types"] = {name: kind for name, kind in source.types.items() if name != target}  # type: ignore[union-attr]
    return data.model_copy(update={"source": source.model_copy(update=changes)}) if changes else data


def _as_the_model_reads(types: dict[str, ColumnType], data: Data, model: Contract) -> dict[str, ColumnType]:
    """Column types of the source. CSV is read as the model knows a column, not as this file's first rows look: `0171` may be text."""
    if data.source.kind != "csv":
        return types
    tokens = [name for name, rule in data.privacy.columns.items() if makes_text(rule) and name in types]
    known = {name: rule.type for name, rule in model.columns.items() if name in types}
    return {**types, **dict.fromkeys(tokens, "string"), **known}


def _added(join: Join, types: Mapping[str, ColumnType]) -> list[str]:
    """Columns that a join could add, by the names they would have."""
    with joining():
        names = join.columns or tuple(name for name in sources.schema_of(join.source) if name not in join.keys)
    return [name for name in (join.prefix + name for name in names) if name not in types]


def _used(offered: list[tuple[Join, list[str]]], wanted: Collection[str], types: Mapping[str, ColumnType]) -> list[Join]:
    """The joins that add a column that is wanted and not there, in order; the keys of one may come from an earlier one."""
    needed, used = set(wanted), []
    for join, names in reversed(offered):
        if needed & set(names):
            used.append(join)
            needed |= {key for key in join.keys if key not in types}
    return used[::-1]


def _kept(problem: Problem, data: Data, settings: Predict, types: Mapping[str, ColumnType], joined: list[str]) -> tuple[str, ...]:
    given_up = {name for name, rule in data.privacy.columns.items() if rule.kind == "drop"}
    if settings.keep is None:
        return tuple(name for name in problem.id_columns if name in types and name not in given_up)
    if settings.keep == "all":
        return tuple(name for name in types if name not in given_up)
    known = [*types, *joined]
    for name in settings.keep:
        if name not in known:
            raise ConfigError(f"predict.keep names '{name}', which the data does not have.{nearest(name, known)} Set predict.keep.")
        if name in given_up:
            raise ConfigError(f"predict.keep names '{name}', which data.privacy.columns drops. Set one of them.")
    return tuple(dict.fromkeys(settings.keep))


def _absent(data: Data, settings: Predict, model: Contract, columns: Mapping[str, ColumnType]) -> tuple[str, ...]:
    """Columns of the model that are null in every row: flags of values that were filled, and others where that is asked for."""
    missing = [name for name in model.columns if name not in columns]
    refused = [
        name for name in missing if not (model.columns[name].nullable and (settings.missing_as_null or name in data.flags))
    ]  # a flag is null where nothing was filled
    if refused:
        raise DataError(
            f"{data.source.name} has no column{'s' * (len(refused) > 1)} {', '.join(map(repr, refused))}; expected all that the model "
            f"reads: {', '.join(model.columns)}.{nearest(refused[0], columns)} Mend the source or data.joins, or set "
            "predict.missing_as_null where the contract allows null."
        )
    return tuple(missing)
