"""Follows the prediction log and the labels of a rollout: every look reads the files that are new."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import pyarrow as pa

from raymlp.config.rollout import Rollout
from raymlp.core.files import Place
from raymlp.data.hours import log_files, read_table
from raymlp.serve.evidence import evidence_of
from raymlp.serve.ledger import COLUMNS, Ledger, Versions
from raymlp.serve.log import INPUT
from raymlp.serve.rollout.facts import Evidence

CLOCKS_APART_S = 86_400.0
"""Files of more than this before the rollout's start are passed over: they cannot hold its rows, whatever the clock of who wrote them."""

Known = dict[str, tuple[int, int]]
"""Size and time of change by the place of a file in its folder."""


class Reading:
    """What has been read of a rollout that began at `since`, in seconds since 1970. A file that was changed or removed (by `raymlp forget`)
    makes it begin anew, and so does a new process: the files are all there is to remember."""

    def __init__(self, log: Place, labels: Place, versions: Versions, salt: str, settings: Rollout, *, since: float) -> None:
        self._log, self._label_folder, self._since = log, labels, since
        self._versions, self._salt, self._settings = versions, salt, settings
        self._last: Evidence | None = None
        self._begin()

    def evidence(self) -> Evidence:
        """All that is known now."""
        log, labels = _files(self._log, self._since), _files(self._label_folder, self._since)
        if self._last is not None and (log, labels) == (self._read, self._read_labels):
            return self._last
        if not (self._read.items() <= log.items() and self._read_labels.items() <= labels.items()):
            self._begin()
        for name in sorted(log.keys() - self._read.keys()):
            table = _table(self._log / name)
            if table is not None:
                self._ledger.add(name, table, partial(_inputs, self._log / name))
            self._read[name] = log[name]
        wanted = ("prediction_id", "row", "label", *([self._settings.business.column] if self._settings.business else []))
        for name in sorted(labels.keys() - self._read_labels.keys()):
            self._ledger.add_labels(name, read_table(self._label_folder / name, wanted.__contains__))
            self._read_labels[name] = labels[name]
        self._last = evidence_of(self._ledger, self._settings)
        return self._last

    def _begin(self) -> None:
        self._ledger = Ledger(self._versions, self._salt)
        self._last = None
        self._read: Known = {}
        self._read_labels: Known = {}


def _files(folder: Place, since: float) -> Known:
    """Parquet files that may hold something; those that go away meanwhile are gone."""
    found = {}
    for file in log_files(folder, since=datetime.fromtimestamp(max(0.0, since - CLOCKS_APART_S), UTC)):
        try:
            now = file.stat()
        except FileNotFoundError:
            continue
        if now.st_mtime >= since - CLOCKS_APART_S:
            found[str(file.relative_to(folder))] = (now.st_size, now.st_mtime_ns)
    return found


def _table(file: Place) -> pa.Table | None:
    """What rows are kept from; None for files of before routes were logged."""
    table = read_table(file, COLUMNS.__contains__)
    return table.select(list(COLUMNS)) if "routes" in table.column_names else None


def _inputs(file: Place) -> pa.Table:
    """The columns `in.NAME` of a file."""
    return read_table(file, lambda name: name.startswith(INPUT))
