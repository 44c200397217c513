"""From sources to a snapshot: read, join, check, split, profile; published whole or not at all.

Ray tasks work in two passes over parts: the first reads, shapes and checks each part into staging, the
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
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from raymlp.config.data import Data
from raymlp.config.problem import Problem
from raymlp.config.split import ColumnSplit
from raymlp.core.errors import ContractError, DataError, SourceUnavailable
from raymlp.core.files import Place, digest_of, to_json
from raymlp.core.records import Snapshot
from raymlp.data import parquet, sources
from raymlp.data.association import Association, Outline
from raymlp.data.changes import Change, changes_since_last
from raymlp.data.contract import Contract
from raymlp.data.division import Cut, divide, profile_of, quarantine_repeats, split_keys, write_page_data
from raymlp.data.door import oldest_kept, verdict
from raymlp.data.forward_fill import forward_fill, with_fills
from raymlp.data.place import MANIFEST, published_at, publishing, remove, require_store
from raymlp.data.privacy import key_for
from raymlp.data.profile import Profile
from raymlp.data.quality import Evidence, Finding, inspect, load_learners
from raymlp.data.rules import hold_as_a_whole, hold_freshness, newest, repeat_reasons, repeats
from raymlp.data.split import PURGED, REPEATED, SPLITS, assign
from raymlp.data.staging import given_contract, joining, stage_all, staged_files
from raymlp.data.suppression import Suppressed, applied
from raymlp.data.target import Target
from raymlp.data.tasks import each_part

log = logging.getLogger(__name__)
FORMAT = 2


def prepare(problem: Problem, data: Data, folder: Place, *, say: Callable[[str], None] = lambda _: None) -> Snapshot:
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


def _prepare(problem: Problem, data: Data, folder: Place, say: Callable[[str], None], warnings: list[str]) -> Snapshot:
    key = snapshot_key(problem, data)
    suppressed = Suppressed.load(folder / problem.name)
    target = _place(key, suppressed)
    found = published_at(target)
    if found is not None:
        if data.contract:
            hold_freshness(given_contract(data.contract), json.loads((found / MANIFEST).read_text())["newest"])
        return open_snapshot(found, reused=True)
    require_store(folder)
    with publishing(target) as aside:
        _build(problem, data, aside, key, suppressed, say, warnings)
    return open_snapshot(published_at(target) or target)


def find(problem: Problem, data: Data, folder: Place) -> Snapshot | None:
    """The snapshot that `prepare` would find again under `folder`; None when it would make one. Needs no Ray."""
    found = published_at(_place(snapshot_key(problem, data), Suppressed.load(folder / problem.name)))
    return open_snapshot(found, reused=True) if found is not None else None


def _place(key: str, suppressed: Suppressed) -> Place:
    """Where the snapshot of a key is, or will be. One that does not keep the list of those who were forgotten is passed over:
    `forget` could not clean it, since it lacks the column, or it is older than this list."""
    place = suppressed.folder / key[:16]
    found = published_at(place)
    if found is None or applied(json.loads((found / MANIFEST).read_text())) == suppressed.digest:
        return place
    return suppressed.folder / digest_of([key, suppressed.digest])[:16]


def snapshot_key(problem: Problem, data: Data) -> str:
    """Digest of everything that decides what a snapshot holds: the files' content, and the settings of problem and data."""
    files = [sources.fingerprint(data.source)]
    with joining():
        files += [sources.fingerprint(join.source) for join in data.joins]
    facts: dict[str, Any] = {
        "format": FORMAT,
        "files": files,
        "data": data.model_dump(mode="json", exclude={"batch_rows": True, "source": {"retry"}}),
        "target": [problem.target, problem.task, problem.positive_above, problem.positive_class],
        "known_after": problem.known_after,
    }
    if data.forward_fill:
        facts["time_column"] = problem.time_column
    if data.contract:
        facts["contract"] = given_contract(data.contract).to_yaml()
    privacy_key = key_for(data.privacy.columns)
    if privacy_key is not None:
        facts["privacy_key"] = privacy_key.check
    oldest = oldest_kept(data.privacy)
    if oldest is not None:
        facts["oldest"] = oldest.isoformat()
    return digest_of(facts)


