"""Rows taken out of snapshots, the prediction log and the labels: one person's, or those that are too old.

A snapshot is otherwise never changed. Here it is written anew beside itself and swapped in: by two renames, or in an object store
by a manifest that names the snapshot it replaces. The manifest gets the new digests and a note of the event, without the value. A
person is also listed, so that `prepare` does not read them in again. Rows that still wait in a replica's memory, and reports made
earlier, are not reached.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlp.config.privacy import Generalise, Hash, Mask, Pseudonymise, Rule
from raymlp.core.errors import ConfigError, DataError, nearest
from raymlp.core.files import Place, digest_of, sha256_file, to_json
from raymlp.data import parquet
from raymlp.data.association import Association, Outline
from raymlp.data.contract import Contract
from raymlp.data.door import is_kept
from raymlp.data.hours import log_files, write_table
from raymlp.data.place import manifest_of, recover, replacing, snapshots_in, split_files
from raymlp.data.privacy import PrivacyKey, environment_key, needs_key, routing_key_hider, single
from raymlp.data.profile import Profile, to_text
from raymlp.data.snapshot import load_contract
from raymlp.data.split import SPLITS
from raymlp.data.suppression import Suppressed, applied
from raymlp.runtime.store import MANIFEST, StorePlace, files_in, take_over, write_whole

INPUT = "in."
"""Prefix of the inputs' columns in the prediction log."""


