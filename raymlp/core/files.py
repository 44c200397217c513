"""Files that are either whole or absent: write aside, then publish by one rename."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, Literal, Protocol, Self, TypeVar

from raymlp.core.errors import RaymlpError


class Place(Protocol):
    """A folder or file: the part of `pathlib.Path` that object stores have as well (`raymlp.runtime.store`)."""

    @property
    def name(self) -> str: ...
    @property
    def parent(self) -> Self: ...
    def __truediv__(self, key: str, /) -> Self: ...
    def __lt__(self, other: Any, /) -> bool: ...
    def __hash__(self) -> int: ...
    def with_name(self, name: str) -> Self: ...
    def relative_to(self, other: Any, /) -> PurePath: ...
    def is_file(self) -> bool: ...
    def exists(self) -> bool: ...
    def glob(self, pattern: str) -> Iterator[Self]: ...
    def open(self, mode: Literal["rb"]) -> Any: ...
    def read_text(self) -> str: ...
    def write_text(self, data: str, /) -> int: ...
    def unlink(self, missing_ok: bool = False) -> None: ...
    def replace(self, target: Any, /) -> Any: ...
    def stat(self) -> Any: ...


Somewhere = TypeVar("Somewhere", bound=Place)


def sha256_file(path: Place) -> str:
    """Hex SHA-256 of a file's bytes, read in 8 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(8 << 20):
            digest.update(piece)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(to_json(value, indent=None).encode()).hexdigest()


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """Strict JSON with sorted keys: NaN and infinities become null, so that any reader accepts it."""
    return json.dumps(_finite(value), indent=indent, sort_keys=True, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_text(path: Somewhere, text: str, *, mode: int = 0o666) -> Somewhere:
    """Write a file so that a reader sees the old text or the new one, never a part. `mode` has its permissions, less the umask, where
    there are such."""
    if not isinstance(path, Path):
        path.write_text(text)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    aside.touch(mode=mode)
    aside.write_text(text)
    os.replace(aside, path)
    return path


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """Give a folder to fill; rename it to `target` at the end, or remove it when the body raises.

    An existing `target` is kept (the content is the same by its name, which is a digest).
    Raises RaymlpError when the place cannot be written.
    """
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    make_folder(aside)
    try:
        yield aside
        if target.exists():
            shutil.rmtree(aside)
        else:
            os.replace(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def make_folder(path: Somewhere) -> Somewhere:
    """Create a folder and its parents, where there are folders; raise RaymlpError that names the first place that refuses."""
    if not isinstance(path, Path):
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RaymlpError(
            f"{path} cannot be created ({error.strerror or error}); expected a place that can be written. "
            "Set runtime.storage or runtime.snapshots."
        ) from error
    if not os.access(path, os.W_OK):
        raise RaymlpError(f"{path} cannot be written; expected write permission. Set runtime.storage or runtime.snapshots.")
    return path
