"""Where answers go. Finished chunks wait in a working place, which a later run of the same job goes on with; the output is seen when
all of them are there.

    part-00000-00000.parquet    answers: part of the source, chunk of the part
    _quarantine/                rows without an answer, as text, with the reason and their place (`raymlp_row`) in their part
    _manifest.json              which model, which source, every file with its digest and rows; written last

On a disk the working place is a hidden folder beside the output, which takes its name by one rename. In an object store it is
`_working-KEY/` inside, whose files are moved when all are there. Spark, pyarrow and Hive pass over names that begin with `_` or `.`.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from raymlp.core.errors import ConfigError, DataError
from raymlp.core.files import Place, make_folder, to_json
from raymlp.data import parquet
from raymlp.runtime.store import StorePlace, place_of, remove, write_whole

FORMAT = 1
MANIFEST, FACTS, QUARANTINE = "_manifest.json", "_facts", "_quarantine"
Facts = dict[str, Any]
"""What is told of a finished chunk: `rows`, `bad`, `suppressed`, `first`, `last`, `files`."""


def require_address(output: str) -> None:
    """Raise ConfigError when it is not said where answers go."""
    if not output:
        raise ConfigError("predict.output is empty; expected a folder, or an address as s3://BUCKET/FOLDER. Set predict.output.")


@dataclass(frozen=True)
class Output:
    """The output of a job, by the job's key: a digest of all that decides what is written."""

    place: Place
    key: str

    @classmethod
    def at(cls, address: str, key: str) -> Self:
        """The output at a folder, or at an address in a store."""
        place: Place = place_of(address)
        return cls(place.expanduser().absolute() if isinstance(place, Path) else place, key)

    @property
    def working(self) -> Place:
        if isinstance(self.place, StorePlace):
            return self.place / f"_working-{self.key[:12]}"
        return self.place.with_name(f".{self.place.name}.{self.key[:12]}")

    def files_of(self, part: int, number: int) -> tuple[Place, Place]:
        """Where the answers of a chunk are written, and its quarantined rows."""
        name = f"{_name(part, number)}.parquet"
        return self.working / name, self.working / QUARANTINE / name

    def finish(self, part: int, number: int, facts: Facts) -> None:
        """Say that the files of a chunk are whole. Until then they count as absent."""
        write_whole(self.working / FACTS / f"{_name(part, number)}.json", to_json(facts, indent=None))

    def finished(self) -> dict[tuple[int, int], Facts]:
        """What is told of the chunks that are finished, by part and number."""
        found = {}
        for file in (self.working / FACTS).glob("part-*.json"):
            _, part, number = file.name.removesuffix(".json").split("-")
            found[int(part), int(number)] = json.loads(file.read_text())
        return found

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of what is at the place now; None when there is none. Raises DataError when it cannot be read."""
        try:
            found: dict[str, Any] = json.loads((self.place / MANIFEST).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.place / MANIFEST} cannot be read ({error}). Remove the folder, or set another predict.output."
            ) from None
        return found

    def require_free(self, *, overwrite: bool) -> None:
        """Raise ConfigError when something else is at the place, and it may not be replaced."""
        other, place = self.manifest(), self.place
        if other is not None and not overwrite:
            model = other.get("model", {})
            raise ConfigError(
                f"{self.place} holds answers of {model.get('name')} {model.get('version')}, of other settings or another source; expected "
                "a new place. Set predict.output, or predict.overwrite=true to replace them."
            )
        if other is None and isinstance(place, Path) and _is_taken(place):
            raise ConfigError(f"{self.place} exists and holds no answers of raymlp; expected a new folder. Set predict.output.")

    def others(self) -> list[str]:
        """Working places of unfinished jobs with other settings for the same output."""
        if isinstance(self.place, StorePlace):
            found = {file.parent.parent.name for file in self.place.glob(f"_working-*/{FACTS}/*.json")}
        else:
            found = {file.name for file in self.place.parent.glob(f".{self.place.name}.*") if (file / FACTS).exists()}
        return sorted(found - {self.working.name})

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work on the output alone, where it is on a disk. Raises DataError when another process does, whatever its job. Ends with the
        process."""
        if isinstance(self.working, StorePlace):
            yield
            return
        assert isinstance(self.working, Path)
        assert isinstance(self.place, Path)
        lock = self.place.with_name(f".{self.place.name}.lock")
        with _opened(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = _is_at(file, lock)  # else who held it ended just now and took it away
            except BlockingIOError:
                mine = False
            if not mine:
                file.seek(0)
                raise DataError(
                    f"{self.place} is being written by {file.read().strip() or 'another process'}; expected one at a time. "
                    "Wait for it, stop it, or set another predict.output."
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                make_folder(self.working)
                yield
            finally:
                if self.working.exists() and not (self.working / FACTS).exists():  # nothing was finished: nothing to go on from
                    shutil.rmtree(self.working)
                lock.unlink(missing_ok=True)

    def publish(self, manifest: Mapping[str, Any]) -> None:
        """Let the finished files be seen, in the place of what is there. Nothing else is left of the working place.

        Raises DataError when some are not there: each worker wrote to a disk of its own node.
        """
        self._require_all(list(manifest["files"]))
        text = to_json({"format": FORMAT, "key": self.key, **manifest})
        if isinstance(self.place, StorePlace):
            self._publish_in_store(text, list(manifest["files"]))
            return
        assert isinstance(self.place, Path)
        assert isinstance(self.working, Path)
        write_whole(self.working / MANIFEST, text)
        before = self.place.with_name(f".{self.place.name}.before")
        shutil.rmtree(before, ignore_errors=True)  # of a process that died between the two renames below
        if self.place.exists():
            os.replace(self.place, before)
        os.replace(self.working, self.place)
        remove(self.place / FACTS)
        shutil.rmtree(before, ignore_errors=True)

    def _require_all(self, names: list[str]) -> None:
        if isinstance(self.place, StorePlace):
            assert isinstance(self.working, StorePlace)
            there = {str(file.relative_to(self.working)) for file in self.working.files()}
            if self.manifest() is None:  # a run that was cut off while it published has moved some; else they are another job's
                there |= {str(file.relative_to(self.place)) for file in self.place.files()}
            missing = [name for name in names if name not in there]
        else:
            missing = [name for name in names if not (self.working / name).is_file()]
        if missing:
            raise DataError(
                f"{len(missing):,} of {len(names):,} finished files are not in {self.working}, as {missing[0]}; expected a place that all "
                "nodes see. Set predict.output to a shared folder or to an address in a store."
            )

    def _publish_in_store(self, text: str, names: list[str]) -> None:
        before = self.manifest()
        if before is not None:
            (self.place / MANIFEST).unlink()
            for name in before["files"]:
                if (self.place / name).is_file():
                    (self.place / name).unlink()
        for name in names:
            waiting = self.working / name
            if waiting.is_file():  # else a run that was cut off while it published has moved it
                waiting.replace(self.place / name)
        write_whole(self.place / MANIFEST, text)
        remove(self.working)


def written(folder: Place, *writers: parquet.Writer) -> dict[str, tuple[str, int]]:
    """Digest and rows of the files that were written, by their path below the folder."""
    return {str(item.path.relative_to(folder)): (item.sha256, item.rows) for item in writers if item.rows}


def _opened(lock: Path) -> IO[str]:
    try:
        return (make_folder(lock.parent) / lock.name).open("a+")
    except OSError as error:
        raise DataError(f"{lock} cannot be written ({error.strerror}); expected a folder that can be. Set predict.output.") from None


def _is_at(file: IO[str], path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _is_taken(place: Path) -> bool:
    return place.exists() and not (place.is_dir() and not any(place.iterdir()))


def _name(part: int, number: int) -> str:
    return f"part-{part:05d}-{number:05d}"
