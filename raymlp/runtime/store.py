"""Places in object stores: what `pathlib.Path` is for a disk, over a pyarrow filesystem, and what can be done with either alike.

A store has no rename of a folder, no lock and nothing that is added to. What it has is that a file is seen whole or not at all, and, by
`write_if`, that of several who write one file at once only one does.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from raymlp.core.errors import ConfigError, DataError
from raymlp.core.files import Place, make_folder, write_text

MANIFEST = "manifest.json"
"""What is written last into a folder of a store, and removed first: without it the folder counts as absent."""
WHOLE_AT_CLOSE = ("s3", "gcs", "abfs")
"""Filesystems where a file is seen only when all of it is written."""


class Stat(NamedTuple):
    """Of a file in a store: bytes, and when it was written, in seconds and nanoseconds since 1970."""

    st_size: int
    st_mtime: float
    st_mtime_ns: int


class Seen(NamedTuple):
    """A file as it was read, and what tells it from any later one."""

    text: str
    tag: dict[str, Any]


@dataclass(frozen=True, order=True)
class StorePlace:
    """A folder or file in a store, by its address: the part of `pathlib.Path` that is used here. Plain values, so that it travels.

    What the store refuses is a DataError that names the address; what is not there stays FileNotFoundError.
    """

    root: str
    path: str
    query: str = ""
    facts: Stat | None = field(default=None, compare=False, repr=False)
    """Of a file that was listed, at that time."""

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

    def stat(self) -> Stat:
        """Of a file, as it was listed, or else as it is. Raises FileNotFoundError."""
        import pyarrow.fs as pafs

        if self.facts is not None:
            return self.facts
        with self.asking() as (filesystem, path):
            found = filesystem.get_file_info(path)
        if found.type != pafs.FileType.File:
            raise FileNotFoundError(str(self))
        return _stat(found)

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
        below = self._listed() if listed else [(self / first, False)]
        for found in (place for place, _ in below if fnmatchcase(place.name, first)):
            if rest:
                yield from found.glob(rest)
            elif listed or found.exists():
                yield found

    def files(self) -> list[StorePlace]:
        """All files below, in order."""
        return sorted(place for place, is_file in self._listed(recursive=True) if is_file)

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

    def unlink(self, missing_ok: bool = False) -> None:
        with suppress(FileNotFoundError) if missing_ok else nullcontext(), self.asking() as (filesystem, path):
            filesystem.delete_file(path)

    def seen(self) -> Seen | None:
        """The file and what tells it from any later one; None where there is none."""
        with self._conditional() as store:
            try:
                found = store.get(unquote(self.path))
            except FileNotFoundError:
                return None
            return Seen(bytes(found.bytes()).decode(), _tag(found.meta))

    def write_if(self, text: str, seen: Seen | None) -> Seen:
        """Write the file if it is still the one that was `seen`, or absent for None: of several who do so at once, one succeeds.

        Raises FileExistsError when it is another one by now. `text` must be one that nobody else writes: a store that did what it was
        asked may be asked again, and would say that it did it already.
        """
        require_conditions(self)
        with self._conditional() as store:
            from obstore.exceptions import AlreadyExistsError, PreconditionError

            try:
                tag = store.put(unquote(self.path), text.encode(), mode="create" if seen is None else seen.tag)
                return Seen(text, _tag(tag))
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                if seen is None and isinstance(error, FileNotFoundError):
                    raise  # no such bucket
                now = self.seen()
                if now is not None and now.text == text:
                    return now
                raise FileExistsError(f"{self} was written by another process") from None

    @contextmanager
    def _conditional(self) -> Iterator[Any]:
        """The store by a client that can write on a condition, which pyarrow's cannot."""
        store = _client(self.root, self.query)
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield store
        except (AlreadyExistsError, PreconditionError, FileExistsError):
            raise
        except (BaseError, OSError) as error:
            raise self.refusal(error) from error

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
            "Set runtime.storage or runtime.snapshots, or the credentials."
        )

    def _listed(self, *, recursive: bool = False) -> list[tuple[StorePlace, bool]]:
        """What is below, and whether it is a file."""
        import pyarrow.fs as pafs

        with self.asking() as (filesystem, path):
            infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=recursive, allow_not_found=True))
            start = len(path.strip("/"))
        found = []
        for item in infos:
            is_file = item.type == pafs.FileType.File
            below = f"{self.path}/{item.path.strip('/')[start:].lstrip('/')}".lstrip("/")
            found.append((StorePlace(self.root, below, self.query, _stat(item) if is_file else None), is_file))
        return found


