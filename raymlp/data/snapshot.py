"""From sources to a snapshot: read, join, check, split, profile; published whole or not at all.

Rows flow through Ray Data in two passes over parts: the first reads, shapes and checks each part into staging, the
second divides it by the split rule and profiles the training rows. Only the split key is held on the driver.

    train/ valid/ test/ live/   Parquet parts
    quarantine/                 rows that broke the contract, as text, with the reason
    profile.json contract.yaml manifest.json
    profile-SPLIT.json association.json   what the profile page shows beside the training profile
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.config.data import Data, Join
from raymlp.config.problem import Problem
from raymlp.config.sources import ColumnType
from raymlp.config.split import ColumnSplit, GroupSplit, HashSplit, RandomSplit, Split, StratifiedSplit, TimeSplit
from raymlp.core import errors
from raymlp.core.errors import ConfigError, ContractError, DataError, RaymlpError, SourceUnavailable, nearest
from raymlp.core.files import digest_of, published, sha256_file, to_json
from raymlp.core.records import Snapshot
from raymlp.data import parquet, sources
from raymlp.data.association import Association, Outline, merged_associations
from raymlp.data.changes import Change, changes_since_last
from raymlp.data.contract import REASON, ColumnContract, Contract, in_quarantine
from raymlp.data.door import Door, Passage, oldest_kept, verdict
from raymlp.data.privacy import PrivacyKey, key_for, makes_text, type_after
from raymlp.data.profile import Profile, column_type, merged, to_text
from raymlp.data.quality import Evidence, Finding, inspect, load_learners
from raymlp.data.rowhash import row_hashes
from raymlp.data.rules import hold_as_a_whole, hold_freshness, newest, repeat_reasons, repeats
from raymlp.data.split import PURGED, REPEATED, SPLITS, assign, key_hashes
from raymlp.data.target import Target

log = logging.getLogger(__name__)
FORMAT = 2


def prepare(problem: Problem, data: Data, folder: Path, *, say: Callable[[str], None] = lambda _: None) -> Snapshot:
    """Make the snapshot of a problem's data under `folder`, or find the one that is already there. Needs Ray.

    `say` hears one line a stage. Raises DataError or ContractError; then nothing is published.
    """
    try:
        return _prepare(problem, data, folder, say, [])
    except SourceUnavailable as error:
        if data.fallback is None:
            raise
        warning = f"{data.source.name} is unavailable, so {data.fallback.name} was read in its place ({error})"
        log.warning(warning)
        return _prepare(problem, data.fallen_back(), folder, say, [warning])


def reachable(data: Data) -> Data:
    """The settings, with the fallback as the source when the source is not there. Raises SourceUnavailable without a fallback."""
    try:
        sources.parts_of(data.source)
    except SourceUnavailable:
        if data.fallback is None:
            raise
        return data.fallen_back()
    return data


def _prepare(problem: Problem, data: Data, folder: Path, say: Callable[[str], None], warnings: list[str]) -> Snapshot:
    key = snapshot_key(problem, data)
    target = folder / problem.name / key[:16]
    if (target / "manifest.json").is_file():
        if data.contract:
            hold_freshness(_given_contract(data.contract), json.loads((target / "manifest.json").read_text())["newest"])
        return open_snapshot(target, reused=True)
    with published(target) as aside:
        _build(problem, data, aside, key, say, warnings)
    return open_snapshot(target)


def find(problem: Problem, data: Data, folder: Path) -> Snapshot | None:
    """The snapshot that `prepare` would find again under `folder`; None when it would make one. Needs no Ray."""
    target = folder / problem.name / snapshot_key(problem, data)[:16]
    return open_snapshot(target, reused=True) if (target / "manifest.json").is_file() else None


def snapshot_key(problem: Problem, data: Data) -> str:
    """Digest of everything that decides what a snapshot holds: the files' content, and the settings of problem and data."""
    files = [sources.fingerprint(data.source)]
    with _joining():
        files += [sources.fingerprint(join.source) for join in data.joins]
    facts: dict[str, Any] = {
        "format": FORMAT,
        "files": files,
        "data": data.model_dump(mode="json", exclude={"batch_rows": True, "source": {"retry"}}),
        "target": [problem.target, problem.task, problem.positive_above, problem.positive_class],
        "known_after": problem.known_after,
    }
    if data.contract:
        facts["contract"] = _given_contract(data.contract).to_yaml()
    privacy_key = key_for(data.privacy.columns)
    if privacy_key is not None:
        facts["privacy_key"] = privacy_key.check
    oldest = oldest_kept(data.privacy)
    if oldest is not None:
        facts["oldest"] = oldest.isoformat()
    return digest_of(facts)


