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
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
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
from raymlp.data.division import Cut, quarantine_repeats, split_keys, training_profile, write_page_data, write_rest, write_training
from raymlp.data.door import anonymity, oldest_kept, verdict
from raymlp.data.forward_fill import forward_fill, with_fills
from raymlp.data.growth import Identity, Move, Reading, linked_by, plan, take_rest, take_training
from raymlp.data.place import MANIFEST, published_at, publishing, remove, require_store
from raymlp.data.privacy import key_for
from raymlp.data.profile import Profile
from raymlp.data.quality import Evidence, Finding, counted, sampled, upheld
from raymlp.data.rules import hold_as_a_whole, hold_freshness, newest, newest_of, repeat_reasons, repeats
from raymlp.data.split import OUTSIDE, PURGED, REPEATED, SPLITS, Codes, assign, hold_filled
from raymlp.data.staging import Shape, given_contract, joining, shape_of, stage_all, staged_files
from raymlp.data.suppression import Sieve, Suppressed, applied
from raymlp.data.target import Target
from raymlp.data.tasks import begun, each_part

log = logging.getLogger(__name__)
FORMAT = 3
EXTENT = ("path", "version", "snapshot_id", "end")
"""Settings of a source that say which parts there are, and nothing about what becomes of a part."""
JUDGED = ("checks", "max_bad_share")
"""Settings of the data by which a snapshot is judged as a whole, whatever becomes of a part."""
LEFT_OUT = {"repeated": REPEATED, "purged": PURGED, "outside": OUTSIDE}
"""Why a staged row is in no split, in the manifest, and its code."""
COUNTED = ("rows", "bad", "unlabelled", "expired", "suppressed", *LEFT_OUT, "newest", "personal")
"""What the manifest tells of each part: rows staged, in quarantine, without an answer, too old, held back, in no split; newest moments;
hits of the scan for personal data."""


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
            hold_freshness(given_contract(data.contract), json.loads((found / MANIFEST).read_text())["newest"])
        return open_snapshot(found, reused=True)
    require_store(folder)
    contract = given_contract(data.contract) if data.contract else None
    reading = plan(data, contract, identity, suppressed)
    with publishing(target) as aside:
        _build(problem, data, aside, identity, reading, suppressed, say, warnings)
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
    settings = digest_of(facts)
    return Identity(parts, source, oldest, settings, digest_of([settings, apart, source, oldest]))


