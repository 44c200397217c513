"""The first pass: parts of the source become staged rows, joined, transformed at the door and checked; bad ones go to quarantine."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlp.config.data import Data, Join
from raymlp.config.problem import Problem
from raymlp.config.sources import ColumnType
from raymlp.config.split import ColumnSplit, HashSplit, StratifiedSplit
from raymlp.core.errors import ConfigError, DataError, SourceUnavailable, nearest
from raymlp.core.files import Place
from raymlp.core.records import has_classes
from raymlp.data import parquet, sources
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_batch import REASON, check_table
from raymlp.data.door import Door, Passage
from raymlp.data.forward_fill import check as check_fills
from raymlp.data.privacy import PrivacyKey, key_for, makes_text, type_after
from raymlp.data.profile import column_type
from raymlp.data.suppression import Sieve
from raymlp.data.tasks import each_part

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """What a worker needs to turn a part into staged rows: plain values, sent once."""

    data: Data
    types: dict[str, Any]
    lookups: tuple[tuple[Join, pa.Table], ...]
    columns: tuple[str, ...]
    contract: Contract
    target: str | None
    key: PrivacyKey | None
    seal: parquet.SnapshotKey | None

    def rows(self, table: pa.Table) -> pa.Table:
        """Joined and without the columns that are left out."""
        for join, lookup in self.lookups:
            table = look_up(table, join, lookup)
        return table


def stage_all(shape: Shape, parts: Mapping[int, sources.Part], aside: Place, sieve: Sieve) -> list[dict[str, Any]]:
    """Read, shape and check parts, by their number, into `aside/staging` and `aside/quarantine`; gives the counts of each.
    Rows that `sieve` holds back reach neither."""
    door = Door.of(shape.data.privacy, len(parts), sieve)
    staging, quarantine = aside / "staging", aside / "quarantine"
    numbered = list(parts.items())
    return each_part(lambda place: _stage(shape, *numbered[place], staging, quarantine, door.open(place)), len(parts))


def staged_files(staging: Place, indices: Iterable[int]) -> list[Place]:
    """The staged parts that have rows, in order."""
    there = set(staging.glob("*.parquet"))
    return [file for file in (staging / f"part-{index:05}.parquet" for index in indices) if file in there]


def columns_of(problem: Problem, data: Data) -> dict[str, ColumnType]:
    """Columns a snapshot would have, with their types, without reading the rows. Raises as `prepare` would."""
    shape, _ = shape_of(problem, data)
    return {**{name: rule.type for name, rule in shape.contract.columns.items()}, **dict.fromkeys(data.flags, "bool")}


def shape_of(problem: Problem, data: Data, types: Mapping[str, ColumnType] | None = None) -> tuple[Shape, list[str]]:
    """What workers need, and warnings. `types` are the source's column types, where they are known. Raises ConfigError or DataError."""
    types = _as_written(dict(types or sources.schema_of(data.source)), data)
    lookups = []
    warnings = []
    columns = dict(types)
    for join in data.joins:
        lookup, doubled = lookup_table(join, columns)
        if doubled:
            warnings.append(f"{doubled} rows of {join.source.name} repeat a key of an earlier row and were left out")
            log.warning(warnings[-1])
        lookups.append((join, lookup))
        columns.update(types_of(lookup, exclude=join.keys))
    if isinstance(data.split, StratifiedSplit) and not has_classes(problem.task):
        raise ConfigError(
            f"data.split.kind is stratified with problem.task={problem.task}, which has no classes; expected random, group, hash or time. "
            "Set data.split.kind."
        )
    rules = data.privacy.columns
    given_up = tuple(name for name, rule in rules.items() if rule.kind == "drop")
    dropped = {"problem.known_after": problem.known_after, "data.drop": data.drop, "data.privacy.columns": given_up}
    answers = {f"problem.{problem.answer_kind}": tuple(filter(None, [problem.answer]))}
    named = {**dropped, **answers, "problem.id_columns": problem.id_columns, "problem.slices": problem.slices}
    if problem.time_column:
        named["problem.time_column"] = (problem.time_column,)
    if data.split.key_columns:
        named[f"data.split.column{'s' if isinstance(data.split, HashSplit) else ''}"] = data.split.key_columns
    named["data.privacy.columns"] = tuple(rules)
    named["data.images"] = data.images
    for setting, names in named.items():
        missing = next((name for name in names if name not in columns), None)
        if missing:
            raise ConfigError(f"{setting} names '{missing}', which the data does not have.{nearest(missing, columns)} Set {setting}.")
    if problem.answer in rules and rules[problem.answer].kind != "keep":
        raise ConfigError(
            f"data.privacy.columns names '{problem.answer}', the {problem.answer_kind}; expected other columns. Set data.privacy.columns."
        )
    gone = {name for names in dropped.values() for name in names} - {problem.answer}
    kept = tuple(name for name in columns if name not in gone)
    named_split = data.split.key_columns if isinstance(data.split, ColumnSplit) else ()
    _require([name for name in kept if name not in named_split], "data.privacy.quasi_identifiers", data.privacy.quasi_identifiers)
    aged_by = data.privacy.retention_column if data.privacy.retention_days else ""
    _require(kept, "data.privacy.retention_column", (aged_by,) if aged_by else ())
    if aged_by and columns[aged_by] != "timestamp":
        raise ConfigError(
            f"data.privacy.retention_column '{aged_by}' is of type {columns[aged_by]}; expected timestamp. "
            f"Set data.source.types.{aged_by}=timestamp, or data.privacy.retention_column."
        )
    after = {name: type_after(name, columns[name], rules[name]) if name in rules else columns[name] for name in kept}
    given = given_contract(data.contract).without(data.flags) if data.contract else None
    contract = given or Contract(columns={n: ColumnContract(type=after[n]) for n in kept})
    check_fills(problem, data, {name: rule.type for name, rule in contract.columns.items()})
    lost = next((name for name in data.split.key_columns if name not in contract.columns), None)
    if lost:
        raise ConfigError(f"data.split needs the column '{lost}'; expected it in the contract, and not in data.drop. Set data.split.")
    key = key_for(rules)
    contract = contract.with_privacy(rules, key).with_images(data.image_columns, data.max_image_pixels)
    return Shape(data, types, tuple(lookups), kept, contract, problem.target, contract.key(key), parquet.key_of(data.privacy)), warnings


