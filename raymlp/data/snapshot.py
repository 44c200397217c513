"""From sources to a snapshot: read, join, check, split, profile; published whole or not at all.

Ray tasks work in two passes over parts: the first reads, shapes and checks each part into staging, the
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
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from raymlp.config.data import Data
from raymlp.config.problem import Problem
from raymlp.core.errors import DataError, SourceUnavailable
from raymlp.core.files import Place, digest_of
from raymlp.core.records import Snapshot
from raymlp.data import parquet, sources
from raymlp.data.association import Association
from raymlp.data.building import FORMAT, build
from raymlp.data.changes import Change
from raymlp.data.contract import Contract
from raymlp.data.door import oldest_kept
from raymlp.data.growth import Identity, plan
from raymlp.data.place import manifest_of, published_at, publishing, require_store, split_files
from raymlp.data.privacy import key_for
from raymlp.data.profile import Profile
from raymlp.data.quality import Finding
from raymlp.data.rules import hold_freshness
from raymlp.data.staging import given_contract, joining
from raymlp.data.suppression import Suppressed, applied

log = logging.getLogger(__name__)
EXTENT = ("path", "version", "snapshot_id", "end")
"""Settings of a source that say which parts there are, and nothing about what becomes of a part."""
JUDGED = ("checks", "max_bad_share")
"""Settings of the data by which a snapshot is judged as a whole, whatever becomes of a part."""


def prepare(problem: Problem, data: Data, folder: Place, *, say: Callable[[str], None] = lambda _: None) -> Snapshot:
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


def _prepare(problem: Problem, data: Data, folder: Place, say: Callable[[str], None], warnings: list[str]) -> Snapshot:
    identity = _identity(problem, data)
    suppressed = Suppressed.load(folder / problem.name)
    target = _place(identity.key, suppressed)
    found = published_at(target)
    if found is not None:
        if data.contract:
            hold_freshness(given_contract(data.contract), manifest_of(found)["newest"])
        return open_snapshot(found, reused=True)
    require_store(folder)
    contract = given_contract(data.contract) if data.contract else None
    reading = plan(data, contract, identity, suppressed)
    with publishing(target) as aside:
        build(problem, data, aside, identity, reading, suppressed, say, warnings)
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
    if found is None or applied(manifest_of(found)) == suppressed.digest:
        return place
    return suppressed.folder / digest_of([key, suppressed.digest])[:16]


def snapshot_key(problem: Problem, data: Data) -> str:
    """Digest of everything that decides what a snapshot holds: the files' content, and the settings of problem and data."""
    return _identity(problem, data).key


def _identity(problem: Problem, data: Data) -> Identity:
    parts = sources.parts_of(data.source)
    source = sources.fingerprint(data.source, parts)
    with joining():
        joined = [sources.fingerprint(join.source) for join in data.joins]
    plain = data.model_dump(mode="json", exclude={"batch_rows": True, "source": {"retry"}})
    apart = {name: plain.pop(name) for name in JUDGED} | {name: plain["source"].pop(name, None) for name in EXTENT}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "joined": joined,
        "data": plain,
        "target": [problem.answer, problem.task, problem.positive_above, problem.positive_class],
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
    settings = digest_of(facts)
    return Identity(parts, source, oldest, settings, digest_of([settings, apart, source, oldest]), joined)


def open_snapshot(path: Place, *, reused: bool = False) -> Snapshot:
    """The record of a snapshot on disk. Raises DataError when it is not one."""
    manifest = manifest_of(path)
    notes = [str(Finding(**item)) for item in manifest.get("quality", ())]
    notes += [str(Change(**change)) for change in manifest.get("changes", ())]
    return Snapshot(path, manifest["digest"], manifest["rows"], manifest["quarantined"], reused, tuple(notes), _growth(manifest))


def _growth(manifest: dict[str, Any]) -> str:
    """What was read of the source and what taken over, in words; empty when the snapshot was the first of its kind."""
    if manifest.get("grown_from"):
        total, new = len(manifest["parts"]), manifest["parts_read"]
        return f"read {new} new of {total} part{'s' * (total != 1)}, {total - new} taken over from {manifest['grown_from'][:12]}"
    return f"read anew {manifest['read_anew']}" if manifest.get("read_anew") else ""


def warnings_of(path: Place) -> list[str]:
    """What was noticed while a snapshot was made."""
    return list(manifest_of(path)["warnings"])


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
