"""Where snapshots lie: in a local folder, or in an object store behind a pyarrow filesystem; how they are published and found.

A local snapshot is written aside and renamed. A store has no rename of a folder: there each writer fills a folder of its own,
`NAME-XXXXXXXX`, and its manifest, written last and in one piece, makes it a snapshot. What has no manifest is seen by nobody.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raymlp.config.runtime import Runtime
from raymlp.core.errors import DataError
from raymlp.core.files import Place, make_folder, published
from raymlp.runtime.session import storage_root
from raymlp.runtime.store import MANIFEST, StorePlace, place_of, remove

log = logging.getLogger(__name__)
BEFORE = "before-forget"
"""End of the name of a snapshot on a disk that is being replaced."""


def snapshot_root(runtime: Runtime) -> Place:
    """Where snapshots go: `runtime.snapshots`, or the folder `snapshots` of the results."""
    if runtime.snapshots is None:
        return storage_root(runtime) / "snapshots"
    place = place_of(runtime.snapshots)
    return place.expanduser().resolve() if isinstance(place, Path) else place


def require_store(place: Place) -> None:
    """Raise DataError when a store does not answer or, on S3, has no such bucket. A local folder is made when it is needed."""
    if not isinstance(place, StorePlace):
        return
    if not place.root.startswith("s3://"):
        place.exists()  # elsewhere it takes a right of its own to ask for a bucket
    elif not StorePlace(place.root, "", place.query).exists():
        raise DataError(f"{place} is in a bucket that does not exist. Make it, or set runtime.storage or runtime.snapshots.")


# ---------------------------------------------------------------------- publishing


def published_at(target: Place) -> Place | None:
    """The snapshot that was published as `target`. Of several in a store, which hold the same rows, the oldest."""
    if isinstance(target, Path):
        return target if (target / MANIFEST).is_file() else None
    return next((path for path, _ in snapshots_in(target.parent, f"{target.name}-*")), None)


def manifest_of(path: Place) -> dict[str, Any]:
    """What a snapshot says of itself. Raises DataError when it cannot be read."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no snapshot: its {MANIFEST} cannot be read ({error}). Remove the folder, and prepare again.") from None
    return manifest


def snapshots_in(folder: Place, pattern: str = "[!.]*") -> list[tuple[Place, dict[str, Any]]]:
    """The snapshots of a problem with their manifests, oldest first; without those that another one replaces."""
    found = [(file.parent, manifest_of(file.parent)) for file in folder.glob(f"{pattern}/{MANIFEST}")]
    replaced = {manifest.get("replaces") for _, manifest in found}
    kept = ((path, manifest) for path, manifest in found if path.name not in replaced)
    return sorted(kept, key=lambda item: (item[1]["created"], item[0].name))


def split_files(path: Place, split: str) -> list[str]:
    """Parquet files of a split, in order; empty when the split has no rows."""
    return sorted(str(file) for file in (path / split).glob("*.parquet"))


@contextmanager
def publishing(target: Place) -> Iterator[Place]:
    """A folder to fill, the manifest last; at the end it can be found as `target`. When the body raises, nothing is left of it."""
    if isinstance(target, Path):
        with published(target) as aside:
            yield aside
        return
    assert isinstance(target, StorePlace)
    with _removed_on_error(beside(target)) as aside:
        yield aside


@contextmanager
def replacing(path: Place) -> Iterator[Place]:
    """A folder to fill, the manifest last, which takes the place of `path`; the old one is removed last. In a store it does so from the
    moment it has a manifest with `replaces`, on a disk by two renames when the body ends."""
    if isinstance(path, StorePlace):
        with _removed_on_error(beside(path.with_name(path.name.rpartition("-")[0] or path.name))) as aside:
            yield aside
        remove(path)
        return
    assert isinstance(path, Path)
    before = path.with_name(f".{path.name}.{BEFORE}")
    filled = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    filled.mkdir()
    try:
        yield filled
    except BaseException:
        shutil.rmtree(filled)
        raise
    os.replace(path, before)
    os.replace(filled, path)
    shutil.rmtree(before)


def recover(folder: Place) -> None:
    """Finish what a process that died while `replacing` left: the old snapshot comes back, or goes when the new one is there."""
    if isinstance(folder, StorePlace):
        for _, manifest in snapshots_in(folder):
            if "replaces" in manifest:
                remove(folder / manifest["replaces"])
        return
    assert isinstance(folder, Path)
    for before in folder.glob(f".*.{BEFORE}"):
        path = before.with_name(before.name.removeprefix(".").removesuffix(f".{BEFORE}"))
        if path.exists():
            shutil.rmtree(before)
        else:
            os.replace(before, path)


@contextmanager
def scratch(folder: Place, prefix: str) -> Iterator[Place]:
    """A folder that every task can see, and that is gone afterwards. Raises RaymlpError when it cannot be made."""
    if isinstance(folder, Path):
        with tempfile.TemporaryDirectory(prefix=f"{prefix}-", dir=make_folder(folder), ignore_cleanup_errors=True) as name:
            yield Path(name)
        return
    require_store(folder)
    assert isinstance(folder, StorePlace)
    with _removed_on_error(beside(folder / prefix)) as aside:
        yield aside
    remove(aside)


def beside(target: StorePlace) -> StorePlace:
    """A new name that begins with that of `target`."""
    return target.with_name(f"{target.name}-{uuid.uuid4().hex[:8]}")


@contextmanager
def _removed_on_error(folder: StorePlace) -> Iterator[StorePlace]:
    try:
        yield folder
    except BaseException:
        try:
            remove(folder)
        except DataError as error:
            log.warning("%s was not published and could not be removed: %s", folder, error)
        raise
