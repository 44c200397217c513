"""A snapshot of a source that grew: parts that an earlier snapshot holds are taken over as files, and only the others are read.

A part of the source is a file `part-N.parquet` in each split and in quarantine, so it can be carried from one snapshot to the next
under another number. What depends on all rows is made again, from the files of the snapshot: the contract, with which held-out
rows are checked once more, those in quarantine included, and how columns move together (its bins follow the profile of all
rows, so it cannot be merged). The result is that of reading everything, whatever the order of events.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from raymlp.config.data import Data
from raymlp.config.split import ColumnSplit
from raymlp.core.errors import DataError
from raymlp.core.files import Place, digest_of, sha256_file, to_json
from raymlp.data import parquet, sources
from raymlp.data.association import Outline
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_batch import check_table
from raymlp.data.division import Cut, Tally, checked
from raymlp.data.door import is_kept
from raymlp.data.place import snapshots_in
from raymlp.data.profile import Profile
from raymlp.data.split import SPLITS, is_lasting
from raymlp.data.suppression import Suppressed, applied
from raymlp.runtime.store import MANIFEST, take_over

PROFILE = "profile.json"
QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Earlier:
    """A published snapshot to take parts over from: `parts` is the place of each among the present ones, and its place there.

    `oldest` is the moment before which rows are no longer kept, where that changed, by the column `aged_by`; `recount` says that
    the training profile there is of other rows than those taken over. Without parts there is no such snapshot.
    """

    path: Place = Path()
    manifest: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[int, int] = field(default_factory=dict)
    oldest: datetime | None = None
    aged_by: str = ""
    recount: bool = True

    @property
    def digest(self) -> str:
        return str(self.manifest.get("digest", ""))

    @property
    def recounted(self) -> list[int]:
        """Parts whose training rows are profiled again."""
        return list(self.parts) if self.recount else []

    def rows(self, split: str) -> int:
        """Rows of a split when the snapshot was made."""
        return int(self.manifest.get("rows", {}).get(split, 0))

    def counts(self, index: int) -> dict[str, Any]:
        """What was counted when the part was read; quarantined rows anew where some were forgotten since."""
        found = {**self.manifest["parts"][self.parts[index]], "first": ""}
        for name, count in (("part", "bad"), ("repeated", "repeated")) if "forgotten" in self.manifest else ():
            file = self.file(QUARANTINE, index, name)
            found[count] = parquet.num_rows(file) if file is not None else 0
        return found

    def file(self, folder: str, index: int, name: str = "part") -> Place | None:
        """Where the snapshot has a part, according to its manifest; None when it has no rows there."""
        file = f"{folder}/{name}-{self.parts[index]:05}.parquet"
        return self.path / file if file in self.manifest["files"] else None

    def files(self) -> list[Place]:
        """The files of all splits that are taken over, with rows."""
        found = (self.file(split, index) for index in self.parts for split in SPLITS)
        return [file for file in found if file is not None]

    def kept(self, table: pa.Table) -> pa.Table:
        """The rows that are not too old."""
        return table if self.oldest is None else table.filter(is_kept(table.column(self.aged_by), self.oldest))

    def profile(self) -> list[Profile]:
        """The training profile, when it holds for the rows taken over."""
        return [] if self.recount else [Profile.from_dict(json.loads(parquet.unsealed_text(self.path / PROFILE)))]

    def hold_unchanged(self, linked: Mapping[str, str], files: Mapping[str, str]) -> None:
        """Raise DataError when the snapshot, or a file taken over (new name to old), is no longer what its manifest says."""
        if self.parts and _digest(self.path) != self.digest:
            raise DataError(f"{self.path} was changed while it grew into another snapshot. Prepare the data again.")
        damaged = next((old for new, old in linked.items() if files[new] != self.manifest["files"][old]), None)
        if damaged is not None:
            raise DataError(
                f"{self.path / damaged} was changed since it was written; expected the file of the manifest. Remove the snapshot."
            )


@dataclass(frozen=True)
class Reading:
    """The parts of a source with their marks, and what need not be read. `why` says why nothing is taken over, where it might be."""

    parts: Sequence[sources.Part]
    marks: Sequence[sources.Mark]
    types: Mapping[str, Any]
    earlier: Earlier = field(default_factory=Earlier)
    why: str = ""

    @property
    def new(self) -> list[int]:
        """Places of the parts that are read."""
        return [index for index in range(len(self.parts)) if index not in self.earlier.parts]

    def words(self) -> str:
        """What is read, for people."""
        new, total = len(self.new), f"{len(self.parts)} part{'s' * (len(self.parts) != 1)}"
        size = f"{sum(self.parts[index].size for index in self.new) / 1e6:,.0f} MB"
        if self.earlier.parts:
            return f"reading {new} new of {total}, {size}; {len(self.earlier.parts)} taken over from {self.earlier.digest[:12]}"
        return f"reading {total}, {size}{', ' if self.why else ''}{self.why}"


@dataclass(frozen=True)
class Identity:
    """What decides what a snapshot holds: the parts of the source and their fingerprint, the first moment that is kept, and the
    digest of all settings that decide what becomes of a part. `key` digests everything; `joined` has the fingerprint of each joined
    table."""

    parts: list[sources.Part]
    source: list[dict[str, Any]]
    oldest: datetime | None
    settings: str
    key: str
    joined: list[list[dict[str, Any]]] = field(default_factory=list)


def plan(data: Data, contract: Contract | None, identity: Identity, suppressed: Suppressed) -> Reading:
    """What to read of a source. `contract` is the given one, `suppressed` the list among the problem's snapshots.

    Of the snapshots made under equal settings, without those who were forgotten, the newest that holds a part of the source is grown.
    """
    parts, facts = identity.parts, identity.source
    known = [{**manifest, "folder": path} for path, manifest in snapshots_in(suppressed.folder)]
    fitting = [manifest for manifest in known if manifest.get("settings") == identity.settings]
    clean = [manifest for manifest in fitting if applied(manifest) == suppressed.digest]
    why = "since no part of it is as it was" if fitting else ""
    why = why if clean or not fitting else "since the snapshots there may hold people who were forgotten since"
    for manifest in sorted(clean, key=lambda found: (found["created"], sum(found["rows"].values())), reverse=True):
        there = [part["mark"] for part in manifest["parts"]]
        pieces = sources.pieces_of(data.source, parts, facts, there)
        if places := _places([mark for _, mark in pieces], there, _lost(manifest)):
            earlier, types = _earlier(data, manifest, places, identity.oldest), dict(manifest["types"])
            # The first part decides over the types. A topic gives no part twice, and is asked once.
            if data.source.kind != "kafka" and (0 not in earlier.parts or pieces[0][0] != parts[0]):
                types = sources.schema_of(data.source, parts)
            why = _why_not(data, contract, earlier, types)
            if not why:
                return Reading([part for part, _ in pieces], [mark for _, mark in pieces], types, earlier)
            break
    pieces = sources.pieces_of(data.source, parts, facts)
    return Reading([part for part, _ in pieces], [mark for _, mark in pieces], sources.schema_of(data.source, parts), why=why)


def _digest(path: Place) -> str:
    """The digest that a snapshot has now; empty when it is gone."""
    try:
        return str(json.loads((path / MANIFEST).read_text())["digest"])
    except (OSError, ValueError):
        return ""


def _places(marks: Sequence[sources.Mark], there: Sequence[sources.Mark], lost: Container[int]) -> dict[int, int]:
    """Where the earlier snapshot has each part; equal parts are taken one by one, those in `lost` not at all."""
    left: dict[str, list[int]] = {}
    for place, mark in enumerate(there):
        if place not in lost:
            left.setdefault(digest_of(mark), []).append(place)
    return {index: left[key].pop(0) for index, mark in enumerate(marks) if left.get(key := digest_of(mark))}


def _lost(manifest: Mapping[str, Any]) -> set[int]:
    """Parts with held-out rows in quarantine that cannot be judged again, since of bytes a checksum is kept there."""
    if "bytes" not in manifest["schema"].values():
        return set()
    files = [file for split in SPLITS for file in (manifest["folder"] / QUARANTINE).glob(f"{split}-*.parquet")]
    return {int(file.stem.rpartition("-")[2]) for file in files}


def _earlier(data: Data, manifest: dict[str, Any], places: Mapping[int, int], oldest: datetime | None) -> Earlier:
    path = manifest["folder"]
    aged = oldest is not None and manifest["oldest"] != oldest.isoformat()
    recount = aged or len(places) < len(manifest["parts"])
    return Earlier(path, manifest, places, oldest if aged else None, data.privacy.retention_column, recount)


def _why_not(data: Data, contract: Contract | None, earlier: Earlier, types: Mapping[str, Any]) -> str:
    """Why the source is read as a whole although a snapshot holds parts of it; empty when that need not be."""
    there = earlier.manifest
    if not data.is_grown_by_new_parts:
        return "since data.forward_fill carries values from part to part"
    if not is_lasting(data.split):
        folds = " with folds" if data.split.folds else ""
        return f"since with data.split.kind={data.split.kind}{folds} new rows move others; with hash, group, time or column they do not"
    before = dict(there["types"])
    if list(types.items()) != list(before.items()):
        name = next((name for name in {**types, **before} if types.get(name) != before.get(name)), "")
        changed = f"column '{name}' is now read as {types.get(name, 'none')}, and was as {before.get(name, 'none')}"
        return f"since {changed if name else 'the order of the columns changed'}"
    if earlier.oldest is not None and datetime.fromisoformat(there["oldest"]) > earlier.oldest:
        return "since data.privacy.retention_days now reaches further back"
    return _why_keys_do_not_allow(data, contract, earlier)


def _why_keys_do_not_allow(data: Data, contract: Contract | None, earlier: Earlier) -> str:
    """Of rows with one key the first of the source stays. So the earlier rows must come first, and all of their keys be known."""
    parts = earlier.manifest["parts"]
    if contract is None or not contract.keys:
        return ""
    if dict(earlier.parts) != {place: place for place in range(len(parts))}:
        return "since the contract has unique keys, of which the first row stays, and a part went, or came before others"
    if isinstance(data.split, ColumnSplit) and any(data.split.column in key for key in contract.keys):
        return f"since '{data.split.column}', in a unique key of the contract, is not kept in a snapshot"
    if any(part["purged"] or part["outside"] for part in parts):
        return "since the contract has unique keys, and the snapshot left out rows that lie in no split"
    if earlier.oldest is not None and any(part["repeated"] for part in parts):
        return "since the contract has unique keys, and rows whose keys were repeated are now too old"
    return ""


# ---------------------------------------------------------------------- one part, in a worker


@dataclass
class Move:
    """One part on its way from the earlier snapshot: which files were linked, new name to old, what was written or linked (as
    `parquet.facts_of` tells it), and rows that were too old."""

    cut: Cut
    earlier: Earlier
    index: int
    linked: dict[str, str] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    expired: int = 0

    def take(self, folder: str, name: str = "part") -> None:
        """Take a file over as it is, if there is one."""
        file = self._there(folder, name)
        if file is not None:
            place = self._place(folder, name)
            take_over(file, place)
            new = str(place.relative_to(self.cut.aside))
            self.linked[new] = str(file.relative_to(self.earlier.path))
            self.files[new] = [sha256_file(place), parquet.num_rows(place, key=self.cut.seal)]

    def rows(self, folder: str, name: str = "part") -> Iterator[pa.Table]:
        """The rows of a file of the earlier snapshot."""
        file = self._there(folder, name)
        yield from parquet.batches(file, key=self.cut.seal) if file is not None else ()

    def write(self, folder: str, tables: Iterator[pa.Table], name: str = "part") -> None:
        writer = parquet.Writer(self._place(folder, name), self.cut.seal)
        for table in tables:
            writer.write(table)
        writer.close()
        self.files |= json.loads(parquet.facts_of([writer], self.cut.aside))

    def training_rows(self) -> Iterator[pa.Table]:
        """The training rows that were taken over."""
        place = self._place("train", "part")
        yield from parquet.batches(place, key=self.cut.seal) if place.is_file() else ()

    def facts(self) -> dict[str, Any]:
        told = {"linked": to_json(self.linked, indent=None), "files": to_json(self.files, indent=None)}
        return {**told, "expired": self.expired}

    def _there(self, folder: str, name: str) -> Place | None:
        file = self.earlier.file(folder, self.index, name)
        if file is not None and not file.is_file():
            raise DataError(f"{file} is gone; expected the file of the manifest. Remove the snapshot.")
        return file

    def _place(self, folder: str, name: str) -> Place:
        return self.cut.aside / folder / f"{name}-{self.index:05}.parquet"


def linked_by(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Files that were linked according to what workers gave, new name to old."""
    return {new: old for item in results for new, old in json.loads(item.get("linked", "{}")).items()}


