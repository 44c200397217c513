"""Files of a log in one folder an hour, named `2026-11-28T20` in UTC: who wants a time reads the hours of it, and who keeps a log for
a time deletes folders.

A file has the rows of one hour and is never changed but by `forget`. Its name begins with the moment at which it was written, so that
names tell which file is newer, in whatever folder. Files that lie beside the folders are of before there were hours.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from raymlp.core.files import Place, Somewhere, make_folder
from raymlp.runtime.store import write_bytes

FORMAT = "%Y-%m-%dT%H"
END = ".parquet"


def hour_of(seconds: float) -> str:
    """The folder of a moment, in seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime(FORMAT)


def log_files(folder: Somewhere, *, since: datetime | None = None) -> list[Somewhere]:
    """Finished files in the order in which they were written; those of hours that ended before `since` are left out."""
    first = since.astimezone(UTC).strftime(FORMAT) if since is not None else ""
    below = list(folder.glob("[!.]*"))
    hours = [hour for hour in below if hour.name >= first and not hour.name.endswith(END)]
    files = [*(file for file in below if file.name.endswith(END)), *(file for hour in hours for file in hour.glob(f"[!.]*{END}"))]
    return sorted(files, key=lambda file: file.name)


def write_new(table: pa.Table, folder: Somewhere, *, writer: str) -> Somewhere:
    """A file of its own in the folder, whole or not there. Raises OSError, or DataError in a store."""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{writer}-{uuid.uuid4().hex[:8]}{END}"
    place = make_folder(folder) / name
    write_table(table, place)
    return place


def write_table(table: pa.Table, place: Place) -> None:
    """A Parquet file, whole or not there, in the place of one that is. Held in memory. Raises as `write_new`."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(place, sink.getvalue())


def read_table(place: Place, columns: Callable[[str], bool] = lambda name: True) -> pa.Table:
    """The columns of a Parquet file whose names fit."""
    with place.open("rb") as source, pq.ParquetFile(source, pre_buffer=True) as file:
        return file.read([name for name in file.schema_arrow.names if columns(name)])
