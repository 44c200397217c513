"""Files of a log in one folder an hour, named `2026-11-28T20` in UTC: who wants a time reads the hours of it, and who keeps a log for
a time deletes folders.

A file has the rows of one hour and is never changed but by `forget`. Its name begins with the moment at which it was written, so that
names tell which file is newer, in whatever folder. Files that lie beside the folders are of before there were hours.
"""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raymlp.core.files import make_folder

FORMAT = "%Y-%m-%dT%H"


def hour_of(seconds: float) -> str:
    """The folder of a moment, in seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).strftime(FORMAT)


def log_files(folder: Path, *, since: datetime | None = None) -> list[Path]:
    """Finished files in the order in which they were written; those of hours that ended before `since` are left out."""
    first = since.astimezone(UTC).strftime(FORMAT) if since is not None else ""
    hours = [hour for hour in folder.glob("[!.]*") if hour.name >= first and hour.is_dir()]
    files = [*folder.glob("[!.]*.parquet"), *(file for hour in hours for file in hour.glob("[!.]*.parquet"))]
    return sorted(files, key=lambda file: file.name)


def write_new(table: pa.Table, folder: Path, *, writer: str) -> Path:
    """A file of its own in the folder, whole or not there. Raises OSError."""
    make_folder(folder)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{writer}-{uuid.uuid4().hex[:8]}.parquet"
    aside = folder / f".{name}"
    try:
        pq.write_table(table, aside)
        os.replace(aside, folder / name)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return folder / name
