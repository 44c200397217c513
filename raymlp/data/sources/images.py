"""Folders of images: their bytes, not decoded. A file that is no image is a bad row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from raymlp.config.sources import ColumnType, ImageSource
from raymlp.core.files import digest_of
from raymlp.data.sources import files, rows
from raymlp.data.sources.part import BadRows, Mark, Part

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
FILES_PER_PART = 1000
PART_BYTES = 256 << 20


def parts(source: ImageSource) -> list[Part]:
    """Some files each, so that small files do not cost a task each."""
    found = files.find(source.path, ENDINGS, empty=True)
    pieces: list[list[Part]] = [[]]
    for file in found:
        if len(pieces[-1]) >= FILES_PER_PART or sum(item.size for item in pieces[-1][-1:]) > PART_BYTES:
            pieces.append([])
        pieces[-1].append(file)
    return [Part(piece[0].path, piece[0].filesystem, sum(item.size for item in piece), tuple(piece)) for piece in pieces]


def fingerprint(source: ImageSource, parts: list[Part]) -> list[dict[str, Any]]:
    return files.fingerprint([file for part in parts for file in part.piece])


def pieces(source: ImageSource, parts: list[Part], facts: list[dict[str, Any]], known: Sequence[Mark]) -> list[tuple[Part, Mark]]:
    """A group of files is marked by all of them, with their paths, which are in the rows."""
    of_file = dict(zip(dict.fromkeys(file.path for part in parts for file in part.piece), facts, strict=True))
    marks = [digest_of([(file.path, of_file[file.path]) for file in part.piece]) for part in parts]
    return [(part, {"files": len(part.piece), "mark": mark}) for part, mark in zip(parts, marks, strict=True)]


def schema(source: ImageSource, parts: list[Part]) -> dict[str, ColumnType]:
    label: dict[str, ColumnType] = {"label": "string"} if source.label else {}
    return {"image": "bytes", "path": "string", **label}


def batches(source: ImageSource, part: Part, types: dict[str, ColumnType], batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
    yield from rows.tables(_rows(source, part, bad), types, batch_rows)


def _rows(source: ImageSource, part: Part, bad: BadRows) -> Iterator[dict[str, Any]]:
    for file in part.piece:
        if file.size > source.max_image_mb * (1 << 20):
            bad.add(f"{file.path} has {file.size / (1 << 20):.1f} MiB; expected at most {source.max_image_mb:g}")
            continue
        with files.reading(file):
            content = file.filesystem.open_input_stream(file.path, compression=None).read()
        if not content.startswith(SIGNATURES):
            bad.add(f"{file.path} is no image: it starts with {content[:8]!r}")
            continue
        yield {"image": content, "path": file.path, "label": PurePosixPath(file.path).parent.name}
