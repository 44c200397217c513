"""Filling the folder of a new snapshot: two passes over its parts, and what is judged and written down of the whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np

from raymlp.config.data import Data
from raymlp.config.problem import Problem
from raymlp.config.split import ColumnSplit
from raymlp.core.errors import ContractError, DataError
from raymlp.core.files import Place, digest_of, to_json
from raymlp.data import parquet
from raymlp.data.association import Outline
from raymlp.data.changes import changes_since_last
from raymlp.data.contract import Contract
from raymlp.data.division import Cut, quarantine_repeats, split_keys, training_profile, write_page_data, write_rest, write_training
from raymlp.data.door import anonymity, verdict
from raymlp.data.forward_fill import forward_fill, with_fills
from raymlp.data.growth import Identity, Move, Reading, linked_by, take_rest, take_training
from raymlp.data.place import split_files
from raymlp.data.profile import Profile
from raymlp.data.quality import Evidence, Finding, counted, sampled, upheld
from raymlp.data.rules import hold_as_a_whole, hold_freshness, newest, newest_of, repeat_reasons, repeats
from raymlp.data.split import OUTSIDE, PURGED, REPEATED, SPLITS, Codes, assign, hold_filled
from raymlp.data.staging import Shape, given_contract, shape_of, stage_all, staged_files
from raymlp.data.suppression import Sieve, Suppressed
from raymlp.data.target import Target
from raymlp.data.tasks import begun, each_part
from raymlp.runtime.store import MANIFEST, remove

FORMAT = 3
"""Of what is written; a snapshot of another one is made anew."""
LEFT_OUT = {"repeated": REPEATED, "purged": PURGED, "outside": OUTSIDE}
"""Why a staged row is in no split, in the manifest, and its code."""
COUNTED = ("rows", "bad", "unlabelled", "expired", "suppressed", *LEFT_OUT, "newest", "personal")
"""What the manifest tells of each part: rows staged, in quarantine, without an answer, too old, held back, in no split; newest moments;
hits of the scan for personal data."""


@dataclass(frozen=True)
class Site:
    """What every step of making a snapshot needs: the settings, what is read and taken over, and where parts are divided."""

    problem: Problem
    data: Data
    reading: Reading
    shape: Shape
    cut: Cut


def build(
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
        if problem.target is None:
            raise DataError("the source gives no row; expected some. Set data.source.")
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
        "joined": identity.joined,
        "types": list(site.reading.types.items()),
        "oldest": identity.oldest and identity.oldest.isoformat(),
        "split": site.data.split.model_dump(mode="json"),
        **facts,
        "rows": {name: count for name, count in facts["rows"].items() if count},
        "schema": {name: rule.type for name, rule in contract.columns.items()},
        "files": digests,
    }
    (site.cut.aside / MANIFEST).write_text(to_json(manifest))
