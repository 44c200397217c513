"""What happens to rows on their way into a snapshot: those of people who were forgotten and old ones stay out, and personal columns
are looked for.

A worker opens the door for its part; the driver adds up what the parts saw.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from raymlp.config.privacy import Privacy
from raymlp.core.errors import DataError
from raymlp.core.files import to_json
from raymlp.data import pii
from raymlp.data.anonymity import Groups, merged_groups
from raymlp.data.contract import Contract
from raymlp.data.suppression import Sieve


def oldest_kept(privacy: Privacy, now: datetime | None = None) -> datetime | None:
    """The first moment that retention keeps, a midnight in UTC; None without retention."""
    if privacy.retention_days is None:
        return None
    today = (now or datetime.now(UTC)).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=privacy.retention_days)


@dataclass(frozen=True)
class Door:
    """What the workers are told. `scanned` are the parts that are looked at for personal data."""

    privacy: Privacy
    oldest: datetime | None
    scanned: frozenset[int]
    sieve: Sieve

    @classmethod
    def of(cls, privacy: Privacy, parts: int, sieve: Sieve) -> Self:
        return cls(privacy, oldest_kept(privacy), frozenset(pii.sampled_parts(parts)), sieve)

    def open(self, part: int) -> Passage:
        """The way of one part's rows."""
        return Passage(self, part in self.scanned)


class Passage:
    """The rows of one part, batch by batch."""

    def __init__(self, door: Door, scan: bool) -> None:
        self.door = door
        self.expired = self.suppressed = 0
        self.personal: pii.Counts | None = None if scan else {}

    def hold_back(self, raw: pa.Table, contract: Contract) -> pa.Table:
        """Raw rows without those of people who were forgotten; these are counted."""
        kept = self.door.sieve.let_through(raw, contract)
        self.suppressed += raw.num_rows - kept.num_rows
        return kept

    def let_in(self, table: pa.Table) -> pa.Table:
        """The good rows that may go on; they are counted."""
        privacy = self.door.privacy
        if self.door.oldest is not None:
            kept = table.filter(is_kept(table.column(privacy.retention_column), self.door.oldest))
            self.expired += table.num_rows - kept.num_rows
            table = kept
        if self.personal is None and table.num_rows:
            self.personal = pii.counted(table, known=privacy.columns)
        return table

    def facts(self) -> dict[str, Any]:
        """What the driver adds up."""
        return {"expired": self.expired, "suppressed": self.suppressed, "personal": to_json(self.personal or {}, indent=None)}


def is_kept(times: pa.ChunkedArray, oldest: datetime) -> pa.ChunkedArray:
    """Which rows are not older than a moment. A row without a time cannot be shown to be, and goes."""
    return pc.fill_null(pc.greater_equal(times, pa.scalar(oldest, times.type)), False)


def verdict(privacy: Privacy, staged: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Facts for the manifest and warnings, from what all parts saw. Raises DataError when retention leaves no row."""
    facts: dict[str, Any] = {}
    warnings = [str(found) for found in pii.findings(pii.added(json.loads(part["personal"]) for part in staged))]
    if privacy.retention_days is not None:
        facts["expired"] = sum(part["expired"] for part in staged)
        if facts["expired"] and not sum(part["rows"] for part in staged):
            raise DataError(
                f"all {facts['expired']:,} rows are older than data.privacy.retention_days={privacy.retention_days}; "
                f"expected newer rows in '{privacy.retention_column}'. Set data.privacy.retention_days."
            )
    return facts, warnings


def anonymity(privacy: Privacy, divided: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Facts for the manifest and warnings, from the groups in all splits. Raises DataError when they are too small and
    `min_k_action` is stop."""
    if not privacy.quasi_identifiers:
        return {}, []
    facts, problem = _anonymity(privacy, merged_groups(part["groups"] for part in divided))
    if problem and privacy.min_k_action == "stop":
        raise DataError(f"{problem}. Generalise one of them under data.privacy.columns, or set data.privacy.min_k_action=warn.")
    return {"anonymity": facts}, [problem] if problem else []


def _anonymity(privacy: Privacy, groups: Groups) -> tuple[dict[str, Any], str]:
    """k and its company, and what is wrong with it; empty when nothing is."""
    below = groups.rows_below(privacy.min_k)
    facts = {
        "quasi_identifiers": privacy.quasi_identifiers,
        "k": groups.k,
        "min_k": privacy.min_k,
        "groups": len(groups.counts),
        "rows_below_min_k": below,
    }
    names = ", ".join(privacy.quasi_identifiers)
    problem = f"{below:,} of {int(groups.counts.sum()):,} rows share {names} with fewer than {privacy.min_k} rows (k is {groups.k}); "
    return facts, problem + f"expected groups of {privacy.min_k} or more (data.privacy.min_k)" if below else ""
