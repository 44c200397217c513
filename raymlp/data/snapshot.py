"""From sources to a snapshot: read, join, check, split, profile; published whole or not at all.

Rows flow through Ray Data in two passes over parts: the first reads, shapes and checks each part into staging, the
second divides it by the split rule and profiles the training rows. Only the split key is held on the driver.

    train/ valid/ test/ live/   Parquet parts
    quarantine/                 rows that broke the contract, as text, with the reason
    profile.json contract.yaml manifest.json
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymlp.config.data import ColumnType, Data, Join
from raymlp.config.problem import Problem
from raymlp.config.split import ColumnSplit, GroupSplit, HashSplit, RandomSplit, Split, StratifiedSplit, TimeSplit
from raymlp.core.errors import ConfigError, ContractError, DataError, nearest
from raymlp.core.files import digest_of, published, sha256_file, to_json
from raymlp.core.records import Snapshot
from raymlp.data import sources
from raymlp.data.changes import Change, changes_since_last
from raymlp.data.contract import REASON, ColumnContract, Contract
from raymlp.data.profile import Profile, column_type, merged, to_text
from raymlp.data.quality import Evidence, Finding, inspect, load_learners
from raymlp.data.rowhash import row_hashes
from raymlp.data.rules import hold_as_a_whole, hold_freshness, newest, repeat_reasons, repeats
from raymlp.data.split import PURGED, REPEATED, SPLITS, assign, key_hashes
from raymlp.data.target import Target

log = logging.getLogger(__name__)
FORMAT = 1
ROW_GROUP = 65_536


def prepare(problem: Problem, data: Data, folder: Path, *, say: Callable[[str], None] = lambda _: None) -> Snapshot:
    """Make the snapshot of a problem's data under `folder`, or find the one that is already there. Needs Ray.

    `say` hears one line a stage. Raises DataError or ContractError; then nothing is published.
    """
    key = snapshot_key(problem, data)
    target = folder / problem.name / key[:16]
    if (target / "manifest.json").is_file():
        if data.contract:
            hold_freshness(_given_contract(data.contract), json.loads((target / "manifest.json").read_text())["newest"])
        return open_snapshot(target, reused=True)
    with published(target) as aside:
        _build(problem, data, aside, key, say)
    return open_snapshot(target)


def snapshot_key(problem: Problem, data: Data) -> str:
    """Digest of everything that decides what a snapshot holds: the files' content, and the settings of problem and data."""
    tables = [data.source, *(join.source for join in data.joins)]
    facts: dict[str, Any] = {
        "format": FORMAT,
        "files": [sources.fingerprint(table) for table in tables],
        "data": data.model_dump(mode="json", exclude={"batch_rows"}),
        "target": [problem.target, problem.task, problem.positive_above, problem.positive_class],
        "known_after": problem.known_after,
    }
    if data.contract:
        facts["contract"] = _given_contract(data.contract).to_yaml()
    return digest_of(facts)


def open_snapshot(path: Path, *, reused: bool = False) -> Snapshot:
    """The record of a snapshot on disk. Raises DataError when it is not one."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no snapshot: {error}.") from None
    notes = [str(Finding(**item)) for item in manifest.get("quality", ())]
    notes += [str(Change(**change)) for change in manifest.get("changes", ())]
    return Snapshot(path, manifest["digest"], manifest["rows"], manifest["quarantined"], reused, tuple(notes))


def columns_of(problem: Problem, data: Data) -> dict[str, ColumnType]:
    """Columns a snapshot would have, with their types, without reading the rows. Raises as `prepare` would."""
    shape, _ = _shape(problem, data)
    return {name: rule.type for name, rule in shape.contract.columns.items()}


def split_files(path: Path, split: str) -> list[str]:
    """Parquet files of a split, in order; empty when the split has no rows."""
    return sorted(str(file) for file in (path / split).glob("*.parquet"))


def read_split(path: Path, split: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a split, in memory, in the order of the snapshot."""
    files = split_files(path, split)
    wanted = list(columns) if columns is not None else None
    if not files:
        raise DataError(f"{path} has no rows in the split '{split}'; expected some.")
    return pa.concat_tables([pq.read_table(file, columns=wanted) for file in files])


