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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from raymlp.config.runtime import Runtime
from raymlp.core.errors import DataError
from raymlp.core.files import Place, make_folder, published, write_text
from raymlp.runtime.session import storage_root

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
BEFORE = "before-forget"
"""End of the name of a snapshot on a disk that is being replaced."""
WHOLE_AT_CLOSE = ("s3", "gcs", "abfs")
"""Filesystems where a file is seen only when all of it is written."""


@dataclass(frozen=True, order=True)
class StorePlace:
    """A folder or file in a store, by its address: the part of `pathlib.Path` that snapshots use. Plain values, so that it travels.

    What the store refuses is a DataError that names the address; what is not there stays FileNotFoundError.
    """

    root: str
    path: str
    query: str = ""

    def __str__(self) -> str:
        return f"{self.root}/{self.path}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, name: str) -> StorePlace:
        return StorePlace(self.root, f"{self.path}/{name}".lstrip("/"), self.query)

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> StorePlace:
        return StorePlace(self.root, self.path.rpartition("/")[0], self.query)

    def with_name(self, name: str) -> StorePlace:
        return self.parent / name

    def relative_to(self, other: StorePlace) -> PurePosixPath:
        return PurePosixPath(self.path).relative_to(other.path)

    def is_file(self) -> bool:
        import pyarrow.fs as pafs

        with self.asking() as (filesystem, path):
            return bool(filesystem.get_file_info(path).type == pafs.FileType.File)

    def exists(self) -> bool:
        import pyarrow.fs as pafs

        with self.asking() as (filesystem, path):
            return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)

    def glob(self, pattern: str) -> Iterator[StorePlace]:
        """Places below that fit, level by level; none when there is no such folder."""
        first, _, rest = pattern.partition("/")
        listed = any(sign in first for sign in "*?[")
        names = [name for name, _ in self._listed()] if listed else [first]
        for found in (self / name for name in names if fnmatchcase(name, first)):
            if rest:
                yield from found.glob(rest)
            elif listed or found.exists():
                yield found

    def files(self) -> list[StorePlace]:
        """All files below, in order."""
        return sorted(self / name for name, is_file in self._listed(recursive=True) if is_file)

    def open(self, mode: Literal["rb"]) -> Any:
        """The file, to read anywhere in it."""
        with self.asking() as (filesystem, path):
            return filesystem.open_input_file(path)

    def read_text(self) -> str:
        with self.asking() as (filesystem, path), filesystem.open_input_stream(path, compression=None) as file:
            return str(file.read().decode())

    def write_text(self, text: str, /) -> int:
        """A reader sees all of the text or none."""
        with self.asking() as (filesystem, path):
            aside = path if filesystem.type_name in WHOLE_AT_CLOSE else f"{path}.{uuid.uuid4().hex[:8]}"
            with filesystem.open_output_stream(aside, compression=None) as file:
                file.write(text.encode())
        if aside != path:
            self.with_name(PurePosixPath(aside).name).replace(self)
        return len(text)

    def replace(self, target: StorePlace) -> None:
        """Put this file in the place of another, in one step where the store can."""
        with self.asking() as (filesystem, path), target.asking() as (_, there):
            if filesystem.type_name not in WHOLE_AT_CLOSE:
                with suppress(FileNotFoundError):
                    filesystem.delete_file(there)
            filesystem.move(path, there)

    def unlink(self) -> None:
        with self.asking() as (filesystem, path):
            filesystem.delete_file(path)

    @contextmanager
    def asking(self) -> Iterator[tuple[Any, str]]:
        """The filesystem and the path in it; what it refuses meanwhile becomes a DataError."""
        import pyarrow as pa

        try:
            filesystem, base = _filesystem(self.root, self.query)
        except (OSError, pa.ArrowInvalid) as error:
            raise self.refusal(error) from error
        try:
            yield filesystem, str(PurePosixPath(base) / unquote(self.path))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self.refusal(error) from error

    def refusal(self, error: Exception) -> DataError:
        """What to say when the store did not do what it was asked."""
        words = str(error).strip().partition("\n")[0].rstrip(".")
        return DataError(
            f"{self} cannot be read or written: {words}. Expected a store that answers and lets the credentials in the environment in. "
            "Set runtime.snapshots, or the credentials."
        )

    def _listed(self, *, recursive: bool = False) -> list[tuple[str, bool]]:
        """What is below, by the path from here, and whether it is a file."""
        import pyarrow.fs as pafs

        with self.asking() as (filesystem, path):
            infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=recursive, allow_not_found=True))
            start = len(path.strip("/"))
            return [(item.path.strip("/")[start:].lstrip("/"), item.type == pafs.FileType.File) for item in infos]


