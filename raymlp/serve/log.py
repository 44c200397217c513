"""The prediction log: rows wait in memory, and go to Parquet files by the hour that are either whole or absent.

Beside the columns of `SCHEMA` a file has one column `in.NAME` for each input, with the contract's type. `prediction` is the
probability, the value, the anomaly score, or the place of the most likely class or of the cluster. `routes` are the routes
that chose the version (see `routing`), null in files of before they were logged. `flags` are the inputs that were out of place
(see `screening`), comma separated, null for none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

from raymlp.config.serve import Log
from raymlp.core.errors import DataError
from raymlp.core.files import Place
from raymlp.data.casting import ARROW
from raymlp.data.contract import Contract
from raymlp.data.contract_row import Row
from raymlp.data.hours import hour_of, log_files, read_table, write_new
from raymlp.serve.routing import bucket

INPUT = "in."
"""Prefix of the columns that hold a request's values."""
SAMPLING = "sample of the prediction log"
"""Salt of the hash that says which predictions are logged: one of its own, so that it has nothing to do with the version."""

SCHEMA = pa.schema(
    [
        ("prediction_id", pa.string()),
        ("row", pa.int64()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("version", pa.string()),
        ("routing_key", pa.string()),
        ("status", pa.int64()),
        ("prediction", pa.float64()),
        ("latency_ms", pa.float64()),
        ("routes", pa.string()),
        ("flags", pa.string()),
    ]
)


class Entry(NamedTuple):
    """One logged row. `time` is seconds since 1970; `inputs` are typed values, None for a request that failed."""

    prediction_id: str
    row: int
    time: float
    version: str
    routing_key: str
    status: int
    prediction: float | None
    latency_ms: float
    inputs: Row | None
    routes: str = ""
    flags: str | None = None


class PredictionLog:
    """Rows of one replica on their way to disk. `add` costs microseconds; `flush` may run in another thread."""

    def __init__(self, folder: Place, settings: Log, *, writer: str = "local") -> None:
        self.folder, self.settings, self.writer = folder, settings, writer
        self.dropped = 0
        self._waiting: deque[Entry] = deque()
        self._contracts: dict[str, Contract] = {}
        self._left_out: dict[str, frozenset[str]] = {}
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_due(self) -> bool:
        """Whether enough rows wait for a file."""
        return len(self._waiting) >= self.settings.flush_rows

    def know(self, version: str, contract: Contract) -> None:
        """Types of a version's input columns; told before its first row. Those of type bytes are not logged: images would fill
        memory and disk, and say nothing of drift."""
        heavy = frozenset(name for name, rule in contract.columns.items() if rule.type == "bytes")
        self._left_out[version], self._contracts[version] = heavy, contract.without(heavy)

    def add(self, entry: Entry) -> None:
        """Let a row wait, if it is of the sample; the oldest goes when `max_rows` are waiting, and is counted in `dropped`."""
        if self.settings.sample < 1 and bucket(entry.prediction_id, SAMPLING) >= self.settings.sample:
            return
        if len(self._waiting) >= self.settings.max_rows:
            self._waiting.popleft()
            self.dropped += 1
        if entry.inputs is not None and (heavy := self._left_out.get(entry.version)):
            entry = entry._replace(inputs={name: value for name, value in entry.inputs.items() if name not in heavy})
        self._waiting.append(entry)

    def flush(self) -> int:
        """Write what waits, one file a version and hour, and give back the number of rows written.

        Rows that cannot be written (a full disk, a store that is away) wait again, up to `max_rows`; the error is raised.
        """
        with self._writing:
            entries = [self._waiting.popleft() for _ in range(len(self._waiting))]
            written = 0
            try:
                entries.sort(key=_file_of)
                for (version, hour), group in groupby(entries, key=_file_of):
                    rows = list(group)
                    write_new(_table(rows, self._contracts.get(version)), self.folder / hour, writer=self.writer)
                    written += len(rows)
            except (OSError, DataError):
                lost = entries[written:]
                room = max(0, self.settings.max_rows - len(self._waiting))
                kept = lost[len(lost) - min(room, len(lost)) :]
                self.dropped += len(lost) - len(kept)
                self._waiting.extendleft(reversed(kept))
                raise
            return written


def read_log(folder: Place, *, since: datetime | None = None, newest_rows: int | None = None) -> pa.Table:
    """All rows of a log, or those of the hour of `since` and later ones, or those of the newest files that hold so many, oldest first.
    Columns that only some versions have are null for the others; a column whose type changed between versions becomes the wider type, or
    text. A log without files has no rows."""
    tables: list[pa.Table] = []
    for path in reversed(log_files(folder, since=since)):
        if newest_rows is not None and sum(table.num_rows for table in tables) >= newest_rows:
            break
        tables.append(read_table(path))
    tables.reverse()
    if not tables:
        return SCHEMA.empty_table()
    tables = [SCHEMA.empty_table(), *tables]
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    common = {name: _common_type([table.schema.field(name).type for table in tables if name in table.column_names]) for name in names}
    cast = [table.cast(pa.schema([(name, common[name]) for name in table.column_names])) for table in tables]
    return pa.concat_tables(cast, promote_options="default").sort_by([("time", "ascending"), ("row", "ascending")])


def _file_of(entry: Entry) -> tuple[str, str]:
    return entry.version, hour_of(entry.time)


def _common_type(types: list[pa.DataType]) -> pa.DataType:
    known = {kind for kind in types if not pa.types.is_null(kind)} or {pa.null()}
    if len(known) == 1:
        return known.pop()
    return pa.float64() if known == {pa.int64(), pa.float64()} else pa.string()


def _table(entries: list[Entry], contract: Contract | None) -> pa.Table:
    columns: dict[str, Any] = {
        "prediction_id": [entry.prediction_id for entry in entries],
        "row": [entry.row for entry in entries],
        "time": [round(entry.time * 1e6) for entry in entries],
        "version": [entry.version for entry in entries],
        "routing_key": [entry.routing_key for entry in entries],
        "status": [entry.status for entry in entries],
        "prediction": [entry.prediction for entry in entries],
        "latency_ms": [entry.latency_ms for entry in entries],
        "routes": [entry.routes for entry in entries],
        "flags": [entry.flags for entry in entries],
    }
    arrays = {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}
    empty: Mapping[str, Any] = {}
    for name, rule in (contract.columns if contract else {}).items():
        arrays[INPUT + name] = pa.array([(entry.inputs or empty).get(name) for entry in entries], ARROW[rule.type])
    return pa.table(arrays)