def _require(kept: Sequence[str], setting: str, names: Sequence[str]) -> None:
    missing = next((name for name in names if name not in kept), None)
    if missing is not None:
        raise ConfigError(f"{setting} names '{missing}', which the snapshot does not have.{nearest(missing, kept)} Set {setting}.")


def _as_written(types: dict[str, Any], data: Data) -> dict[str, Any]:
    """Column types of the source. What becomes a token is read from CSV as it is written: `0171` is not the number 171."""
    if data.source.kind != "csv":
        return types
    tokens = [name for name, rule in data.privacy.columns.items() if makes_text(rule)]
    return types | {name: "string" for name in tokens if types.get(name) in ("int", "float", "bool")}


def types_of(table: pa.Table, exclude: Sequence[str]) -> dict[str, Any]:
    kinds = {name: column_type(table.column(name).type) for name in table.column_names if name not in exclude}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def given_contract(path: str) -> Contract:
    try:
        return Contract.from_yaml(Path(path).read_text(), source=path)
    except OSError as error:
        raise ConfigError(f"data.contract is '{path}', which cannot be read ({error.strerror}). Set data.contract.") from None


@contextmanager
def joining() -> Iterator[None]:
    """A table to join that is unavailable is an error of its own: the fallback stands in for the main table alone."""
    try:
        yield
    except SourceUnavailable as error:
        raise DataError(f"data.joins: {error}") from error