def take_training(move: Move) -> dict[str, Any]:
    """Take over the training rows of a part that are not too old, and profile them again."""
    lost = sum(table.num_rows - move.earlier.kept(table).num_rows for table in move.rows("train"))
    if lost:
        move.expired += lost
        move.write("train", map(move.earlier.kept, move.rows("train")))
    else:
        move.take("train")
    profile = Profile()
    for table in move.training_rows():
        profile.update(table)
    return {"profile": to_json(profile.to_dict(), indent=None), **move.facts()}


def take_rest(move: Move, contract: Contract, outline: Outline) -> dict[str, Any]:
    """Take over what a part has beside training rows; held-out rows are checked by the contract again, also those in quarantine."""
    if not move.earlier.recount:
        move.take("train")
    tally = Tally(move.cut, contract, outline)
    for table in move.training_rows():
        tally.train(table)
    for name in ("part", "repeated"):
        move.take(QUARANTINE, name)
    for split in SPLITS[1:]:
        _take_held_out(move, split, tally)
    return {**tally.facts(), **move.facts()}


def _take_held_out(move: Move, split: str, tally: Tally) -> None:
    """As it is, if all rows are still good and none waits in quarantine; else the file is written anew."""
    same = True
    for table, was_good in _held_out(move, split, tally.contract):
        kept = move.earlier.kept(table)
        move.expired += table.num_rows - kept.num_rows
        good, _ = tally.judge(split, kept)
        same = same and was_good and good.num_rows == table.num_rows
    if same:
        move.take(split)
        return

    def again(place: int) -> Iterator[pa.Table]:
        for table, _ in _held_out(move, split, tally.contract):
            yield checked(tally.contract, split, move.earlier.kept(table))[place]

    move.write(split, again(0))
    move.write(QUARANTINE, again(1), split)


def _held_out(move: Move, split: str, contract: Contract) -> Iterator[tuple[pa.Table, bool]]:
    """Rows of a split, and those that an earlier contract put into quarantine, with their types; and whether they were good."""
    for table in move.rows(split):
        yield table, True
    types = Contract(columns={name: ColumnContract(type=rule.type) for name, rule in contract.columns.items()})
    for text in move.rows(QUARANTINE, split):
        typed, lost = check_table(types, text)
        assert not lost.num_rows, "a quarantined value that was read once cannot be read again"
        yield typed, False
