"""What is different from the last snapshot of the same problem: columns added, removed, retyped, ranges moved, new categories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raymlp.config.sources import ColumnType
from raymlp.core.files import Place
from raymlp.data import parquet
from raymlp.data.contract import Contract
from raymlp.data.place import snapshots_in
from raymlp.data.profile import ColumnProfile, Profile

RANGE_SLACK = 0.1
"""Share of the old range that a column may go beyond it without a word."""
MAX_CATEGORIES = 1_000
"""Columns with more distinct texts than this are no categories."""
SHOWN = 5


@dataclass(frozen=True)
class Change:
    """One difference: what kind, in which column, in words."""

    kind: Literal["added", "removed", "retyped", "range moved", "new categories"]
    column: str
    detail: str

    def __str__(self) -> str:
        return f"{self.column}: {self.kind}, {self.detail}"


def changes_since_last(snapshot: Place, contract: Contract, profile: Profile) -> list[Change]:
    """Differences of training rows and schema from the newest other snapshot beside `snapshot`; none when it is the first."""
    others = snapshots_in(snapshot.parent)
    if not others:
        return []
    folder, last = others[-1]
    before = Profile.from_dict(json.loads(parquet.unsealed_text(folder / "profile.json")))
    return differences(last["schema"], before, {name: rule.type for name, rule in contract.columns.items()}, profile)


def differences(old_types: Mapping[str, Any], old: Profile, new_types: Mapping[str, ColumnType], new: Profile) -> list[Change]:
    """Differences between two schemas and the profiles of their training rows, column by column in the new order."""
    found = [Change("added", name, f"type {kind}") for name, kind in new_types.items() if name not in old_types]
    found += [Change("removed", name, f"was of type {kind}") for name, kind in old_types.items() if name not in new_types]
    for name, kind in new_types.items():
        if name not in old_types:
            continue
        if kind != old_types[name]:
            found.append(Change("retyped", name, f"{old_types[name]} before, {kind} now"))
        elif name in old.columns and name in new.columns:
            found += _moved(name, old.columns[name], new.columns[name])
    return found


def _moved(name: str, old: ColumnProfile, new: ColumnProfile) -> list[Change]:
    if not old.values or not new.values:
        return []
    if old.type in ("int", "float"):
        slack = RANGE_SLACK * (old.maximum - old.minimum)
        if new.minimum < old.minimum - slack or new.maximum > old.maximum + slack:
            ranges = [f"{column.minimum:g} to {column.maximum:g}" for column in (old, new)]
            return [Change("range moved", name, f"{ranges[0]} before, {ranges[1]} now")]
    if old.type == "string" and max(old.num_distinct, new.num_distinct) <= MAX_CATEGORIES:
        known = old.counts()
        fresh = [value for value in new.counts() if value not in known]
        if fresh:
            more = f" and {len(fresh) - SHOWN} more" if len(fresh) > SHOWN else ""
            return [Change("new categories", name, ", ".join(fresh[:SHOWN]) + more)]
    return []
