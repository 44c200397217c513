"""Plain text: a row a line, or a row a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from raymlp.config.sources import ColumnType, TextSource
from raymlp.core.errors import DataError
from raymlp.data.sources import files, rows
from raymlp.data.sources.part import BadRows, Mark, Part

ENDINGS = tuple(f".{name}{packed}" for name in ("txt", "text", "md", "log") for packed in ("", *files.COMPRESSED, ".zip"))


def parts(source: TextSource) -> list[Part]:
    return files.find(source.path, ENDINGS)


def fingerprint(source: TextSource, parts: list[Part]) -> list[dict[str, Any]]:
    return files.fingerprint(parts)


def pieces(source: TextSource, parts: list[Part], facts: list[dict[str, Any]], known: Sequence[Mark]) -> list[tuple[Part, Mark]]:
    return files.pieces(
        parts, facts, known, grows=lambda part, _: source.row == "line" and files.is_plain(part, source.encoding), by_path=True
    )


def schema(source: TextSource, parts: list[Part]) -> dict[str, ColumnType]:
    return {"text": "string", "path": "string"}


def batches(source: TextSource, part: Part, types: dict[str, ColumnType], batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
    yield from rows.tables(_rows(source, part), types, batch_rows)


def _rows(source: TextSource, part: Part) -> Iterator[dict[str, str]]:
    files.refuse_other_kinds(part, source.encoding)
    limit = round(source.max_row_mb * (1 << 20))
    with files.reading(part):
        if source.row == "file":
            content = files.open_stream(part, max_expansion=source.max_expansion, encoding=source.encoding).read(limit + 1)
            if len(content) > limit:
                raise DataError(f"{part.path} is longer than {source.max_row_mb:g} MiB. Set data.source.row=line, or raise max_row_mb.")
            yield {"text": _text(part, 1, content.removeprefix(b"\xef\xbb\xbf")), "path": part.path}
            return
        for number, line in files.numbered_lines(part, limit, max_expansion=source.max_expansion, encoding=source.encoding):
            text = _text(part, number, line).rstrip("\r\n")
            if text.strip():
                yield {"text": text, "path": part.path}


def _text(part: Part, number: int, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        line_number = number + line[: error.start].count(b"\n")
        raise DataError(f"{part.path}, line {line_number} is not UTF-8 text. Set data.source.encoding (latin-1, cp1252, ...).") from None