def _tag(known: Any) -> dict[str, Any]:
    """What tells a version of a file from others: S3 and Azure have an ETag, Google a generation."""
    return {name: known[name] for name in ("e_tag", "version") if known[name] is not None}


def _stat(item: Any) -> Stat:
    return Stat(item.size, item.mtime_ns / 1e9, item.mtime_ns)


@lru_cache(maxsize=16)
def _filesystem(root: str, query: str) -> tuple[Any, str]:
    """The filesystem of a store and the path of its root, made once a process: it holds the connections."""
    import pyarrow.fs as pafs

    if root.startswith("s3://") and "allow_delayed_open" not in query:
        query = "&".join(part for part in (query, "allow_delayed_open=true") if part)  # a small file is one request, and not three
    filesystem, base = pafs.FileSystem.from_uri(f"{root}/" + (f"?{query}" if query else ""))
    return filesystem, base


@lru_cache(maxsize=16)
def _client(root: str, query: str) -> Any:
    """The client that writes on conditions, made once a process. Raises ConfigError where there is none."""
    try:
        from obstore.store import from_url
    except ImportError:
        raise ConfigError(
            "results in an object store need the package obstore, which is missing. Run: pip install 'raymlp[store]'."
        ) from None
    asked = {key: values[-1] for key, values in parse_qs(query).items()}
    options: dict[str, Any] = {}
    if root.startswith("s3://") and "region" in asked:
        options["region"] = asked["region"]
    if endpoint := asked.get("endpoint_override"):
        options["endpoint"] = endpoint if "://" in endpoint else f"{asked.get('scheme', 'https')}://{endpoint}"
        options["client_options"] = {"allow_http": options["endpoint"].startswith("http://")}
    return from_url(root.replace("gcs://", "gs://"), **options)


@lru_cache(maxsize=16)
def _proof(root: str, query: str) -> list[bool]:
    """Whether a store was seen to refuse what it must."""
    return []


def ray_storage(place: Place) -> dict[str, Any]:
    """A place in the words of Ray Train's and Ray Tune's run configs."""
    if not isinstance(place, StorePlace):
        return {"storage_path": str(place)}
    with place.asking() as (filesystem, path):
        return {"storage_filesystem": filesystem, "storage_path": path}


def require_conditions(place: StorePlace) -> None:
    """Raise ConfigError for a store that writes a file although it is there: nobody could hold a claim in it. Asked once a process."""
    if _proof(place.root, place.query):
        return
    trial = place.with_name(f".trial-{uuid.uuid4().hex}")
    with trial._conditional() as store:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        name = unquote(trial.path)
        store.put(name, b"1", mode="create")
        try:
            store.put(name, b"2", mode="create")
        except (AlreadyExistsError, PreconditionError):
            _proof(place.root, place.query).append(True)
        finally:
            store.delete(name)
    if not _proof(place.root, place.query):
        raise ConfigError(
            f"{place.root} writes a file anew although it was to be absent; expected a store that knows If-None-Match and If-Match. "
            "Set runtime.storage to another store, or to a folder."
        )


def place_of(where: str | Place) -> Place:
    """The place that a path or an address names; a place is itself."""
    if not isinstance(where, str):
        return where
    if "://" not in where:
        return Path(where)
    parts = urlsplit(where)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return StorePlace(f"{parts.scheme}://{parts.netloc}", parts.path.strip("/"), parts.query)


# ---------------------------------------------------------------------- either kind of place


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
    make_folder(place.parent)
    write_text(place, text, mode=mode)


def write_bytes(place: Place, content: Any) -> None:
    """Write a file, whole or not at all, whose name begins with no dot. Raises OSError, or DataError in a store."""
    if isinstance(place, StorePlace):
        with asking(place), writing(place) as file:
            file.write(content)
        return
    assert isinstance(place, Path)
    aside = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.write_bytes(content)
        os.replace(aside, place)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


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