@dataclass(frozen=True)
class Wanted:
    """What to remove: rows whose `column` holds one of `forms`, or, with `oldest`, rows whose `column` is before it.
    `routing_keys` are looked for in the prediction log as well, inputs there only when `by_input`. With `by_token` the value that was
    given is a hash or a pseudonym already, and a source that has the raw one is not recognised by it."""

    column: str
    by_input: bool = True
    by_token: bool = False
    forms: frozenset[str] = frozenset()
    routing_keys: frozenset[str] = frozenset()
    oldest: datetime | None = None

    def rows(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Which values are wanted; null is none of them, but without a time a row is too old."""
        if self.oldest is not None:
            return pc.invert(is_kept(column, self.oldest)) if pa.types.is_timestamp(column.type) else _none_of(column)
        return pc.fill_null(pc.is_in(to_text(column), value_set=_as_texts(self.forms, column.type)), False)


@dataclass(frozen=True)
class Lists:
    """Digests of the list of those who were forgotten: a snapshot that keeps one of `before` keeps `after` once it is cleaned."""

    before: frozenset[str]
    after: str

    def mark(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest of a snapshot that was cleaned of the newest person."""
        kept = applied(manifest) in self.before
        return {**manifest, "suppressed": {"rows": 0, **manifest.get("suppressed", {}), "list": self.after}} if kept else {**manifest}


@dataclass(frozen=True)
class Forgotten:
    """What was removed: snapshots by name with the rows and every digest they had; rows of the log; labels; what was passed over."""

    snapshots: Mapping[str, int]
    digests: frozenset[str]
    log_rows: int
    labels: int
    notes: tuple[str, ...] = field(default=())


def person(folder: Place, column: str, value: str, rules: Mapping[str, Rule]) -> Wanted:
    """The rows of one person: `value` as it is, and as every hash or pseudonym that the column has in a snapshot under `folder` or
    in `rules`, the present settings.

    Raises ConfigError when such a column needs a key that is missing or another, and when the column is masked or generalised
    everywhere; DataError when no snapshot has the column.
    """
    contracts = [load_contract(path) for path, _ in snapshots_in(folder)]
    names = dict.fromkeys(name for contract in contracts for name in contract.columns)
    if contracts and column not in names:
        raise DataError(f"no snapshot has a column '{column}'; expected one of {', '.join(names)}.{nearest(column, names)} Set --key.")
    used = [contract.columns[column].privacy for contract in contracts if column in contract.columns]
    blurred = [isinstance(rule, Mask | Generalise) for rule in used]
    if blurred and all(blurred):
        raise ConfigError(
            f"'{column}' is masked or generalised in every snapshot: several people share a value. Set --key to another column."
        )
    found = {repr(rule): rule for rule in [*used, rules.get(column)] if isinstance(rule, Hash | Pseudonymise)}
    key = _key(contracts, [*found.values(), *rules.values()])
    tokens = {str(single(column, rule, key)(value)) for rule in found.values()}
    return Wanted(column, not any(blurred), value in tokens, frozenset({value, *tokens}), frozenset({value, routing_key_hider(key)(value)}))


def forget(
    wanted: Wanted, *, snapshots: Place, log: Place, labels: Place, shadows: Place | None = None, dry_run: bool = False
) -> Forgotten:
    """Remove what is wanted from every snapshot under `snapshots`, from the prediction log, the labels of those predictions and what a
    shadow answered beside them (`shadows`); a person is put on the list of those whom `prepare` leaves out.

    `dry_run` only counts. Each snapshot and each file is either as before or as after; started again, it goes on where it stopped.
    Raises ConfigError or DataError when a key of the list is missing or another one; then nothing is touched.
    """
    lists = _listed(snapshots, wanted) if wanted.oldest is None and not dry_run else None
    recover(snapshots)
    counts: dict[str, int] = {}
    digests: set[str] = set()
    notes: list[str] = []
    if wanted.by_token:
        notes.append(f"the value is a token of '{wanted.column}': where the source has the raw value, `prepare` reads the person in again")
    for path, _ in snapshots_in(snapshots):
        if wanted.column not in load_contract(path).columns:
            notes.append(f"snapshot {path.name} has no column '{wanted.column}' and was left as it is; the next `prepare` makes it anew")
            continue
        if wanted.oldest is None and isinstance(load_contract(path).columns[wanted.column].privacy, Mask | Generalise):
            notes.append(
                f"snapshot {path.name} has '{wanted.column}' masked or generalised and was left as it is; the next `prepare` makes it anew"
            )
            continue
        rows, seen = _in_snapshot(path, wanted, lists, dry_run=dry_run)
        if rows:
            counts[path.name] = rows
            digests |= seen
    log_rows, ids = _in_log(log, wanted, notes, dry_run=dry_run)
    for file in log_files(shadows) if shadows is not None else ():
        table = parquet.read(file)
        gone = pc.or_(_logged(table, wanted), pc.is_in(table.column("prediction_id"), value_set=pa.array(sorted(ids), pa.string())))
        if pc.any(gone).as_py() and not dry_run:
            _replace(file, table.filter(pc.invert(gone)))
    return Forgotten(counts, frozenset(digests), log_rows, _in_labels(labels, ids, dry_run=dry_run), tuple(notes))


def _listed(snapshots: Place, wanted: Wanted) -> Lists:
    """Put a person on the list; the digests it may have had before, and the one it has now."""
    before = Suppressed.load(snapshots)
    without, after = before.listing(wanted.column, wanted.forms)
    if after != before:
        after.save()
    return Lists(frozenset({before.digest, without.digest}), after.digest)


# ---------------------------------------------------------------------- snapshots


def _in_snapshot(path: Place, wanted: Wanted, lists: Lists | None, *, dry_run: bool) -> tuple[int, set[str]]:
    """Rows removed from a snapshot, and every digest it ever had."""
    files = files_in(path)
    hits = {file: count for file in files if file.name.endswith(".parquet") and (count := _count(file, wanted.column, wanted.rows))}
    rows = sum(hits.values())
    manifest = manifest_of(path)
    marked = lists.mark(manifest) if lists else manifest
    if rows and not dry_run:
        with replacing(path) as aside:
            for file in files:
                place = aside / str(file.relative_to(path))
                if file in hits:
                    _rewrite(file, place, wanted.column, wanted.rows)
                elif file.name != MANIFEST:
                    take_over(file, place)
            _describe_again(aside, wanted, {file.parent.name for file in hits} & set(SPLITS))
            changed = {str(file.relative_to(path)) for file in hits}
            manifest = _noted(marked, aside, wanted, rows, changed) | ({"replaces": path.name} if isinstance(path, StorePlace) else {})
            (aside / MANIFEST).write_text(to_json(manifest))
    elif marked != manifest:
        write_whole(path / MANIFEST, to_json(marked))
    return rows, {manifest["digest"], *(event["digest_before"] for event in manifest.get("forgotten", ()))}


def _describe_again(aside: Place, wanted: Wanted, splits: Collection[str]) -> None:
    """Profiles of the splits that lost rows, and how the columns of the training rows move; an example that names the person goes."""
    for split in splits:
        profile = Profile()
        for file in split_files(aside, split):
            for table in parquet.batches(file):
                profile.update(table)
        _write_again(aside / ("profile.json" if split == "train" else f"profile-{split}.json"), profile.to_dict())
        if split == "train":
            _associate_again(aside, profile)
    contract = load_contract(aside)
    if str(contract.columns[wanted.column].example) in wanted.forms:
        (aside / "contract.yaml").unlink()
        (aside / "contract.yaml").write_text(_without_example(contract, wanted.column).to_yaml())


def _associate_again(aside: Place, profile: Profile) -> None:
    file = aside / "association.json"
    if not file.exists():
        return
    if not profile.rows:
        file.unlink()
        return
    association = Association(Outline.of(profile, Association.from_json(parquet.unsealed_text(file)).outline.target))
    for part in split_files(aside, "train"):
        for table in parquet.batches(part):
            association.update(table)
    _write_again(file, association.to_dict())


def _write_again(file: Place, plain: Mapping[str, Any]) -> None:
    """Other content for a file that was linked from the old snapshot, encrypted as it was; an older snapshot may lack the file."""
    if file.exists():
        key = parquet.environment_key() if parquet.is_sealed(file) else None
        file.unlink()
        file.write_text(parquet.sealed_text(to_json(plain, indent=None), key))


def _without_example(contract: Contract, column: str) -> Contract:
    changed = contract.columns[column].model_copy(update={"example": None})
    return Contract(columns={**contract.columns, column: changed})


def _noted(manifest: dict[str, Any], aside: Place, wanted: Wanted, rows: int, changed: Collection[str]) -> dict[str, Any]:
    """The manifest of what is left, with the event. Digests of files that did not change are taken over."""
    left_files = {str(file.relative_to(aside)): file for file in files_in(aside) if file.name.endswith(".parquet")}
    files = {name: sha256_file(file) if name in changed else manifest["files"][name] for name, file in left_files.items()}
    left = {name: sum(parquet.num_rows(file) for file in split_files(aside, name)) for name in SPLITS}
    quarantined = sum(parquet.num_rows(file) for file in (aside / "quarantine").glob("*.parquet"))
    event = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "column": wanted.column,
        "why": "a person" if wanted.oldest is None else f"older than {wanted.oldest.date()}",
        "rows": rows,
        "digest_before": manifest["digest"],
    }
    return {
        **manifest,
        "changes": [change for change in manifest.get("changes", ()) if change["column"] != wanted.column],
        "files": files,
        "digest": digest_of(files),
        "rows": {name: count for name, count in left.items() if count},
        "quarantined": quarantined,
        "forgotten": [*manifest.get("forgotten", ()), event],
    }