def load_profile(path: Path) -> Profile:
    """Profile of the training split."""
    return Profile.from_dict(json.loads((path / "profile.json").read_text()))


def load_contract(path: Path) -> Contract:
    """Contract of all columns of a snapshot."""
    return Contract.from_yaml((path / "contract.yaml").read_text(), source=str(path / "contract.yaml"))


# ---------------------------------------------------------------------- building


@dataclass(frozen=True)
class Shape:
    """What a worker needs to turn a part into staged rows: plain values, sent once."""

    data: Data
    types: dict[str, Any]
    lookups: tuple[tuple[Join, pa.Table], ...]
    columns: tuple[str, ...]
    contract: Contract
    target: str

    def rows(self, table: pa.Table) -> pa.Table:
        """Joined and without the columns that are left out."""
        for join, lookup in self.lookups:
            table = _look_up(table, join, lookup)
        return table


def _build(problem: Problem, data: Data, aside: Path, key: str, say: Callable[[str], None]) -> None:
    started = time.time()
    if {"warn", "stop"} & {data.checks.outliers, data.checks.label_noise}:
        threading.Thread(target=load_learners, daemon=True).start()
    shape, parts, staged, warnings = stage_all(problem, data, aside, say)
    staging = aside / "staging"
    rows = sum(item["rows"] for item in staged)
    bad = sum(item["bad"] for item in staged)
    _hold_budget(data, bad, rows + bad, staged)
    if not rows:
        raise DataError(f"no row has a value in '{problem.target}'; expected labelled rows. Set problem.target.")
    say(f"splitting {rows:,} rows ({data.split.kind})")
    files = staged_files(staging, len(parts))
    repeated = repeats(shape.contract, files)
    kept = repeated == 0
    bad += int(np.sum(~kept))
    _hold_budget(data, bad, rows + bad - int(np.sum(~kept)), [*staged, {"first": repeat_reasons(shape.contract)[repeated.max()]}])
    latest = newest(shape.contract, files)
    hold_as_a_whole(shape.contract, int(np.sum(kept)), latest)
    codes = np.full(rows, REPEATED, np.int8)
    codes[kept] = assign(data.split, _split_keys(problem, data, files)[kept])
    counts = np.cumsum([0] + [item["rows"] for item in staged])
    pieces = [codes[start:end] for start, end in pairwise(counts)]
    aside_column = data.split.key_columns if isinstance(data.split, ColumnSplit) else ()
    _quarantine_repeats(shape.contract, staging, counts, repeated, aside / "quarantine")
    profiled = _map(
        lambda index: _divide(staging, index, pieces[index], aside, ("train",), None, aside_column, problem.id_columns), len(parts)
    )
    profile = merged(Profile.from_dict(json.loads(item["profile"])) for item in profiled)
    Target.fit(problem, profile)
    contract = _given_contract(data.contract).without(aside_column) if data.contract else Contract.infer(profile)
    say(f"checking {len(contract.columns)} columns against the contract")
    held_out = _map(
        lambda index: _divide(staging, index, pieces[index], aside, SPLITS[1:], contract, aside_column, problem.id_columns), len(parts)
    )
    bad += sum(item["bad"] for item in held_out)
    _hold_budget(data, bad, rows, held_out)
    _clear(staging)
    found: dict[str, Any] = {"purged": int(np.sum(codes == PURGED)), "newest": latest}
    say("looking for leaks, copies and noise")
    found["quality"] = [asdict(item) for item in _inspected(problem, data, aside, profile, contract, profiled, held_out)]
    found["changes"] = [asdict(change) for change in changes_since_last(aside, contract, profile)]
    _finish(problem, data, aside, key, profile, contract, bad, sum(item["unlabelled"] for item in staged), warnings, started, found)


def stage_all(
    problem: Problem, data: Data, aside: Path, say: Callable[[str], None] = lambda _: None
) -> tuple[Shape, list[sources.Part], list[dict[str, Any]], list[str]]:
    """Read, shape and check every part into `aside/staging` and `aside/quarantine`; gives shape, parts, counts of each part, warnings."""
    parts = sources.parts_of(data.source)
    shape, warnings = _shape(problem, data)
    say(f"reading {len(parts)} part{'s' * (len(parts) != 1)}, {sum(part.size for part in parts) / 1e6:,.0f} MB")
    staging = aside / "staging"
    staged = _map(lambda index: _stage(shape, parts[index], index, staging, aside / "quarantine"), len(parts))
    return shape, parts, staged, warnings