@contextmanager
def _joining() -> Iterator[None]:
    """A table to join that is unavailable is an error of its own: the fallback stands in for the main table alone."""
    try:
        yield
    except SourceUnavailable as error:
        raise DataError(f"data.joins: {error}") from error


def open_snapshot(path: Path, *, reused: bool = False) -> Snapshot:
    """The record of a snapshot on disk. Raises DataError when it is not one."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no snapshot: {error}.") from None
    notes = [str(Finding(**item)) for item in manifest.get("quality", ())]
    notes += [str(Change(**change)) for change in manifest.get("changes", ())]
    return Snapshot(path, manifest["digest"], manifest["rows"], manifest["quarantined"], reused, tuple(notes))


def warnings_of(path: Path) -> list[str]:
    """What was noticed while a snapshot was made."""
    return list(json.loads((path / "manifest.json").read_text())["warnings"])


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
    return pa.concat_tables([parquet.read(file, wanted) for file in files])


def load_profile(path: Path, split: str = "train") -> Profile:
    """Profile of a split; that of a split without rows is empty."""
    file = path / ("profile.json" if split == "train" else f"profile-{split}.json")
    known = split == "train" or file.is_file()
    return Profile.from_dict(json.loads(parquet.unsealed_text(file))) if known else Profile()


def load_association(path: Path) -> Association:
    """How columns of the training split move with the target and with each other. Raises DataError when the snapshot has none."""
    try:
        return Association.from_json(parquet.unsealed_text(path / "association.json"))
    except FileNotFoundError:
        raise DataError(f"{path} was made by an older version and has no association.json. Prepare the data again.") from None


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
    key: PrivacyKey | None
    seal: parquet.SnapshotKey | None

    def rows(self, table: pa.Table) -> pa.Table:
        """Joined and without the columns that are left out."""
        for join, lookup in self.lookups:
            table = _look_up(table, join, lookup)
        return table


def _build(problem: Problem, data: Data, aside: Path, key: str, say: Callable[[str], None], before: list[str]) -> None:
    started = time.time()
    if {"warn", "stop"} & {data.checks.outliers, data.checks.label_noise}:
        threading.Thread(target=load_learners, daemon=True).start()
    shape, parts, staged, warnings = stage_all(problem, data, aside, say)
    staging = aside / "staging"
    rows = sum(item["rows"] for item in staged)
    bad = sum(item["bad"] for item in staged)
    _hold_budget(data, bad, rows + bad, staged)
    facts, noticed = verdict(data.privacy, staged)
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
    _quarantine_repeats(shape, staging, counts, repeated, aside / "quarantine")
    cut = Cut(staging, aside, data.split.key_columns if isinstance(data.split, ColumnSplit) else (), problem.id_columns, shape.seal)
    profiled = _map(lambda index: _divide(cut, index, pieces[index], ("train",)), len(parts))
    profile = _profile_of(profiled, "train")
    outline = Outline.of(profile, Target.fit(problem, profile))
    contract = _given_contract(data.contract).without(cut.leave_out) if data.contract else Contract.infer(profile)
    contract = contract.with_privacy(data.privacy.columns, shape.key)
    contract = contract.without_examples() if shape.seal else contract
    say(f"checking {len(contract.columns)} columns against the contract")
    seen = contract.without_privacy()
    held_out = _map(lambda index: _divide(cut, index, pieces[index], SPLITS[1:], seen, outline), len(parts))
    bad += sum(item["bad"] for item in held_out)
    _hold_budget(data, bad, rows, held_out)
    _clear(staging)
    say("looking for leaks, copies and noise")
    facts |= {"unlabelled": sum(item["unlabelled"] for item in staged), "quarantined": bad, "warnings": [*before, *warnings, *noticed]}
    facts |= {"purged": int(np.sum(codes == PURGED)), "newest": latest}
    facts["quality"] = [asdict(item) for item in _inspected(problem, data, aside, profile, contract, profiled, held_out)]
    facts["changes"] = [asdict(change) for change in changes_since_last(aside, contract, profile)]
    _write_page_data(aside, held_out, shape.seal)
    (aside / "profile.json").write_text(parquet.sealed_text(to_json(profile.to_dict(), indent=None), shape.seal))
    (aside / "contract.yaml").write_text(contract.to_yaml())
    _write_manifest(problem, data, aside, key, contract, facts, started)


def stage_all(
    problem: Problem, data: Data, aside: Path, say: Callable[[str], None] = lambda _: None
) -> tuple[Shape, list[sources.Part], list[dict[str, Any]], list[str]]:
    """Read, shape and check every part into `aside/staging` and `aside/quarantine`; gives shape, parts, counts of each part, warnings."""
    parts = sources.parts_of(data.source)
    shape, warnings = _shape(problem, data)
    say(f"reading {len(parts)} part{'s' * (len(parts) != 1)}, {sum(part.size for part in parts) / 1e6:,.0f} MB")
    door = Door.of(data.privacy, len(parts))
    staged = _map(lambda index: _stage(shape, parts[index], index, aside / "staging", aside / "quarantine", door.open(index)), len(parts))
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
    """Run `work` for 0 .. count - 1 as Ray Data tasks; results in that order. The error of the first that failed is raised here."""
    import ray
    from ray.exceptions import RayError

    tasks = ray.data.range(count, override_num_blocks=count)
    try:
        found = tasks.map(lambda row: _told(work, int(row["id"]))).take_all()
    except RayError as error:
        raise DataError(f"preparing failed: {str(error).strip().splitlines()[0]}. Ray's logs have more.") from error
    results = sorted(found, key=lambda row: int(row["index"]))
    failed = next((row for row in results if "error" in row), None)
    if failed:
        raise getattr(errors, failed["error"])(failed["message"])
    return results


def _told(work: Callable[[int], dict[str, Any]], index: int) -> dict[str, Any]:
    """What the work gives, or what went wrong in plain words: Ray Data wraps an error so that its cause does not arrive."""
    try:
        return {"index": index, **work(index)}
    except RaymlpError as error:
        return {"index": index, "error": type(error).__name__, "message": str(error)}
    except Exception as error:
        log.exception("part %d", index)
        return {"index": index, "error": "DataError", "message": f"preparing failed: {type(error).__name__}: {error}"}


def _shape(problem: Problem, data: Data) -> tuple[Shape, list[str]]:
    types = _as_written(sources.schema_of(data.source), data)
    lookups = []
    warnings = []
    columns = dict(types)
    for join in data.joins:
        lookup, doubled = _lookup_table(join, columns)
        if doubled:
            warnings.append(f"{doubled} rows of {join.source.name} repeat a key of an earlier row and were left out")
            log.warning(warnings[-1])
        lookups.append((join, lookup))
        columns.update(_types(lookup, exclude=join.keys))
    rules = data.privacy.columns
    given_up = tuple(name for name, rule in rules.items() if rule.kind == "drop")
    dropped = {"problem.known_after": problem.known_after, "data.drop": data.drop, "data.privacy.columns": given_up}
    named = {**dropped, "problem.target": (problem.target,), "problem.id_columns": problem.id_columns, "problem.slices": problem.slices}
    if problem.time_column:
        named["problem.time_column"] = (problem.time_column,)
    if data.split.key_columns:
        named[f"data.split.column{'s' if isinstance(data.split, HashSplit) else ''}"] = data.split.key_columns
    named["data.privacy.columns"] = tuple(rules)
    for setting, names in named.items():
        missing = next((name for name in names if name not in columns), None)
        if missing:
            raise ConfigError(f"{setting} names '{missing}', which the data does not have.{nearest(missing, columns)} Set {setting}.")
    if problem.target in rules and rules[problem.target].kind != "keep":
        raise ConfigError(f"data.privacy.columns names '{problem.target}', the target; expected other columns. Set data.privacy.columns.")
    gone = {name for names in dropped.values() for name in names} - {problem.target}
    kept = tuple(name for name in columns if name not in gone)
    _require(kept, "data.privacy.quasi_identifiers", data.privacy.quasi_identifiers)
    aged_by = data.privacy.retention_column if data.privacy.retention_days else ""
    _require(kept, "data.privacy.retention_column", (aged_by,) if aged_by else ())
    if aged_by and columns[aged_by] != "timestamp":
        raise ConfigError(
            f"data.privacy.retention_column '{aged_by}' is of type {columns[aged_by]}; expected timestamp. "
            f"Set data.source.types.{aged_by}=timestamp, or data.privacy.retention_column."
        )
    after = {name: type_after(name, columns[name], rules[name]) if name in rules else columns[name] for name in kept}
    contract = _given_contract(data.contract) if data.contract else Contract(columns={n: ColumnContract(type=after[n]) for n in kept})
    lost = next((name for name in data.split.key_columns if name not in contract.columns), None)
    if lost:
        raise ConfigError(f"data.split needs the column '{lost}'; expected it in the contract, and not in data.drop. Set data.split.")
    key = key_for(rules)
    contract = contract.with_privacy(rules, key)
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
    with _joining():
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


def _stage(shape: Shape, part: sources.Part, index: int, staging: Path, quarantine: Path, way: Passage) -> dict[str, Any]:
    """Read one part, write its good rows to staging and its bad rows to quarantine."""
    bad_lines = sources.BadRows()
    rows = bad = unlabelled = 0
    first = ""
    good_file, bad_file = (parquet.Writer(folder / f"part-{index:05}.parquet", shape.seal) for folder in (staging, quarantine))
    for table in sources.read(shape.data.source, part, shape.types, batch_rows=shape.data.batch_rows, bad=bad_lines):
        shaped = shape.rows(table)
        known = pc.is_valid(shaped.column(shape.target)) if shape.target in shaped.column_names else None
        if known is not None:
            unlabelled += shaped.num_rows - pc.sum(known).as_py()
            shaped = shaped.filter(known)
        good, broken = shape.contract.check_table(shaped, where=part.path, key=shape.key)
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
    return {"rows": rows, "bad": bad + bad_lines.count, "unlabelled": unlabelled, "first": first, **way.facts()}


@dataclass(frozen=True)
class Cut:
    """How staged parts are divided: plain values, sent once. Columns in `leave_out` go no further, and those in `unhashed` do not
    tell copies apart."""

    staging: Path
    aside: Path
    leave_out: Sequence[str]
    unhashed: Sequence[str]
    seal: parquet.SnapshotKey | None


def _divide(
    cut: Cut,
    index: int,
    codes: NDArray[np.int8],
    splits: Sequence[str],
    contract: Contract | None = None,
    outline: Outline | None = None,
) -> dict[str, Any]:
    """Write, profile and hash the rows of some splits of one staged part. Held-out rows are checked by the contract.

    With an outline the training rows, which were written before, are read for how columns move together.
    """
    profiles = {name: Profile() for name in splits}
    hashes: dict[str, list[bytes]] = {name: [] for name in splits}
    association = Association(outline) if outline else None
    bad, first = 0, ""
    path = cut.staging / f"part-{index:05}.parquet"
    writers = {name: parquet.Writer(cut.aside / name / path.name, cut.seal) for name in splits}
    bad_file = parquet.Writer(cut.aside / "quarantine" / f"held-out-{index:05}.parquet", cut.seal)
    start = 0
    for table in parquet.batches(path, key=cut.seal) if path.exists() else ():
        piece = codes[start : start + table.num_rows]
        start += table.num_rows
        table = table.drop_columns(list(cut.leave_out))
        if association is not None:
            association.update(table.filter(pa.array(piece == SPLITS.index("train"))))
        for name, writer in writers.items():
            chosen = table.filter(pa.array(piece == SPLITS.index(name)))
            if contract is not None and name != "live":
                chosen, broken = contract.check_table(chosen)
                bad += broken.num_rows
                first = first or (f"{name}: {broken.column(REASON)[0].as_py()}" if broken.num_rows else "")
                bad_file.write(broken)
            if chosen.num_rows or name == "train":
                profiles[name].update(chosen)
            if name != "live":
                hashes[name].append(row_hashes(chosen.select([n for n in chosen.column_names if n not in cut.unhashed])).tobytes())
            writer.write(chosen)
    for writer in (*writers.values(), bad_file):
        writer.close()
    return {
        "profiles": to_json({name: profile.to_dict() for name, profile in profiles.items()}, indent=None),
        "association": to_json(association.to_dict(), indent=None) if association else "",
        "bad": bad,
        "first": first,
        **{f"hashes_{name}": b"".join(found) for name, found in hashes.items()},
    }


def _profile_of(results: list[dict[str, Any]], split: str) -> Profile:
    return merged(Profile.from_dict(json.loads(item["profiles"])[split]) for item in results)


def _write_page_data(aside: Path, held_out: list[dict[str, Any]], seal: parquet.SnapshotKey | None) -> None:
    """Profiles of the held-out splits that have rows, and the association of the training split."""
    texts = {}
    for split in SPLITS[1:]:
        profile = _profile_of(held_out, split)
        if profile.rows:
            texts[f"profile-{split}.json"] = to_json(profile.to_dict(), indent=None)
    association = merged_associations(Association.from_json(item["association"]) for item in held_out)
    texts["association.json"] = to_json(association.to_dict(), indent=None)
    for name, text in texts.items():
        (aside / name).write_text(parquet.sealed_text(text, seal))


def staged_files(staging: Path, parts: int) -> list[Path]:
    """The staged parts that have rows, in order."""
    return [file for file in (staging / f"part-{index:05}.parquet" for index in range(parts)) if file.exists()]


def _quarantine_repeats(shape: Shape, staging: Path, counts: NDArray[np.int64], repeated: NDArray[np.int16], quarantine: Path) -> None:
    """Write rows that repeat a unique key to quarantine, as text with the reason."""
    for index, (start, end) in enumerate(pairwise(counts)):
        if not np.any(repeated[start:end]):
            continue
        writer = parquet.Writer(quarantine / f"repeated-{index:05}.parquet", shape.seal)
        for table in parquet.batches(staging / f"part-{index:05}.parquet", key=shape.seal):
            again = repeated[start : start + table.num_rows]
            reasons = repeat_reasons(shape.contract)[again]
            start += table.num_rows
            text = {name: in_quarantine(table.column(name)) for name in table.column_names}
            writer.write(pa.table({**text, REASON: pa.array(reasons.tolist(), pa.string())}).filter(pa.array(again > 0)))
        writer.close()


def _split_keys(problem: Problem, data: Data, files: Sequence[Path]) -> NDArray[Any]:
    """Keys of all rows as `assign` wants them; only hashes, moments or classes are held, not the rows."""
    rule = data.split
    if type(rule) is RandomSplit:
        return np.zeros(sum(parquet.num_rows(file) for file in files))
    if isinstance(rule, StratifiedSplit) and problem.task == "regression":
        raise ConfigError(
            "data.split.kind is stratified with problem.task=regression; expected random, group, hash or time. Set data.split.kind."
        )
    return np.concatenate([_keys_of(rule, problem, parquet.read(file, _key_names(rule, problem))) for file in files])


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


def _write_manifest(problem: Problem, data: Data, aside: Path, key: str, contract: Contract, facts: dict[str, Any], started: float) -> None:
    files = {str(file.relative_to(aside)): sha256_file(file) for file in sorted(aside.rglob("*.parquet"))}
    rows = {name: sum(parquet.num_rows(file) for file in split_files(aside, name)) for name in SPLITS}
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
        **facts,
        "schema": {name: rule.type for name, rule in contract.columns.items()},
        "files": files,
    }
    (aside / "manifest.json").write_text(to_json(manifest))