# ---------------------------------------------------------------------- the prediction log and the labels


def _in_log(folder: Place, wanted: Wanted, notes: list[str], *, dry_run: bool) -> tuple[int, set[str]]:
    """Rows removed from the log, and the predictions they belong to."""
    removed, ids = 0, set[str]()
    named = 0
    files = log_files(folder)
    for file in files:
        table = parquet.read(file)
        named += wanted.oldest is not None or (wanted.by_input and INPUT + wanted.column in table.column_names)
        gone = _logged(table, wanted)
        count = pc.sum(gone).as_py() or 0
        if count:
            removed += count
            ids |= set(table.filter(gone).column("prediction_id").to_pylist())
            if not dry_run:
                _replace(file, table.filter(pc.invert(gone)))
    if files and not named:
        notes.append(f"the prediction log does not tell people apart by '{wanted.column}': its rows were looked for by routing key alone")
    return removed, ids


def _logged(table: pa.Table, wanted: Wanted) -> pa.ChunkedArray:
    if wanted.oldest is not None:
        return wanted.rows(table.column("time"))
    keys = pa.array(sorted(wanted.routing_keys), pa.string())
    gone = pc.fill_null(pc.is_in(table.column("routing_key"), value_set=keys), False)
    name = INPUT + wanted.column
    return pc.or_(gone, wanted.rows(table.column(name))) if wanted.by_input and name in table.column_names else gone


def _in_labels(folder: Place, ids: set[str], *, dry_run: bool) -> int:
    removed = 0
    wanted = pa.array(sorted(ids), pa.string())
    for file in sorted(folder.glob("[!.]*.parquet")) if ids else ():
        table = parquet.read(file)
        gone = pc.is_in(table.column("prediction_id"), value_set=wanted)
        count = pc.sum(gone).as_py() or 0
        removed += count
        if count and not dry_run:
            _replace(file, table.filter(pc.invert(gone)))
    return removed


# ---------------------------------------------------------------------- files


def _count(file: Place, column: str, test: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> int:
    return sum(pc.sum(test(table.column(column))).as_py() or 0 for table in parquet.batches(file, [column]))


def _rewrite(file: Place, place: Place, column: str, test: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> None:
    """The rows of a file that do not pass the test, encrypted as the file is; no file when none is left."""
    key = parquet.environment_key() if parquet.is_encrypted(file) else None
    writer = parquet.Writer(place, key)
    for table in parquet.batches(file):
        writer.write(table.filter(pc.invert(test(table.column(column)))))
    writer.close()


def _replace(file: Place, table: pa.Table) -> None:
    """The file with other rows, at once; without rows it goes."""
    if table.num_rows:
        write_table(table, file)
    else:
        file.unlink()


def _as_texts(forms: frozenset[str], kind: pa.DataType) -> pa.Array:
    """The forms as the texts that a column of a type has for them: `1.50` is `1.5` among numbers."""
    texts = set(forms)
    for form in forms:
        try:
            texts.add(pc.cast(pc.cast(pa.scalar(form), kind), pa.string()).as_py())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    return pa.array(sorted(texts), pa.string())


def _none_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(np.zeros(len(column), dtype=bool))])


def _key(contracts: Sequence[Contract], rules: Sequence[Rule]) -> PrivacyKey | None:
    """The key, when anything needs one; it must be the one that every snapshot was made with."""
    keys = [key for contract in contracts if (key := contract.key()) is not None]
    if keys:
        return keys[0]
    return environment_key("a column is hashed or pseudonymised") if any(map(needs_key, rules)) else None