def _inspected(
    problem: Problem,
    data: Data,
    aside: Path,
    profile: Profile,
    contract: Contract,
    profiled: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
) -> list[Finding]:
    """Findings of the quality checks. Raises DataError when one of them is to stop the run."""
    results = {"train": profiled, "valid": held_out, "test": held_out}
    hashes = {name: np.frombuffer(b"".join(part[f"hashes_{name}"] for part in parts), np.uint64) for name, parts in results.items()}
    files = {name: split_files(aside, name) for name in results}
    return inspect(Evidence(problem, data.split, profile, list(contract.columns), files, hashes), data.checks)


def _map(work: Callable[[int], dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Run `work` for 0 .. count - 1 as Ray Data tasks; results in that order. An error arrives as its root cause."""
    import ray
    from ray.exceptions import RayTaskError

    tasks = ray.data.range(count, override_num_blocks=count)
    try:
        results: list[dict[str, Any]] = tasks.map(lambda row: {"index": row["id"], **work(int(row["id"]))}).take_all()
    except RayTaskError as error:
        raise _root(error) from None
    return sorted(results, key=lambda row: int(row["index"]))


def _root(error: BaseException) -> BaseException:
    """The error of ours inside Ray's wrapping, or else the innermost one."""
    cause: BaseException = error
    while True:
        inner = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, DataError | ConfigError) and not hasattr(cause, "cause"):
            return cause
        if not isinstance(inner, BaseException) or inner is cause:
            return cause if isinstance(cause, DataError | ConfigError) else DataError(f"preparing failed: {type(cause).__name__}: {cause}")
        cause = inner


def _shape(problem: Problem, data: Data) -> tuple[Shape, list[str]]:
    types = sources.schema_of(data.source)
    lookups = []
    warnings = []
    columns = dict(types)
    for join in data.joins:
        lookup, doubled = _lookup_table(join, columns)
        if doubled:
            warnings.append(f"{doubled} rows of {join.source.path} repeat a key of an earlier row and were left out")
            log.warning(warnings[-1])
        lookups.append((join, lookup))
        columns.update(_types(lookup, exclude=join.keys))
    dropped = {"problem.known_after": problem.known_after, "data.drop": data.drop}
    named = {**dropped, "problem.target": (problem.target,), "problem.id_columns": problem.id_columns, "problem.slices": problem.slices}
    if problem.time_column:
        named["problem.time_column"] = (problem.time_column,)
    if data.split.key_columns:
        named[f"data.split.column{'s' if isinstance(data.split, HashSplit) else ''}"] = data.split.key_columns
    for setting, names in named.items():
        missing = next((name for name in names if name not in columns), None)
        if missing:
            raise ConfigError(f"{setting} names '{missing}', which the data does not have.{nearest(missing, columns)} Set {setting}.")
    gone = {name for names in dropped.values() for name in names} - {problem.target}
    kept = tuple(name for name in columns if name not in gone)
    contract = _given_contract(data.contract) if data.contract else Contract(columns={n: ColumnContract(type=columns[n]) for n in kept})
    lost = next((name for name in data.split.key_columns if name not in contract.columns), None)
    if lost:
        raise ConfigError(f"data.split needs the column '{lost}'; expected it in the contract, and not in data.drop. Set data.split.")
    return Shape(data, types, tuple(lookups), kept, contract, problem.target), warnings


def _types(table: pa.Table, exclude: Sequence[str]) -> dict[str, Any]:
    kinds = {name: column_type(table.column(name).type) for name in table.column_names if name not in exclude}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _given_contract(path: str) -> Contract:
    try:
        return Contract.from_yaml(Path(path).read_text(), source=path)
    except OSError as error:
        raise ConfigError(f"data.contract is '{path}', which cannot be read ({error.strerror}). Set data.contract.") from None


def _lookup_table(join: Join, columns: dict[str, Any]) -> tuple[pa.Table, int]:
    """The table to join, one row a key, columns prefixed; and how many rows repeated a key."""
    table = sources.read_all(join.source)
    missing = next((name for name in (*join.keys, *join.columns) if name not in table.column_names), None)
    if missing:
        raise ConfigError(f"data.joins: {join.source.path} has no column '{missing}'.{nearest(missing, table.column_names)}")
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


def _look_up(table: pa.Table, join: Join, lookup: pa.Table) -> pa.Table:
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


def _stage(shape: Shape, part: sources.Part, index: int, staging: Path, quarantine: Path) -> dict[str, Any]:
    """Read one part, write its good rows to staging and its bad rows to quarantine."""
    bad_lines = sources.BadRows()
    rows = bad = unlabelled = 0
    first = ""
    good_file, bad_file = _Writer(staging / f"part-{index:05}.parquet"), _Writer(quarantine / f"part-{index:05}.parquet")
    for table in sources.read(shape.data.source, part, shape.types, batch_rows=shape.data.batch_rows, bad=bad_lines):
        shaped = shape.rows(table)
        known = pc.is_valid(shaped.column(shape.target)) if shape.target in shaped.column_names else None
        if known is not None:
            unlabelled += shaped.num_rows - pc.sum(known).as_py()
            shaped = shaped.filter(known)
        good, broken = shape.contract.check_table(shaped, where=part.path)
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
    return {"rows": rows, "bad": bad + len(bad_lines.reasons), "unlabelled": unlabelled, "first": first}


def _divide(
    staging: Path,
    index: int,
    codes: NDArray[np.int8],
    aside: Path,
    splits: Sequence[str],
    contract: Contract | None,
    leave_out: Sequence[str],
    unhashed: Sequence[str],
) -> dict[str, Any]:
    """Write the rows of some splits of one staged part. Training rows are profiled; held-out rows are checked."""
    profile = Profile()
    bad, first = 0, ""
    path = staging / f"part-{index:05}.parquet"
    writers = {name: _Writer(aside / name / path.name) for name in splits}
    bad_file = _Writer(aside / "quarantine" / f"held-out-{index:05}.parquet")
    start = 0
    hashes: dict[str, list[bytes]] = {name: [] for name in splits}
    for table in _batches(path):
        piece = codes[start : start + table.num_rows]
        start += table.num_rows
        table = table.drop_columns(list(leave_out))
        for name, writer in writers.items():
            chosen = table.filter(pa.array(piece == SPLITS.index(name)))
            if contract is not None and name != "live":
                chosen, broken = contract.check_table(chosen)
                bad += broken.num_rows
                first = first or (f"{name}: {broken.column(REASON)[0].as_py()}" if broken.num_rows else "")
                bad_file.write(broken)
            if name == "train":
                profile.update(chosen)
            if name != "live":
                hashes[name].append(row_hashes(chosen.select([n for n in chosen.column_names if n not in unhashed])).tobytes())
            writer.write(chosen)
    for writer in (*writers.values(), bad_file):
        writer.close()
    joined = {f"hashes_{name}": b"".join(found) for name, found in hashes.items()}
    return {"profile": to_json(profile.to_dict(), indent=None), "bad": bad, "first": first, **joined}


class _Writer:
    """A Parquet file that exists only if rows were written to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self.file.write_table(table, row_group_size=ROW_GROUP)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def _batches(path: Path) -> Iterator[pa.Table]:
    if path.exists():
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROW_GROUP):
                yield pa.Table.from_batches([batch])


def staged_files(staging: Path, parts: int) -> list[Path]:
    """The staged parts that have rows, in order."""
    return [file for file in (staging / f"part-{index:05}.parquet" for index in range(parts)) if file.exists()]


def _quarantine_repeats(
    contract: Contract, staging: Path, counts: NDArray[np.int64], repeated: NDArray[np.int16], quarantine: Path
) -> None:
    """Write rows that repeat a unique key to quarantine, as text with the reason."""
    for index, (start, end) in enumerate(pairwise(counts)):
        if not np.any(repeated[start:end]):
            continue
        writer = _Writer(quarantine / f"repeated-{index:05}.parquet")
        for table in _batches(staging / f"part-{index:05}.parquet"):
            again = repeated[start : start + table.num_rows]
            reasons = repeat_reasons(contract)[again]
            start += table.num_rows
            text = {name: pc.cast(table.column(name), pa.string()) for name in table.column_names}
            writer.write(pa.table({**text, REASON: pa.array(reasons.tolist(), pa.string())}).filter(pa.array(again > 0)))
        writer.close()


def _split_keys(problem: Problem, data: Data, files: Sequence[Path]) -> NDArray[Any]:
    """Keys of all rows as `assign` wants them; only hashes, moments or classes are held, not the rows."""
    rule = data.split
    if type(rule) is RandomSplit:
        return np.zeros(sum(pq.read_metadata(file).num_rows for file in files))
    if isinstance(rule, StratifiedSplit) and problem.task == "regression":
        raise ConfigError(
            "data.split.kind is stratified with problem.task=regression; expected random, group, hash or time. Set data.split.kind."
        )
    return np.concatenate([_keys_of(rule, problem, pq.read_table(file, columns=_key_names(rule, problem))) for file in files])


def _key_names(rule: Split, problem: Problem) -> list[str]:
    return list(rule.key_columns) or [problem.target]


def _keys_of(rule: Split, problem: Problem, table: pa.Table) -> NDArray[Any]:
    for name in table.column_names:
        if table.column(name).null_count:
            raise DataError(
                f"the column '{name}' of data.split is null in {table.column(name).null_count:,} rows; expected a value in each."
            )
    column = table.column(0)
    if isinstance(rule, TimeSplit):
        if not pa.types.is_timestamp(column.type):
            raise DataError(
                f"data.split.column '{rule.column}' holds {column.type} values; expected timestamps. "
                f"Set data.source.types.{rule.column}=timestamp."
            )
        return np.asarray(column.cast(pa.int64()).to_numpy())
    if isinstance(rule, GroupSplit | HashSplit):
        return key_hashes([to_text(part).to_pylist() for part in table.columns], seed=rule.seed)
    if isinstance(rule, StratifiedSplit) and problem.positive_above is not None:
        return np.asarray(pc.greater(column, problem.positive_above).to_numpy(zero_copy_only=False))
    return np.asarray(to_text(column).to_numpy(zero_copy_only=False).astype(str))


def _hold_budget(data: Data, bad: int, rows: int, results: list[dict[str, Any]]) -> None:
    if rows and bad / rows > data.max_bad_share:
        first = next((item["first"] for item in results if item["first"]), "")
        raise ContractError(
            f"{bad:,} of {rows:,} rows ({bad / rows:.1%}) break the contract; expected at most {data.max_bad_share:.1%}. "
            f"The first: {first}. Mend the source, change data.contract or data.source.types, or raise data.max_bad_share."
        )


def _clear(staging: Path) -> None:
    for file in staging.glob("*"):
        file.unlink()
    if staging.exists():
        staging.rmdir()


def _finish(
    problem: Problem,
    data: Data,
    aside: Path,
    key: str,
    profile: Profile,
    contract: Contract,
    bad: int,
    unlabelled: int,
    warnings: list[str],
    started: float,
    found: dict[str, Any],
) -> None:
    (aside / "profile.json").write_text(to_json(profile.to_dict(), indent=None))
    (aside / "contract.yaml").write_text(contract.to_yaml())
    files = {str(file.relative_to(aside)): sha256_file(file) for file in sorted(aside.rglob("*.parquet"))}
    rows = {name: sum(pq.read_metadata(file).num_rows for file in split_files(aside, name)) for name in SPLITS}
    manifest = {
        "format": FORMAT,
        "problem": problem.name,
        "key": key,
        "digest": digest_of(files),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 2),
        "source": sources.fingerprint(data.source),
        "split": data.split.model_dump(mode="json"),
        "rows": {name: count for name, count in rows.items() if count},
        "unlabelled": unlabelled,
        "quarantined": bad,
        "warnings": warnings,
        "schema": {name: rule.type for name, rule in contract.columns.items()},
        "files": files,
        **found,
    }
    (aside / "manifest.json").write_text(to_json(manifest))