def open_snapshot(path: Place, *, reused: bool = False) -> Snapshot:
    """The record of a snapshot on disk. Raises DataError when it is not one."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no snapshot: {error}.") from None
    notes = [str(Finding(**item)) for item in manifest.get("quality", ())]
    notes += [str(Change(**change)) for change in manifest.get("changes", ())]
    return Snapshot(path, manifest["digest"], manifest["rows"], manifest["quarantined"], reused, tuple(notes))


def warnings_of(path: Place) -> list[str]:
    """What was noticed while a snapshot was made."""
    return list(json.loads((path / MANIFEST).read_text())["warnings"])


def split_files(path: Place, split: str) -> list[str]:
    """Parquet files of a split, in order; empty when the split has no rows."""
    return sorted(str(file) for file in (path / split).glob("*.parquet"))


def read_split(path: Place, split: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a split, in memory, in the order of the snapshot."""
    files = split_files(path, split)
    wanted = list(columns) if columns is not None else None
    if not files:
        raise DataError(f"{path} has no rows in the split '{split}'; expected some.")
    return pa.concat_tables([parquet.read(file, wanted) for file in files])


def load_profile(path: Place, split: str = "train") -> Profile:
    """Profile of a split; that of a split without rows is empty."""
    file = path / ("profile.json" if split == "train" else f"profile-{split}.json")
    known = split == "train" or file.is_file()
    return Profile.from_dict(json.loads(parquet.unsealed_text(file))) if known else Profile()


def load_association(path: Place) -> Association:
    """How columns of the training split move with the target and with each other. Raises DataError when the snapshot has none."""
    try:
        return Association.from_json(parquet.unsealed_text(path / "association.json"))
    except FileNotFoundError:
        raise DataError(f"{path} was made by an older version and has no association.json. Prepare the data again.") from None


def load_contract(path: Place) -> Contract:
    """Contract of all columns of a snapshot."""
    return Contract.from_yaml((path / "contract.yaml").read_text(), source=str(path / "contract.yaml"))


# ---------------------------------------------------------------------- building


