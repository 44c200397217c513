"""From a snapshot back to the files it was made from: which are still there, and which are still what they were."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymlp.config.data import Data
from raymlp.core.errors import DataError
from raymlp.core.files import Place, sha256_file
from raymlp.core.records import Snapshot, Station
from raymlp.data import sources
from raymlp.data.place import snapshots_in
from raymlp.data.snapshot import open_snapshot
from raymlp.runtime.store import MANIFEST


def with_digest(folder: Place, digest: str) -> Snapshot | None:
    """The snapshot of a digest among those of a problem; None when it is gone."""
    found = (path for path, manifest in snapshots_in(folder) if manifest["digest"] == digest)
    return next((open_snapshot(path) for path in found), None)


def snapshot_station(snapshot: Snapshot) -> Station:
    """Whether every file of a snapshot is what the manifest says. Reads them all."""
    manifest = json.loads((snapshot.path / MANIFEST).read_text())
    files: Mapping[str, str] = manifest.get("files", {})
    missing = [name for name in files if not (snapshot.path / name).is_file()]
    changed = [name for name, digest in files.items() if name not in missing and sha256_file(snapshot.path / name) != digest]
    said = f"{snapshot.digest[:12]} in {snapshot.path}, made {str(manifest.get('created', 'at an unknown time'))[:19]}"
    if missing:
        return Station("snapshot", said, "missing", f"{_listed(missing)} of its {len(files)} files")
    if changed:
        return Station("snapshot", said, "changed", f"{_listed(changed)} of its {len(files)} files")
    return Station("snapshot", said, "same", f"{len(files)} files, {sum(snapshot.rows.values()):,} rows")


def source_stations(snapshot: Snapshot, data: Data) -> Iterator[Station]:
    """The files of the source and of each joined table, as the manifest names them, beside what is there now."""
    manifest = json.loads((snapshot.path / MANIFEST).read_text())
    yield from _beside(manifest.get("source", []), data.source)
    if data.joins and "joined" not in manifest:
        yield Station("source", f"{len(data.joins)} joined tables", "unknown", "the manifest, of an older version, does not name them")
        return
    for recorded, join in zip(manifest.get("joined", []), data.joins, strict=True):
        yield from _beside(recorded, join.source)


def _beside(recorded: Sequence[Mapping[str, Any]], source: Any) -> Iterator[Station]:
    try:
        now = sources.fingerprint(source)
    except DataError as error:
        yield from (Station("source", _said(fact), "missing", str(error)) for fact in recorded)
        return
    came = [fact for fact in now if fact not in recorded]
    for fact in recorded:
        if fact in now:
            yield Station("source", _said(fact), "same")
            continue
        found = next((other for other in came if _name(other) == _name(fact)), None)
        if found is None:
            yield Station("source", _said(fact), "missing", f"{source.name} no longer has it")
        else:
            came.remove(found)
            yield Station("source", _said(fact), "changed", f"now {_said(found)}")
    if came:
        yield Station("source", f"{len(came)} more of {source.name}", "unknown", f"came later: {_listed([_name(fact) for fact in came])}")


def _name(fact: Mapping[str, Any]) -> str:
    """What a fact of a fingerprint is about."""
    return str(fact.get("file") or fact.get("table") or "part")


def _said(fact: Mapping[str, Any]) -> str:
    """A fact of a fingerprint in a few words."""
    mark = str(fact.get("mark", ""))[:12]
    size = f", {fact['bytes']:,} bytes" if "bytes" in fact else ""
    return f"{_name(fact)}{size}{f', {mark}' if mark else ''}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
