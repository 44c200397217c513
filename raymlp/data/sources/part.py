"""What all kinds of source speak of: parts, and rows that could not be split into fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from raymlp.config.sources import ColumnType

MAX_REASONS = 10_000
"""Reasons kept of one part; further bad rows are counted."""
BATCH_BYTES = 256 << 20
"""A batch is given before it reaches `batch_rows` when it holds this many bytes."""


Mark = dict[str, Any]
"""Facts of one part, JSON-able; two parts with equal marks hold equal rows."""


@dataclass(frozen=True)
class Part:
    """A piece of a source that one task reads: a file, some row groups of one, some files, a query, a partition."""

    path: str
    filesystem: Any = field(default=None, repr=False)
    size: int = 0
    piece: tuple[Any, ...] = ()
    """Which piece of `path`, in the words of its kind; empty is all of it."""


@dataclass
class BadRows:
    """Rows of a file that could not be split into fields: how many, and the first reasons."""

    reasons: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, reason: str) -> None:
        self.count += 1
        if len(self.reasons) < MAX_REASONS:
            self.reasons.append(reason)

    def clear(self) -> None:
        """Forget all, since the part is read again from its start."""
        self.reasons.clear()
        self.count = 0


class Kind(Protocol):
    """What the module of one kind of source offers. `source` is the section of that kind."""

    def parts(self, source: Any) -> list[Part]:
        """The parts, in a fixed order, without reading rows."""

    def fingerprint(self, source: Any, parts: list[Part]) -> list[dict[str, Any]]:
        """Facts that change when the rows may have changed."""

    def schema(self, source: Any, parts: list[Part]) -> dict[str, ColumnType]:
        """Column types."""

    def pieces(self, source: Any, parts: list[Part], facts: list[dict[str, Any]], known: Sequence[Mark]) -> list[tuple[Part, Mark]]:
        """The parts with their marks. A part that grew since `known` marks were taken is given as what was there, and the rest."""

    def batches(self, source: Any, part: Part, types: dict[str, ColumnType], batch_rows: int, bad: BadRows) -> Iterator[pa.Table]:
        """The rows of a part in their order, which is the same each time."""
