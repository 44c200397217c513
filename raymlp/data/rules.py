"""Rules of a contract about all rows together: keys that may not repeat, how many rows, how old.

They need the whole of a snapshot: only the columns they name are read, and held in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raymlp.core.errors import ContractError
from raymlp.core.files import Place
from raymlp.data import parquet
from raymlp.data.contract import Contract


@dataclass(frozen=True)
class BrokenRule:
    """A rule of the contract that rows break: how many, and the first, in words."""

    rule: str
    rows: int
    first: str


def repeats(contract: Contract, files: Sequence[Place], *, after: Sequence[Place] = ()) -> NDArray[np.int16]:
    """Which key of the contract each row repeats, int16 (N,): its place in `contract.keys` from 1, or 0 for none.

    Rows are those of the Parquet files, in order; rows of the files in `after` came before them.
    """
    if after and contract.keys:
        return repeats(contract, [*after, *files])[sum(parquet.num_rows(file) for file in after) :]
    found = np.zeros(sum(parquet.num_rows(file) for file in files), np.int16)
    for place, key in enumerate(contract.keys if len(found) else (), start=1):
        table = pa.concat_tables([parquet.read(file, list(key)) for file in files])
        found[_later(table, key) & (found == 0)] = place
    return found


def repeat_reasons(contract: Contract) -> NDArray[Any]:
    """What to say of a row, by the number that `repeats` gives it; object (keys + 1,)."""
    words = [f"{' + '.join(key)} {'repeats' if len(key) == 1 else 'repeat'} an earlier row" for key in contract.keys]
    return np.array(["", *words], dtype=object)


def _later(table: pa.Table, key: Sequence[str]) -> NDArray[np.bool_]:
    """Mask of the rows whose key was there before; a key with a null never was."""
    known = np.ones(table.num_rows, dtype=bool)
    for name in key:
        known &= table.column(name).is_valid().to_numpy()
    numbered = table.append_column("_row", pa.array(np.arange(table.num_rows))).filter(pa.array(known))
    first = numbered.group_by(list(key)).aggregate([("_row", "min")]).column("_row_min").to_numpy()
    known[first] = False
    return known


def newest(contract: Contract, files: Sequence[Place]) -> dict[str, str]:
    """The newest moment of each column that freshness names, in ISO 8601; a column without values is left out."""
    found: dict[str, datetime] = {}
    for name in contract.freshness:
        moments = [pc.max(parquet.read(file, [name]).column(0)).as_py() for file in files]
        known = [moment for moment in moments if moment is not None]
        if known:
            found[name] = max(known)
    return {name: moment.isoformat() for name, moment in found.items()}


def newest_of(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The newest moment of each column over what `newest` gave of parts."""
    found: dict[str, str] = {}
    for part in parts:
        for name, moment in part.items():
            found[name] = max(found.get(name, moment), moment, key=datetime.fromisoformat)
    return found


def broken_as_a_whole(contract: Contract, rows: int, newest: dict[str, str], *, now: datetime | None = None) -> list[BrokenRule]:
    """Row counts and freshness that do not hold."""
    found = []
    if contract.min_rows is not None and rows < contract.min_rows:
        found.append(BrokenRule(f"min_rows {contract.min_rows:,}", rows, f"{rows:,} good rows"))
    if contract.max_rows is not None and rows > contract.max_rows:
        found.append(BrokenRule(f"max_rows {contract.max_rows:,}", rows, f"{rows:,} good rows"))
    for name, age in contract.freshness.items():
        latest = datetime.fromisoformat(newest[name]) if name in newest else None
        if latest is None or (now or datetime.now(UTC)) - latest > age:
            shown = f"the newest value is {latest.isoformat()}" if latest else "no row has a value"
            found.append(BrokenRule(f"freshness of {name}: {age}", rows, shown))
    return found


def hold_freshness(contract: Contract, newest: dict[str, str]) -> None:
    """Raise ContractError when data that was prepared before has grown too old."""
    hold_as_a_whole(contract.model_copy(update={"min_rows": None, "max_rows": None}), 0, newest)


def hold_as_a_whole(contract: Contract, rows: int, newest: dict[str, str]) -> None:
    """Raise ContractError when row counts or freshness do not hold."""
    broken = broken_as_a_whole(contract, rows, newest)
    if broken:
        found = "; ".join(f"{item.rule}: {item.first}" for item in broken)
        raise ContractError(f"the data breaks the contract as a whole: {found}. Mend the source, or change data.contract.")
