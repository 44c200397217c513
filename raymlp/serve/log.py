"""The prediction log: rows wait in memory, and go to Parquet files that are either whole or absent.

Beside the columns of `SCHEMA` a file has one column `in.NAME` for each input, with the contract's type. `prediction` is the
probability, the value, the anomaly score, or the place of the most likely class or of the cluster. `routes` are the routes
that chose the version (see `routing`), null in files of before they were logged.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raymlp.config.serve import Log
from raymlp.core.files import make_folder
from raymlp.data.casting import ARROW
from raymlp.data.contract import Contract
from raymlp.data.contract_row import Row

INPUT = "in."
"""Prefix of the columns that hold a request's values."""

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


class PredictionLog:
    """Rows of one replica on their way to disk. `add` costs microseconds; `flush` may run in another thread."""

    def __init__(self, folder: Path, settings: Log, *, writer: str = "local") -> None:
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
        """Let a row wait; the oldest goes when `max_rows` are waiting, and is counted in `dropped`."""
        if len(self._waiting) >= self.settings.max_rows:
            self._waiting.popleft()
            self.dropped += 1
        if entry.inputs is not None and (heavy := self._left_out.get(entry.version)):
            entry = entry._replace(inputs={name: value for name, value in entry.inputs.items() if name not in heavy})
        self._waiting.append(entry)

    def flush(self) -> int:
        """Write what waits, one file a version, and give back the number of rows written.

        Rows that cannot be written (a full disk) wait again, up to `max_rows`; the OSError is raised.
        """
        with self._writing:
            entries = [self._waiting.popleft() for _ in range(len(self._waiting))]
            written = 0
            try:
                for version, group in groupby(sorted(entries, key=_version), key=_version):
                    rows = list(group)
                    self._write(_table(rows, self._contracts.get(version)))
                    written += len(rows)
            except OSError:
                lost = sorted(entries, key=_version)[written:]
                room = max(0, self.settings.max_rows - len(self._waiting))
                kept = lost[len(lost) - min(room, len(lost)) :]
                self.dropped += len(lost) - len(kept)
                self._waiting.extendleft(reversed(kept))
                raise
            return written

    def _write(self, table: pa.Table) -> None:
        make_folder(self.folder)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{self.writer}-{uuid.uuid4().hex[:8]}.parquet"
        aside = self.folder / f".{name}"
        try:
            pq.write_table(table, aside)
            os.replace(aside, self.folder / name)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def read_log(folder: Path, *, newest_rows: int | None = None) -> pa.Table:
    """All rows of a log, or those of the newest files that hold so many, oldest first. Columns that only some
    versions have are null for the others; a column whose type changed between versions becomes the wider type, or text. A log without
    files has no rows."""
    tables: list[pa.Table] = []
    for path in sorted(folder.glob("[!.]*.parquet"), reverse=True):
        if newest_rows is not None and sum(table.num_rows for table in tables) >= newest_rows:
            break
        tables.append(pq.read_table(path))
    tables.reverse()
    if not tables:
        return SCHEMA.empty_table()
    tables = [SCHEMA.empty_table(), *tables]
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    common = {name: _common_type([table.schema.field(name).type for table in tables if name in table.column_names]) for name in names}
    cast = [table.cast(pa.schema([(name, common[name]) for name in table.column_names])) for table in tables]
    return pa.concat_tables(cast, promote_options="default").sort_by([("time", "ascending"), ("row", "ascending")])


def _version(entry: Entry) -> str:
    return entry.version


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
    }
    arrays = {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}
    empty: Mapping[str, Any] = {}
    for name, rule in (contract.columns if contract else {}).items():
        arrays[INPUT + name] = pa.array([(entry.inputs or empty).get(name) for entry in entries], ARROW[rule.type])
    return pa.table(arrays)