def open_snapshot(path: Place, *, reused: bool = False) -> Snapshot:
    """The record of a snapshot on disk. Raises DataError when it is not one."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no snapshot: {error}.") from None
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


@dataclass(frozen=True)
class Site:
    """What every step of making a snapshot needs: the settings, what is read and taken over, and where parts are divided."""

    problem: Problem
    data: Data
    reading: Reading
    shape: Shape
    cut: Cut


def _build(
    problem: Problem,
    data: Data,
    aside: Place,
    identity: Identity,
    reading: Reading,
    suppressed: Suppressed,
    say: Callable[[str], None],
    before: list[str],
) -> None:
    started = time.time()
    shape, warnings = shape_of(problem, data, reading.types)
    left_out = data.split.key_columns if isinstance(data.split, ColumnSplit) else ()
    cut = Cut(aside / "staging", aside, left_out, problem.id_columns, data.privacy.quasi_identifiers, shape.seal)
    site = Site(problem, data, reading, shape, cut)
    say(reading.words())
    warnings += suppressed.warnings({*shape.types, *(name for _, lookup in shape.lookups for name in lookup.column_names)})
    counts = _staged(site, suppressed.sieve())
    facts, noticed = verdict(data.privacy, counts)
    facts |= suppressed.facts(counts)
    if not any(count["rows"] for count in counts):
        raise DataError(f"no row has a value in '{problem.target}'; expected labelled rows. Set problem.target.")
    say(f"splitting {sum(counts[index]['rows'] for index in reading.new):,} rows ({data.split.kind})")
    facts["filled"] = forward_fill(problem, data, staged_files(cut.staging, reading.new), shape.seal)
    codes, again_repeated = _codes(site, counts)
    facts["newest"] = newest_of(count["newest"] for count in counts)
    hold_freshness(shape.contract, facts["newest"])
    written = each_part(lambda place: write_training(cut, reading.new[place], codes[reading.new[place]]), len(reading.new))
    again = reading.earlier.recounted
    moved = each_part(lambda place: take_training(Move(cut, reading.earlier, again[place])), len(again))
    profile = training_profile([*written, *moved], reading.earlier.profile())
    contract = _contract(site, profile)
    looking = None if reading.earlier.parts else _looking(site, profile, contract)
    say(f"checking {len(contract.columns)} columns against the contract")
    divided = _rest(site, codes, contract, profile)
    looking = looking or _looking(site, profile, contract)
    contract = contract.with_images(data.image_columns, data.max_image_pixels)
    later = sum(count["repeated"] for count in counts) + sum(part["bad"] for part in divided)
    _hold_budget(data, counts, later, next((part["first"] for part in divided if part["first"]), ""))
    for index, item in (*zip(again, moved, strict=True), *((index, divided[index]) for index in reading.earlier.parts)):
        counts[index] |= {"rows": counts[index]["rows"] - item["expired"], "expired": counts[index]["expired"] + item["expired"]}
    told = [again_repeated, *(item["files"] for item in (*counts, *written, *moved, *divided) if "files" in item)]
    files = {name: fact for part in told for name, fact in json.loads(part).items()}
    digests = {name: sha256 for name, (sha256, _) in files.items()}
    facts["rows"] = {split: sum(rows for name, (_, rows) in files.items() if name.startswith(f"{split}/")) for split in SPLITS}
    hold_filled(data.split, facts["rows"])
    hold_as_a_whole(shape.contract, sum(facts["rows"].values()), facts["newest"])
    remove(cut.staging)
    say("looking for leaks, copies and noise")
    grouped, too_small = anonymity(data.privacy, divided)
    facts |= grouped | {"warnings": [*before, *warnings, *noticed, *too_small]}
    facts["quality"] = [asdict(item) for item in _inspected(site, profile, contract, divided, looking)]
    facts["changes"] = [asdict(change) for change in changes_since_last(aside, contract, profile)]
    facts |= _sums(site, counts, divided)
    write_page_data(aside, divided, shape.seal)
    (aside / "profile.json").write_text(parquet.sealed_text(to_json(profile.to_dict(), indent=None), shape.seal))
    (aside / "contract.yaml").write_text(contract.to_yaml())
    reading.earlier.hold_unchanged(linked_by([*moved, *divided]), digests)
    _write_manifest(site, identity, contract, digests, facts, started)


def _staged(site: Site, sieve: Sieve) -> list[dict[str, Any]]:
    """Counts of each part of the source: of new ones as they are staged, of others as they were."""
    new = site.reading.new
    staged = stage_all(site.shape, {index: site.reading.parts[index] for index in new}, site.cut.aside, sieve)
    of_part = dict(zip(new, staged, strict=True))
    counts = [of_part.get(index) or site.reading.earlier.counts(index) for index in range(len(site.reading.parts))]
    _hold_budget(site.data, counts)
    return counts


def _codes(site: Site, counts: list[dict[str, Any]]) -> tuple[dict[int, Codes], str]:
    """Codes of the staged rows of each new part, and what was quarantined (as `parquet.facts_of` tells it). Its counts get the rows in
    no split and the newest moments."""
    new, data, contract = site.reading.new, site.data, site.shape.contract
    files = staged_files(site.cut.staging, new)
    repeated = repeats(contract, files, after=site.reading.earlier.files())
    codes = np.full(len(repeated), REPEATED, np.int8)
    codes[repeated == 0] = assign(data.split, split_keys(site.problem, data, files)[repeated == 0])
    bounds = np.cumsum([0] + [counts[index]["rows"] for index in new])
    pieces = {index: codes[start:end] for index, (start, end) in zip(new, pairwise(bounds), strict=True)}
    for index, piece in pieces.items():
        counts[index] |= {name: int(np.sum(piece == code)) for name, code in LEFT_OUT.items()}
        counts[index]["newest"] = newest(contract, staged_files(site.cut.staging, [index]))
    told = quarantine_repeats(site.shape, site.cut.staging, new, bounds, repeated, site.cut.aside / "quarantine")
    _hold_budget(data, counts, sum(count["repeated"] for count in counts), repeat_reasons(contract)[repeated.max(initial=0)])
    in_splits = {name: int(np.sum(codes == code)) + site.reading.earlier.rows(name) for code, name in enumerate(SPLITS)}
    hold_filled(data.split, in_splits)
    return pieces, told


def _contract(site: Site, profile: Profile) -> Contract:
    """The given contract of the columns that are kept, or one that the training rows keep."""
    given = site.data.contract
    contract = given_contract(given).without(site.cut.leave_out) if given else Contract.infer(profile)
    contract = with_fills(contract, site.data).with_privacy(site.data.privacy.columns, site.shape.key)
    return contract.without_examples() if site.shape.seal else contract


def _rest(site: Site, codes: dict[int, Codes], contract: Contract, profile: Profile) -> list[dict[str, Any]]:
    """The second pass over every part: what `write_rest` gives of a new one and `take_rest` of one that is taken over."""
    outline, seen, cut, earlier = (
        Outline.of(profile, Target.fit(site.problem, profile)),
        contract.without_privacy(),
        site.cut,
        site.reading.earlier,
    )

    def rest(index: int) -> dict[str, Any]:
        if index in earlier.parts:
            return take_rest(Move(cut, earlier, index), seen, outline)
        return write_rest(cut, index, codes[index], seen, outline)

    return each_part(rest, len(site.reading.parts))


def _sums(site: Site, counts: list[dict[str, Any]], divided: list[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest tells of the parts, and of all together."""
    summed = {name: sum(count[name] for count in counts) for name in ("bad", "repeated", "unlabelled", "purged", "expired")}
    quarantined = summed.pop("bad") + summed.pop("repeated") + sum(part["bad"] for part in divided)
    if site.data.privacy.retention_days is None:
        summed.pop("expired")
    reading = site.reading
    return {
        **summed,
        "quarantined": quarantined,
        "grown_from": reading.earlier.digest or None,
        "parts_read": len(reading.new),
        "read_anew": reading.why,
        "parts": [{"mark": mark, **{name: count[name] for name in COUNTED}} for mark, count in zip(reading.marks, counts, strict=True)],
    }


