"""JSON Lines and JSON arrays of objects, read as they stream. A line that is no object is a bad row."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import pyarrow as pa

from raymlp.config.sources import ColumnType, JsonSource
from raymlp.core.errors import DataError
from raymlp.data.sources import files, rows
from raymlp.data.sources.part import BadRows, Mark, Part

ENDINGS = tuple(f".{name}{packed}" for name in ("json", "jsonl", "ndjson") for packed in ("", *files.COMPRESSED, ".zip"))
GAP = re.compile(r"[\s,]*")


def parts(source: JsonSource) -> list[Part]:
    return files.find(source.path, ENDINGS)


def fingerprint(source: JsonSource, parts: list[Part]) -> list[dict[str, Any]]:
    return files.fingerprint(parts)


def pieces(source: JsonSource, parts: list[Part], facts: list[dict[str, Any]], known: Sequence[Mark]) -> list[tuple[Part, Mark]]:
    return files.pieces(parts, facts, known, grows=lambda part, _: _is_lines(source, part))


def schema(source: JsonSource, parts: list[Part]) -> dict[str, ColumnType]:
    part, bad = parts[0], BadRows()
    try:
        return rows.inferred(_objects(source, part, bad), source.types, part.path)
    except DataError:
        if bad.reasons:
            raise DataError(
                f"{part.path} holds no JSON object ({bad.reasons[0]}); expected one a line, or an array of objects. Mend the file."
            ) from None
        raise


def batches(source: JsonSource, part: Part, types: dict[str, ColumnType], batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
    yield from rows.tables(_objects(source, part, bad), types, batch_rows)


def _objects(source: JsonSource, part: Part, bad: BadRows) -> Iterator[dict[str, Any]]:
    files.refuse_other_kinds(part, source.encoding)
    limit = round(source.max_row_mb * (1 << 20))
    with files.reading(part):
        for number, found, value in _values(source, part, limit):
            if isinstance(value, dict):
                yield value
            else:
                what = "null or no JSON" if value is None else type(value).__name__
                bad.add(f"{found} {number} is {what}; expected an object")


def _values(source: JsonSource, part: Part, limit: int) -> Iterator[tuple[int, str, Any]]:
    """Number, what it counts, and value; None for what is no JSON."""
    lines = _lines(source, part, limit)
    number, line = next(lines, (0, b""))
    if line.startswith(b"["):
        for index, value in enumerate(_elements(source, part, limit), start=1):
            yield index, "element", value
        return
    while line:
        yield number, "line", _loaded(line)
        number, line = next(lines, (0, b""))


def _is_lines(source: JsonSource, part: Part) -> bool:
    """Whether a file is plain JSON Lines, so that what was appended stands on its own."""
    return files.is_plain(part, source.encoding) and files.first_line(part).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


def _loaded(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _lines(source: JsonSource, part: Part, limit: int) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank. An array on one long line is given up to the limit, to be told by its bracket."""
    for number, line in files.numbered_lines(part, limit, max_expansion=source.max_expansion, encoding=source.encoding, bracket=b"["):
        if line.strip():
            yield number, line.strip()


def _elements(source: JsonSource, part: Part, limit: int) -> Iterator[Any]:
    stream = files.open_stream(part, max_expansion=source.max_expansion, encoding=source.encoding)
    decoder, raw = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
    text, place, count, at_end = "", 0, 0, False
    while True:
        place = GAP.match(text, place).end()  # type: ignore[union-attr]
        if not count and text[place : place + 1] == "[":
            count, place = 1, place + 1
            continue
        if text[place : place + 1] == "]":
            return
        try:
            value, place = raw.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            if at_end or len(text) - place > limit:
                what = "the array ends too early" if at_end else f"no JSON, or longer than {source.max_row_mb:g} MiB"
                raise DataError(
                    f"{part.path}, element {count}: {what} ({error}). Mend the file, or raise data.source.max_row_mb."
                ) from None
            piece = stream.read(files.PIECE_BYTES)
            at_end = not piece
            text, place = text[place:] + decoder.decode(piece, final=at_end), 0
            continue
        count += 1
        yield value
