"""k-anonymity (Samarati and Sweeney 1998): in how small a group do the quasi-identifiers of a row leave its person?

Groups are counted by a 64-bit digest, 16 bytes a group, so that the counts of parts add up without their rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass
class Groups:
    """Rows by group: `digests` uint64 (G,) in order and `counts` int64 (G,), G groups of equal quasi-identifiers. Null is a value."""

    digests: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def update(self, table: pa.Table, columns: Sequence[str]) -> Self:
        """Take in the rows of a table."""
        grouped = table.select(list(columns)).group_by(list(columns), use_threads=False).aggregate([([], "count_all")])
        rows = zip(*(grouped.column(name).to_pylist() for name in columns), strict=True)
        digests = b"".join(blake2b(repr(row).encode(), digest_size=8).digest() for row in rows)
        return self.merge(Groups(np.frombuffer(digests, np.uint64), grouped.column("count_all").to_numpy()))

    def merge(self, other: Groups) -> Self:
        """Take in other counts."""
        digests = np.concatenate([self.digests, other.digests])
        self.digests, place = np.unique(digests, return_inverse=True)
        counts = np.zeros(len(self.digests), np.int64)
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        self.counts = counts
        return self

    @property
    def k(self) -> int:
        """Rows of the smallest group; 0 without rows."""
        return int(self.counts.min()) if len(self.counts) else 0

    def rows_below(self, k: int) -> int:
        """Rows in groups of fewer than `k`."""
        return int(self.counts[self.counts < k].sum())

    def to_bytes(self) -> bytes:
        return self.digests.astype(np.uint64).tobytes() + self.counts.astype(np.int64).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        half = len(data) // 2
        return cls(np.frombuffer(data[:half], np.uint64), np.frombuffer(data[half:], np.int64))


def merged_groups(parts: Iterable[bytes]) -> Groups:
    """The counts of all parts."""
    total = Groups()
    for part in parts:
        total.merge(Groups.from_bytes(part))
    return total