@lru_cache(maxsize=16)
def _filesystem(root: str, query: str) -> tuple[Any, str]:
    """The filesystem of a store and the path of its root, made once a process: it holds the connections."""
    import pyarrow.fs as pafs

    filesystem, base = pafs.FileSystem.from_uri(f"{root}/" + (f"?{query}" if query else ""))
    return filesystem, base


def place_of(text: str) -> Path | StorePlace:
    """The place that a path or an address names."""
    if "://" not in text:
        return Path(text)
    parts = urlsplit(text)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return StorePlace(f"{parts.scheme}://{parts.netloc}", parts.path.strip("/"), parts.query)


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
        raise DataError(f"{place} is in a bucket that does not exist. Make it, or set runtime.snapshots.")


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
        with tempfile.TemporaryDirectory(prefix=f"{prefix}-", dir=make_folder(folder)) as name:
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


def remove(folder: Place) -> None:
    """Remove a folder with all that is in it, the manifest first; none is fine."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=not folder.exists())
        return
    assert isinstance(folder, StorePlace)
    with suppress(FileNotFoundError):
        (folder / MANIFEST).unlink()
    with suppress(FileNotFoundError), folder.asking() as (filesystem, path):
        filesystem.delete_dir(path)


# ---------------------------------------------------------------------- files


def files_in(folder: Place) -> Sequence[Place]:
    """All files below a folder, in order."""
    if isinstance(folder, StorePlace):
        return folder.files()
    assert isinstance(folder, Path)
    return sorted(file for file in folder.rglob("*") if file.is_file())


def writing(place: Place) -> Any:
    """A new file to write bytes to; its folders are made where there are folders."""
    if isinstance(place, StorePlace):
        with place.asking() as (filesystem, path):
            return filesystem.open_output_stream(path, compression=None)
    assert isinstance(place, Path)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place.open("wb")


def write_whole(place: Place, text: str, *, mode: int = 0o666) -> None:
    """Write a file so that a reader sees the old text or the new one. `mode` has its permissions, less the umask, where there are such."""
    if isinstance(place, StorePlace):
        place.write_text(text)
        return
    assert isinstance(place, Path)
    make_folder(place.parent)
    write_text(place, text, mode=mode)


def asking(place: Place) -> Any:
    """What a store refuses meanwhile becomes a DataError; what a local disk says stays as it is."""
    return place.asking() if isinstance(place, StorePlace) else nullcontext()


def take_over(file: Place, place: Place) -> None:
    """The same file in another folder: a second name for it where the disk can, a copy inside the store, or a copy."""
    if isinstance(file, StorePlace) and isinstance(place, StorePlace):
        with place.asking() as (filesystem, path), file.asking() as (_, source):
            try:
                filesystem.copy_file(source, path)
            except NotImplementedError:
                with file.open("rb") as old, writing(place) as new:
                    shutil.copyfileobj(old, new, 1 << 20)
        return
    assert isinstance(file, Path)
    assert isinstance(place, Path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)  # Ray may do a task twice
    try:
        os.link(file, place)
    except OSError:
        shutil.copy2(file, place)
