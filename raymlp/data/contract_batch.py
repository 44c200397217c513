"""A contract enforced on whole batches: rows that keep it, in its types, and rows that break it, with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymlp.core.errors import DataError, nearest
from raymlp.data.casting import read_column
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.pattern import matches
from raymlp.data.pictures import BrokenImage, decoded
from raymlp.data.privacy import PrivacyKey, transformed
from raymlp.data.profile import column_type, to_text

REASON = "raymlp_reason"
"""Column that says, in quarantined rows, why the row is there."""


def check_table(
    contract: Contract, table: pa.Table, *, where: str = "the source", key: PrivacyKey | None = None
) -> tuple[pa.Table, pa.Table]:
    """Split a batch into rows that keep the contract (cast to its types) and rows that break it (as text,
    with the reason in `raymlp_reason`), both with the privacy rules applied. `key` is the environment's when not given.

    Raises DataError when a column is missing, ConfigError when a rule needs a key and there is none."""
    key = contract.key(key)
    missing = [name for name in contract.columns if name not in table.column_names]
    if missing:
        raise DataError(
            f"{where} has no column '{missing[0]}'; expected the columns {', '.join(contract.columns)}."
            f"{nearest(missing[0], table.column_names)} Mend the source, or change the contract."
        )
    reasons = np.full(table.num_rows, None, dtype=object)
    bad_rows = np.zeros(table.num_rows, dtype=bool)
    columns = []
    hidden: dict[str, pa.ChunkedArray] = {}
    for name, rule in contract.columns.items():
        array = table.column(name)
        cast, unreadable = read_column(array, rule)
        if rule.privacy is not None and rule.privacy.kind != "keep":
            cast = hidden[name] = transformed(cast, name, rule.privacy, key)
        columns.append(cast)
        for bad, reason in ((unreadable, f"{name} is not of type {rule.type}"), *_broken(name, cast, unreadable, rule)):
            reasons[bad & ~bad_rows] = reason
            bad_rows |= bad
    typed = pa.table(columns, names=list(contract.columns))
    if not bad_rows.any():
        return typed, typed.slice(0, 0)
    text = {name: in_quarantine(hidden.get(name, table.column(name))) for name in contract.columns}
    broken = pa.table({**text, REASON: pa.array(reasons.tolist(), pa.string())}).filter(pa.array(bad_rows))
    return typed.filter(pa.array(~bad_rows)), broken


def in_quarantine(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values as text, bytes as a checksum of theirs."""
    return to_text(array) if column_type(array.type) == "bytes" else pc.cast(array, pa.string())


def _broken(name: str, array: pa.ChunkedArray, unreadable: Any, rule: ColumnContract) -> list[tuple[Any, str]]:
    found = []
    if not rule.nullable:
        empty = pc.is_null(array).to_numpy(zero_copy_only=False) & ~unreadable
        found.append((empty, f"{name} is null"))
    if rule.type in ("int", "float") and (rule.minimum is not None or rule.maximum is not None):
        numbers = pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore"):
            if rule.minimum is not None:
                found.append((numbers < rule.minimum, f"{name} is below {rule.minimum:g}"))
            if rule.maximum is not None:
                found.append((numbers > rule.maximum, f"{name} is above {rule.maximum:g}"))
    if rule.categories:
        known = pc.is_in(pc.cast(array, pa.string()), value_set=pa.array(rule.categories))
        unknown = ~known.to_numpy(zero_copy_only=False) & ~pc.is_null(array).to_numpy(zero_copy_only=False)
        found.append((unknown, f"{name} is not one of its categories"))
    if rule.pattern:
        wrong = ~matches(array.combine_chunks(), rule.pattern) & ~pc.is_null(array).to_numpy(zero_copy_only=False)
        found.append((wrong, f"{name} does not match its pattern"))
    if rule.max_pixels is not None:
        found += _broken_images(name, array, rule.max_pixels)
    return found


def _broken_images(name: str, array: pa.ChunkedArray, max_pixels: int) -> list[tuple[Any, str]]:
    """A mask for each thing that is wrong with an image."""
    reasons = np.full(len(array), "", dtype=object)
    for place, content in enumerate(array):
        if content.is_valid:
            try:
                decoded(content.as_py(), max_pixels)
            except BrokenImage as error:
                reasons[place] = str(error)
    return [(reasons == reason, f"{name} is {reason}") for reason in dict.fromkeys(reasons) if reason]