def lookup_table(join: Join, columns: dict[str, Any]) -> tuple[pa.Table, int]:
    """The table to join, one row a key, columns prefixed; and how many rows repeated a key."""
    with joining():
        table = sources.read_all(join.source)
    missing = next((name for name in (*join.keys, *join.columns) if name not in table.column_names), None)
    if missing:
        raise ConfigError(f"data.joins: {join.source.name} has no column '{missing}'.{nearest(missing, table.column_names)}")
    absent = next((name for name in join.keys if name not in columns), None)
    if absent:
        raise ConfigError(f"data.joins: the main table has no column '{absent}' to join on.{nearest(absent, columns)}")
    wanted = join.columns or tuple(name for name in table.column_names if name not in join.keys)
    clash = next((name for name in wanted if join.prefix + name in columns), None)
    if clash:
        raise ConfigError(f"data.joins: '{join.prefix + clash}' is already a column. Set data.joins.prefix or data.joins.columns.")
    positions = table.select(join.keys).append_column("_row", pa.array(np.arange(table.num_rows)))
    first = positions.group_by(list(join.keys), use_threads=False).aggregate([("_row", "min")]).column("_row_min").sort()
    unique = table.take(first)
    renamed = {name: join.prefix + name for name in wanted}
    kept = pa.table({**{name: unique.column(name) for name in join.keys}, **{new: unique.column(old) for old, new in renamed.items()}})
    return kept, table.num_rows - unique.num_rows


def look_up(table: pa.Table, join: Join, lookup: pa.Table) -> pa.Table:
    """Left join that keeps the order of the rows."""
    keys = list(join.keys)
    left = table.select(keys).append_column("_row", pa.array(np.arange(table.num_rows)))
    right = lookup
    for name in keys:
        right = right.set_column(right.schema.get_field_index(name), name, pc.cast(right.column(name), left.column(name).type))
    found = left.join(right, keys, join_type="left outer", use_threads=False).sort_by("_row")
    for name in lookup.column_names:
        if name not in keys:
            table = table.append_column(name, found.column(name))
    return table


def _stage(shape: Shape, index: int, part: sources.Part, staging: Place, quarantine: Place, way: Passage) -> dict[str, Any]:
    """Read one part, write its good rows to staging and its bad rows to quarantine."""
    bad_lines = sources.BadRows()
    rows = bad = unlabelled = 0
    first = ""
    good_file, bad_file = (parquet.Writer(folder / f"part-{index:05}.parquet", shape.seal) for folder in (staging, quarantine))
    for table in sources.read(shape.data.source, part, shape.types, batch_rows=shape.data.batch_rows, bad=bad_lines):
        shaped = way.hold_back(shape.rows(table), shape.contract)
        known = pc.is_valid(shaped.column(shape.target)) if shape.target is not None and shape.target in shaped.column_names else None
        if known is not None:
            unlabelled += shaped.num_rows - (pc.sum(known).as_py() or 0)
            shaped = shaped.filter(known)
        good, broken = check_table(shape.contract, shaped, where=part.path, key=shape.key)
        good = way.let_in(good)
        rows, bad = rows + good.num_rows, bad + broken.num_rows
        if broken.num_rows and not first:
            first = f"{part.path}: {broken.column(REASON)[0].as_py()}"
        good_file.write(good)
        bad_file.write(broken)
    if bad_lines.reasons:
        bad_file.write(
            pa.table(
                {
                    **{name: pa.nulls(len(bad_lines.reasons), pa.string()) for name in shape.contract.columns},
                    REASON: pa.array(bad_lines.reasons),
                }
            )
        )
        first = first or f"{part.path}: {bad_lines.reasons[0]}"
    good_file.close()
    bad_file.close()
    files = parquet.facts_of([bad_file], quarantine.parent)
    return {"rows": rows, "bad": bad + bad_lines.count, "unlabelled": unlabelled, "first": first, "files": files, **way.facts()}
