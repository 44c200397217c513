"""From sources to a snapshot: read, join, check, split, profile; published whole or not at all.

Rows flow through Ray Data in two passes over parts: the first reads, shapes and checks each part into staging, the
second divides it by the split rule and profiles the training rows. Only the split key is held on the driver. Parts that an
earlier snapshot holds are taken over from it (`raymlp.data.growth`).

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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raymlp.config.data import Data
from raymlp.config.problem import Problem
from raymlp.config.split import ColumnSplit
from raymlp.core.errors import ContractError, DataError, SourceUnavailable
from raymlp.core.files import digest_of, published, sha256_file, to_json
from raymlp.core.records import Snapshot
from raymlp.data import growth, parquet, sources
from raymlp.data.association import Association, Outline
from raymlp.data.changes import Change, changes_since_last
from raymlp.data.contract import Contract
from raymlp.data.division import Cut, quarantine_repeats, split_keys, training_profile, write_page_data, write_rest, write_training
from raymlp.data.door import anonymity, oldest_kept, verdict
from raymlp.data.growth import Move, take_rest, take_training
from raymlp.data.privacy import key_for
from raymlp.data.profile import Profile
from raymlp.data.quality import Evidence, Finding, inspect, load_learners
from raymlp.data.rules import hold_as_a_whole, hold_freshness, newest, newest_of, repeat_reasons, repeats
from raymlp.data.split import OUTSIDE, PURGED, REPEATED, SPLITS, assign, hold_filled
from raymlp.data.staging import given_contract, joining, shape_of, stage_all, staged_files
from raymlp.data.target import Target
from raymlp.data.tasks import each_part

log = logging.getLogger(__name__)
FORMAT = 3
EXTENT = ("path", "version", "snapshot_id", "end")
"""Settings of a source that say which parts there are, and nothing about what becomes of a part."""
LEFT_OUT = {"repeated": REPEATED, "purged": PURGED, "outside": OUTSIDE}
"""Why a staged row is in no split, in the manifest, and its code."""
COUNTED = ("rows", "bad", "unlabelled", "expired", *LEFT_OUT, "newest", "personal")
"""What the manifest tells of each part: rows staged, quarantined, without an answer, too old, in no split; newest moments; hits of the
scan for personal data."""


def prepare(problem: Problem, data: Data, folder: Path, *, say: Callable[[str], None] = lambda _: None) -> Snapshot:
    """Make the snapshot of a problem's data under `folder`, or find the one that is already there. Needs Ray.

    Of a source that grew only the new parts are read, where rows keep their splits; the result is the same as reading it all.

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
    identity = _identity(problem, data)
    target = folder / problem.name / identity.key[:16]
    if (target / "manifest.json").is_file():
        if data.contract:
            hold_freshness(given_contract(data.contract), json.loads((target / "manifest.json").read_text())["newest"])
        return open_snapshot(target, reused=True)
    contract = given_contract(data.contract) if data.contract else None
    reading = growth.plan(data, contract, target.parent, identity.settings, identity.parts, identity.source, identity.oldest)
    with published(target) as aside:
        _build(problem, data, aside, identity, reading, say, warnings)
    return open_snapshot(target)


def find(problem: Problem, data: Data, folder: Path) -> Snapshot | None:
    """The snapshot that `prepare` would find again under `folder`; None when it would make one. Needs no Ray."""
    target = folder / problem.name / snapshot_key(problem, data)[:16]
    return open_snapshot(target, reused=True) if (target / "manifest.json").is_file() else None


def snapshot_key(problem: Problem, data: Data) -> str:
    """Digest of everything that decides what a snapshot holds: the files' content, and the settings of problem and data."""
    return _identity(problem, data).key


@dataclass(frozen=True)
class Identity:
    """What decides what a snapshot holds: the parts of the source and their fingerprint, the first moment that is kept, and the
    digest of all settings but those that say which parts there are. `key` digests everything."""

    parts: list[sources.Part]
    source: list[dict[str, Any]]
    oldest: datetime | None
    settings: str
    key: str