def _build(
    problem: Problem, data: Data, aside: Place, key: str, suppressed: Suppressed, say: Callable[[str], None], before: list[str]
) -> None:
    started = time.time()
    if {"warn", "stop"} & {data.checks.outliers, data.checks.label_noise}:
        threading.Thread(target=load_learners, daemon=True).start()
    shape, parts, staged, warnings = stage_all(problem, data, aside, suppressed, say)
    staging = aside / "staging"
    rows = sum(item["rows"] for item in staged)
    bad = sum(item["bad"] for item in staged)
    _hold_budget(data, bad, rows + bad, staged)
    facts, noticed = verdict(data.privacy, staged)
    facts |= suppressed.facts(staged)
    if not rows:
        raise DataError(f"no row has a value in '{problem.target}'; expected labelled rows. Set problem.target.")
    say(f"splitting {rows:,} rows ({data.split.kind})")
    files = staged_files(staging, len(parts))
    filled = forward_fill(problem, data, files, shape.seal)
    repeated = repeats(shape.contract, files)
    kept = repeated == 0
    bad += int(np.sum(~kept))
    _hold_budget(data, bad, rows + bad - int(np.sum(~kept)), [*staged, {"first": repeat_reasons(shape.contract)[repeated.max()]}])
    latest = newest(shape.contract, files)
    hold_as_a_whole(shape.contract, int(np.sum(kept)), latest)
    codes = np.full(rows, REPEATED, np.int8)
    codes[kept] = assign(data.split, split_keys(problem, data, files)[kept])
    counts = np.cumsum([0] + [item["rows"] for item in staged])
    pieces = [codes[start:end] for start, end in pairwise(counts)]
    again = quarantine_repeats(shape, staging, counts, repeated, aside / "quarantine")
    cut = Cut(staging, aside, data.split.key_columns if isinstance(data.split, ColumnSplit) else (), problem.id_columns, shape.seal)
    profiled = each_part(lambda index: divide(cut, index, pieces[index], ("train",)), len(parts))
    profile = profile_of(profiled, "train")
    outline = Outline.of(profile, Target.fit(problem, profile))
    contract = given_contract(data.contract).without(cut.leave_out) if data.contract else Contract.infer(profile)
    contract = with_fills(contract, data).with_privacy(data.privacy.columns, shape.key)
    contract = contract.without_examples() if shape.seal else contract
    say(f"checking {len(contract.columns)} columns against the contract")
    seen = contract.without_privacy()
    contract = contract.with_images(data.image_columns, data.max_image_pixels)
    held_out = each_part(lambda index: divide(cut, index, pieces[index], SPLITS[1:], seen, outline), len(parts))
    bad += sum(item["bad"] for item in held_out)
    _hold_budget(data, bad, rows, held_out)
    remove(staging)
    say("looking for leaks, copies and noise")
    facts |= {"unlabelled": sum(item["unlabelled"] for item in staged), "quarantined": bad, "warnings": [*before, *warnings, *noticed]}
    facts |= {"purged": int(np.sum(codes == PURGED)), "newest": latest, "filled": filled}
    facts["quality"] = [asdict(item) for item in _inspected(problem, data, aside, profile, contract, profiled, held_out)]
    facts["changes"] = [asdict(change) for change in changes_since_last(aside, contract, profile)]
    write_page_data(aside, held_out, shape.seal)
    (aside / "profile.json").write_text(parquet.sealed_text(to_json(profile.to_dict(), indent=None), shape.seal))
    (aside / "contract.yaml").write_text(contract.to_yaml())
    written = [again, *(item["files"] for item in (*staged, *profiled, *held_out))]
    _write_manifest(problem, data, aside, key, contract, facts, started, written)


def _inspected(
    problem: Problem,
    data: Data,
    aside: Place,
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


def _hold_budget(data: Data, bad: int, rows: int, results: list[dict[str, Any]]) -> None:
    if rows and bad / rows > data.max_bad_share:
        first = next((item["first"] for item in results if item["first"]), "")
        raise ContractError(
            f"{bad:,} of {rows:,} rows ({bad / rows:.1%}) break the contract; expected at most {data.max_bad_share:.1%}. "
            f"The first: {first}. Mend the source, change data.contract or data.source.types, or raise data.max_bad_share."
        )


def _write_manifest(
    problem: Problem,
    data: Data,
    aside: Place,
    key: str,
    contract: Contract,
    facts: dict[str, Any],
    started: float,
    files: Sequence[str],
) -> None:
    """Written last: with its manifest a snapshot is whole. `files` are what `parquet.facts_of` gave for those that were written."""
    written = {name: fact for part in files for name, fact in json.loads(part).items()}
    digests = {name: sha256 for name, (sha256, _) in written.items()}
    rows = {split: sum(count for name, (_, count) in written.items() if name.startswith(f"{split}/")) for split in SPLITS}
    manifest = {
        "format": FORMAT,
        "problem": problem.name,
        "key": key,
        "digest": digest_of(digests),
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": round(time.time() - started, 2),
        "source": sources.fingerprint(data.source),
        "split": data.split.model_dump(mode="json"),
        "rows": {name: count for name, count in rows.items() if count},
        **facts,
        "schema": {name: rule.type for name, rule in contract.columns.items()},
        "files": digests,
    }
    (aside / MANIFEST).write_text(to_json(manifest))