def _looking(site: Site, profile: Profile, contract: Contract) -> Callable[[], list[Finding]]:
    """The quality checks that take long, begun as soon as all training rows are there; calling it waits for what they found."""
    evidence, checks = _evidence(site, profile, contract), site.data.checks
    wait = begun(lambda _: {"found": sampled(evidence, checks)})
    return lambda: list(wait()[0]["found"])


def _inspected(
    site: Site, profile: Profile, contract: Contract, divided: list[dict[str, Any]], looking: Callable[[], list[Finding]]
) -> list[Finding]:
    """Findings of all quality checks. Raises DataError when one of them is to stop the run."""
    hashes = {name: np.frombuffer(b"".join(part[f"hashes_{name}"] for part in divided), np.uint64) for name in ("train", "valid", "test")}
    return upheld([*counted(replace(_evidence(site, profile, contract), hashes=hashes), site.data.checks), *looking()])


def _evidence(site: Site, profile: Profile, contract: Contract) -> Evidence:
    files = {name: split_files(site.cut.aside, name) for name in ("train", "valid", "test")}
    return Evidence(site.problem, site.data.split, profile, list(contract.columns), files, seal=site.shape.seal)


def _hold_budget(data: Data, counts: list[dict[str, Any]], later: int = 0, first: str = "") -> None:
    """Raise ContractError when too many rows are bad: those of the first pass, and `later` ones, of which `first` is one."""
    bad = sum(count["bad"] for count in counts)
    rows = sum(count["rows"] for count in counts) + bad
    bad += later
    if rows and bad / rows > data.max_bad_share:
        first = next((count["first"] for count in counts if count["first"]), first)
        raise ContractError(
            f"{bad:,} of {rows:,} rows ({bad / rows:.1%}) break the contract; expected at most {data.max_bad_share:.1%}. "
            f"The first: {first}. Mend the source, change data.contract or data.source.types, or raise data.max_bad_share."
        )


def _write_manifest(
    site: Site, identity: Identity, contract: Contract, digests: dict[str, str], facts: dict[str, Any], started: float
) -> None:
    """Written last: with its manifest a snapshot is whole."""
    manifest = {
        "format": FORMAT,
        "problem": site.problem.name,
        "key": identity.key,
        "settings": identity.settings,
        "digest": digest_of(digests),
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": round(time.time() - started, 2),
        "source": identity.source,
        "types": list(site.reading.types.items()),
        "oldest": identity.oldest and identity.oldest.isoformat(),
        "split": site.data.split.model_dump(mode="json"),
        **facts,
        "rows": {name: count for name, count in facts["rows"].items() if count},
        "schema": {name: rule.type for name, rule in contract.columns.items()},
        "files": digests,
    }
    (site.cut.aside / MANIFEST).write_text(to_json(manifest))