def _identity(problem: Problem, data: Data) -> Identity:
    parts = sources.parts_of(data.source)
    source = sources.fingerprint(data.source, parts)
    with joining():
        joined = [sources.fingerprint(join.source) for join in data.joins]
    plain = data.model_dump(mode="json", exclude={"batch_rows": True, "source": {"retry"}})
    extent = {name: plain["source"].pop(name) for name in EXTENT if name in plain["source"]}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "joined": joined,
        "data": plain,
        "target": [problem.target, problem.task, problem.positive_above, problem.positive_class],
        "known_after": problem.known_after,
    }
    if data.contract:
        facts["contract"] = given_contract(data.contract).to_yaml()
    privacy_key = key_for(data.privacy.columns)
    if privacy_key is not None:
        facts["privacy_key"] = privacy_key.check
    oldest = oldest_kept(data.privacy)
    settings = digest_of(facts)
    return Identity(parts, source, oldest, settings, digest_of([settings, extent, source, oldest]))


def open_snapshot(path: Path, *, reused: bool = False) -> Snapshot:
    """The record of a snapshot on disk. Raises DataError when it is not one."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no snapshot: {error}.") from None
    notes = [str(Finding(**item)) for item in manifest.get("quality", ())]
    notes += [str(Change(**change)) for change in manifest.get("changes", ())]
    return Snapshot(path, manifest["digest"], manifest["rows"], manifest["quarantined"], reused, tuple(notes), _growth(manifest))


def _growth(manifest: dict[str, Any]) -> str:
    """What was read of the source and what taken over, in words; empty when the snapshot was the first of its kind."""
    if manifest.get("grown_from"):
        total, new = len(manifest["parts"]), manifest["parts_read"]
        return f"read {new} new of {total} parts, {total - new} taken over from {manifest['grown_from'][:12]}"
    return f"read anew {manifest['read_anew']}" if manifest.get("read_anew") else ""


def warnings_of(path: Path) -> list[str]:
    """What was noticed while a snapshot was made."""
    return list(json.loads((path / "manifest.json").read_text())["warnings"])


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


def _build(
    problem: Problem, data: Data, aside: Path, identity: Identity, reading: growth.Reading, say: Callable[[str], None], before: list[str]
) -> None:
    started = time.time()
    if {"warn", "stop"} & {data.checks.outliers, data.checks.label_noise}:
        threading.Thread(target=load_learners, daemon=True).start()
    shape, warnings = shape_of(problem, data, reading.types)
    new, earlier, staging = reading.new, reading.earlier, aside / "staging"
    say(f"{reading.words()}, {sum(reading.parts[index].size for index in new) / 1e6:,.0f} MB")
    staged = stage_all(shape, {index: reading.parts[index] for index in new}, aside)
    counted = {**dict(zip(new, staged, strict=True)), **({index: earlier.counts(index) for index in reading.taken} if earlier else {})}
    parts = [counted[index] for index in range(len(reading.parts))]
    rows, bad = sum(part["rows"] for part in parts), sum(part["bad"] for part in parts)
    _hold_budget(data, bad, rows + bad, parts)
    facts, noticed = verdict(data.privacy, parts)
    if not rows:
        raise DataError(f"no row has a value in '{problem.target}'; expected labelled rows. Set problem.target.")
    say(f"splitting {sum(part['rows'] for part in staged):,} rows ({data.split.kind})")
    files = staged_files(staging, new)
    repeated = repeats(shape.contract, files, after=earlier.files() if earlier else ())
    codes = np.full(len(repeated), REPEATED, np.int8)
    codes[repeated == 0] = assign(data.split, split_keys(problem, data, files)[repeated == 0])
    counts = np.cumsum([0] + [part["rows"] for part in staged])
    pieces = {index: codes[start:end] for index, (start, end) in zip(new, pairwise(counts), strict=True)}
    for index, piece in pieces.items():
        parts[index] |= {name: int(np.sum(piece == code)) for name, code in LEFT_OUT.items()}
        parts[index]["newest"] = newest(shape.contract, staged_files(staging, [index]))
    bad += sum(part["repeated"] for part in parts)
    first = repeat_reasons(shape.contract)[repeated.max(initial=0)]
    _hold_budget(data, bad, rows + bad - sum(part["repeated"] for part in parts), [*parts, {"first": first}])
    latest = newest_of(part["newest"] for part in parts)
    hold_freshness(shape.contract, latest)
    there = earlier.manifest["rows"] if earlier else {}
    hold_filled(data.split, {name: int(np.sum(codes == code)) + there.get(name, 0) for code, name in enumerate(SPLITS)})
    quarantine_repeats(shape, staging, new, counts, repeated, aside / "quarantine")
    left_out = data.split.key_columns if isinstance(data.split, ColumnSplit) else ()
    cut = Cut(staging, aside, left_out, problem.id_columns, data.privacy.quasi_identifiers, shape.seal)
    profiled = each_part(lambda place: write_training(cut, new[place], pieces[new[place]]), len(new))
    again = reading.taken if earlier and earlier.recount else []
    moved = each_part(lambda place: take_training(Move(cut, earlier, again[place])), len(again))
    profile = training_profile([*profiled, *moved], earlier.profile() if earlier else ())
    outline = Outline.of(profile, Target.fit(problem, profile))
    contract = given_contract(data.contract).without(cut.leave_out) if data.contract else Contract.infer(profile)
    contract = contract.with_privacy(data.privacy.columns, shape.key)
    contract = contract.without_examples() if shape.seal else contract
    say(f"checking {len(contract.columns)} columns against the contract")
    seen = contract.without_privacy()

    def rest(index: int) -> dict[str, Any]:
        if index in pieces or earlier is None:
            return write_rest(cut, index, pieces[index], seen, outline)
        return take_rest(Move(cut, earlier, index), seen, outline)

    divided = each_part(rest, len(parts))
    bad += sum(part["bad"] for part in divided)
    _hold_budget(data, bad, rows, divided)
    _clear(staging)
    for index, item in (*zip(again, moved, strict=True), *((index, divided[index]) for index in reading.taken)):
        parts[index] |= {"rows": parts[index]["rows"] - item["expired"], "expired": parts[index]["expired"] + item["expired"]}
    in_splits = {name: sum(parquet.num_rows(file) for file in split_files(aside, name)) for name in SPLITS}
    hold_filled(data.split, in_splits)
    hold_as_a_whole(shape.contract, sum(in_splits.values()), latest)
    say("looking for leaks, copies and noise")
    grouped, too_small = anonymity(data.privacy, divided)
    facts |= grouped | {
        name: sum(part[name] for part in parts) for name in ("unlabelled", "purged", *(["expired"] if identity.oldest else []))
    }
    facts |= {"quarantined": bad, "warnings": [*before, *warnings, *noticed, *too_small], "newest": latest}
    facts["quality"] = [asdict(item) for item in _inspected(problem, data, aside, profile, contract, divided)]
    facts["changes"] = [asdict(change) for change in changes_since_last(aside, contract, profile)]
    facts |= {
        "rows": {name: count for name, count in in_splits.items() if count},
        "types": list(reading.types.items()),
        "oldest": identity.oldest and identity.oldest.isoformat(),
    }
    facts |= {"grown_from": earlier.digest if earlier else None, "parts_read": len(new), "read_anew": reading.why}
    facts["parts"] = [{"mark": mark, **{name: part[name] for name in COUNTED}} for mark, part in zip(reading.marks, parts, strict=True)]
    write_page_data(aside, divided, shape.seal)
    (aside / "profile.json").write_text(parquet.sealed_text(to_json(profile.to_dict(), indent=None), shape.seal))
    (aside / "contract.yaml").write_text(contract.to_yaml())
    files = {str(file.relative_to(aside)): sha256_file(file) for file in sorted(aside.rglob("*.parquet"))}
    if earlier:
        earlier.hold_unchanged(
            {new: old for item in (*moved, *divided) for new, old in json.loads(item.get("linked", "{}")).items()}, files
        )
    _write_manifest(problem, data, aside, identity, contract, files, facts, started)


def _inspected(
    problem: Problem, data: Data, aside: Path, profile: Profile, contract: Contract, divided: list[dict[str, Any]]
) -> list[Finding]:
    """Findings of the quality checks. Raises DataError when one of them is to stop the run."""
    splits = ("train", "valid", "test")
    hashes = {name: np.frombuffer(b"".join(part[f"hashes_{name}"] for part in divided), np.uint64) for name in splits}
    files = {name: split_files(aside, name) for name in splits}
    return inspect(Evidence(problem, data.split, profile, list(contract.columns), files, hashes), data.checks)


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


def _write_manifest(
    problem: Problem,
    data: Data,
    aside: Path,
    identity: Identity,
    contract: Contract,
    files: dict[str, str],
    facts: dict[str, Any],
    started: float,
) -> None:
    manifest = {
        "format": FORMAT,
        "problem": problem.name,
        "key": identity.key,
        "settings": identity.settings,
        "digest": digest_of(files),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 2),
        "source": identity.source,
        "split": data.split.model_dump(mode="json"),
        **facts,
        "schema": {name: rule.type for name, rule in contract.columns.items()},
        "files": files,
    }
    (aside / "manifest.json").write_text(to_json(manifest))
