"""What a machine has on its own disk of places in object stores: copies of folders, and what its processes alone need.

Where results are in a folder nothing is copied: the folder itself is what all of this gives back.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from raymlp.core.errors import DataError
from raymlp.core.files import Place, published
from raymlp.runtime.store import MANIFEST, StorePlace, asking, files_in, remove, writing

VARIABLE = "RAYMLP_CACHE"
PIECE = 8 << 20


def cache_folder() -> Path:
    """The folder of this machine for copies: RAYMLP_CACHE, or `raymlp` in the user's cache folder. It may be emptied at any time."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(VARIABLE) or Path(home) / "raymlp")


def own_folder(place: Place) -> Path:
    """Where processes of this machine keep what they alone need beside a place: the folder itself, or one of its own for a store."""
    if isinstance(place, Path):
        return place
    return cache_folder() / "own" / sha256(str(place).encode()).hexdigest()[:16]


def local_copy(place: Place, *, check: Callable[[Path], Any] = lambda folder: None) -> Path:
    """A folder with a manifest as a folder of this machine: itself, or a copy, made once for a manifest. `check` sees a new copy before
    others do, and raises for one that is not whole. Raises FileNotFoundError where there is no manifest."""
    if isinstance(place, Path):
        return place
    assert isinstance(place, StorePlace)
    target = cache_folder() / "copies" / sha256((place / MANIFEST).read_text().encode()).hexdigest()[:32]
    if not target.exists():
        with published(target) as aside:
            for file in place.files():
                inside = file.relative_to(place)
                if inside.is_absolute() or ".." in inside.parts:  # whoever may write there must not choose where we do
                    raise DataError(f"{file} leads out of its folder; expected a name below {place}. Remove it.")
                there = aside / inside
                there.parent.mkdir(parents=True, exist_ok=True)
                with file.open("rb") as source, there.open("wb") as out:
                    shutil.copyfileobj(source, out, PIECE)
            check(aside)
    return target


@contextmanager
def filled(target: Place) -> Iterator[Path]:
    """A folder of this machine to fill, with a manifest; at the end all of it is at `target`: by one rename, or copied into a store, the
    manifest last. When the body raises, nothing is left of it. A `target` that is there is kept, as in `published`."""
    if isinstance(target, Path):
        with published(target) as aside:
            yield aside
        return
    with tempfile.TemporaryDirectory(prefix="raymlp-") as name:
        folder = Path(name)
        yield folder
        if (target / MANIFEST).is_file():
            return
        try:
            for file in sorted(files_in(folder), key=lambda file: file == folder / MANIFEST):
                with asking(target), file.open("rb") as source, writing(target / str(file.relative_to(folder))) as out:
                    shutil.copyfileobj(source, out, PIECE)
        except BaseException:
            remove(target)
            raise
