"""The Ray side: tasks read the parts of the source, actors hold the model, answer chunks and write their files.

Plain tasks and actors rather than an execution of Ray Data: see docs/decisions/0030. A chunk goes from reader to worker through the
object store, as Arrow; how many are under way is bounded, whatever the source holds. A worker that dies is started anew and
does its chunks again; so is a reader.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raymlp.config.predict import Predict
from raymlp.core import errors, trust
from raymlp.core.errors import RaymlpError
from raymlp.core.records import Version
from raymlp.data import parquet, sources
from raymlp.data.contract_batch import REASON
from raymlp.model.answers import columns_of
from raymlp.predict.answers import answered
from raymlp.predict.output import Facts, Output, written
from raymlp.predict.pool import Pool, root_of
from raymlp.predict.room import no_room, num_workers, wait_s
from raymlp.predict.rows import ROW, Chunk, Rows

if TYPE_CHECKING:
    from raymlp.model.predictor import Predictor

log = logging.getLogger(__name__)
BYTES_PER_WORKER = 16 << 20
"""Bytes of the source, as they are stored, for which a worker is worth its start."""
DEVICE = {False: "cpu", True: "cuda"}
"""Where a net runs, by whether its worker has a GPU."""


@dataclass(frozen=True)
class Job:
    """What a worker is told, once."""

    rows: Rows
    parts: Sequence[sources.Part]
    version: Version
    digest: str
    output: Output
    settings: Predict
    quarantine_key: parquet.SnapshotKey | None


@dataclass
class Tally:
    """What the finished chunks add up to; `done` are those of an earlier run."""

    parts: int
    done: int = 0
    rows: int = 0
    bad: int = 0
    suppressed: int = 0
    first: str = ""
    new_rows: int = 0
    new_files: int = 0
    finished_parts: int = 0
    files: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, facts: Facts, *, new: bool) -> None:
        self.rows, self.bad = self.rows + facts["rows"], self.bad + facts["bad"]
        self.suppressed += facts["suppressed"]
        self.first = self.first or facts["first"]
        self.files.update(facts["files"])
        if new:
            self.new_rows, self.new_files = self.new_rows + facts["rows"], self.new_files + 1
        else:
            self.done += 1


class Worker:
    """A process with the model, which is loaded with the first chunk: how long that takes says nothing of room in the cluster."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def ready(self) -> None:
        """Answered once Ray found room for the process."""

    @cached_property
    def predictor(self) -> Predictor:
        """Of the model, where it runs."""
        import torch

        from raymlp.model.bundle import load_bundle
        from raymlp.model.predictor import Predictor

        job = self.job
        torch.set_num_threads(max(1, int(job.settings.cpus_per_worker)))
        return Predictor.of(load_bundle(job.version.bundle), device=DEVICE[job.settings.gpus_per_worker > 0], key=job.rows.key)

    def answer(self, chunk: Chunk | tuple[str, str]) -> tuple[int, int, Facts] | tuple[str, str]:
        """Answer a chunk, write its files, and tell of them; what went wrong in plain words, since an error of an actor arrives
        wrapped in its stack."""
        if isinstance(chunk, tuple):
            return chunk
        told: tuple[int, int, Facts] | tuple[str, str] = _told(lambda: self._answer(chunk))
        return told

    def _answer(self, chunk: Chunk) -> tuple[int, int, Facts]:
        job, rows = self.job, self.job.rows
        where = job.parts[chunk.part].path
        good, broken, suppressed = rows.checked(chunk, where)
        good, prediction, failed = answered(self.predictor.predict_checked, good)
        quarantined = pa.concat_tables([broken, failed, _unreadable(chunk, broken.schema)])
        answers, quarantine = (
            parquet.Writer(place, key)
            for place, key in zip(job.output.files_of(chunk.part, chunk.number), (None, job.quarantine_key), strict=True)
        )
        if prediction is not None:
            columns = columns_of(prediction, job.settings.prefix, job.version.label, job.digest)
            answers.write(pa.table([*(good.column(name) for name in rows.kept), *columns.columns], [*rows.kept, *columns.column_names]))
        quarantine.write(quarantined.set_column(quarantined.column_names.index(ROW), ROW, quarantined.column(ROW).cast(pa.int64())))
        answers.close()
        quarantine.close()
        facts: Facts = {
            "rows": good.num_rows,
            "bad": quarantined.num_rows + chunk.more_unreadable,
            "suppressed": suppressed,
            "first": _first(quarantined, where),
            "last": chunk.last,
            "files": written(job.output.working, answers, quarantine),
        }
        job.output.finish(chunk.part, chunk.number, facts)
        return chunk.part, chunk.number, facts


def _unreadable(chunk: Chunk, schema: pa.Schema) -> pa.Table:
    """Rows that could not be split into fields, which have a reason alone."""
    count = len(chunk.unreadable)
    columns = {item.name: pa.nulls(count, item.type) for item in schema}
    return pa.table({**columns, REASON: pa.array(chunk.unreadable, pa.string())})


def _first(quarantined: pa.Table, where: str) -> str:
    """The first of some rows in quarantine, in words; empty when there is none."""
    if not quarantined.num_rows:
        return ""
    row, reason = quarantined.column(ROW)[0].as_py(), quarantined.column(REASON)[0].as_py()
    return f"{where}{'' if row is None else f', row {row}'}: {reason}"


def read(job: Job, part: int, skip: frozenset[int]) -> Iterator[Chunk | tuple[str, str]]:
    """The task that reads a part: its chunks, or, last, what went wrong."""
    chunks = job.rows.chunks(job.parts[part], part, skip)
    while True:
        chunk = _told(lambda: next(chunks, None))
        if chunk is None:
            return
        yield chunk
        if isinstance(chunk, tuple):
            return


def _told(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except RaymlpError as error:
        known = next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
        return known, str(error)
    except Exception as error:
        log.exception("predicting")
        return "RaymlpError", f"predicting failed: {type(error).__name__}: {error}"


def run(job: Job, tally: Tally, done: Mapping[tuple[int, int], Facts], *, on_chunk: Callable[[Tally], None]) -> None:
    """Answer every chunk that is not done. `on_chunk` hears the tally after each, and may raise to stop the job.

    Raises what a worker or reader raised, and ConfigError when the cluster has no room; what is finished by then stays.
    """
    import ray
    from ray.exceptions import RayError

    todo = _left(job, tally, done)
    if not todo:
        return
    count = num_workers(job.settings, reads_kafka=job.rows.data.source.kind == "kafka", worth=_worth(job))
    shared = ray.put(job)
    pool = Pool(lambda: _worker(job.settings).remote(shared), count, wait_s())
    # Reading waits for a worker more often than it works: it takes no CPU from them, and cannot be kept out by them.
    reader = ray.remote(num_returns="streaming", num_cpus=0, scheduling_strategy="SPREAD", _generator_backpressure_num_objects=1)(read)
    readers: deque[Any] = deque()
    try:
        while todo or readers or not pool.is_done:
            while todo and len(readers) < max(1, count // 2):
                part, skip = todo.popleft()
                readers.append(reader.remote(shared, part, skip))
            found = pool.wait(readers)
            if found is None:
                raise no_room(job.settings, count, pool.wait_s)
            if found in pool.starting:
                pool.begin(found)
                continue
            if found in pool.busy:
                told = pool.end(found)
                if told is not None:
                    _take(told, tally)
                    on_chunk(tally)
                continue
            readers.remove(found)
            chunk = next(found, None)
            if chunk is not None:
                pool.give(chunk)
                readers.append(found)
    except RayError as error:
        raise RaymlpError(f"predicting failed: {root_of(error)}. Ray's logs have more; finished files are kept.") from error
    finally:
        for left in readers:
            ray.cancel(left, force=False)
        for worker in pool.workers:
            ray.kill(worker)


def _take(told: tuple[Any, ...], tally: Tally) -> None:
    if len(told) == 2:
        raise getattr(errors, told[0])(told[1])
    _, _, facts = told
    tally.add(facts, new=True)
    tally.finished_parts += facts["last"]


def _left(job: Job, tally: Tally, done: Mapping[tuple[int, int], Facts]) -> deque[tuple[int, frozenset[int]]]:
    """Parts that are not finished, each with the numbers of its chunks that are. The tally gets those."""
    numbers: dict[int, dict[int, Facts]] = {}
    for (part, number), facts in sorted(done.items()):
        numbers.setdefault(part, {})[number] = facts
        tally.add(facts, new=False)
    left: deque[tuple[int, frozenset[int]]] = deque()
    for part in range(len(job.parts)):
        found = numbers.get(part, {})
        if any(facts["last"] and len(found) == number + 1 for number, facts in found.items()):
            tally.finished_parts += 1
        else:
            left.append((part, frozenset(found)))
    return left


def _worth(job: Job) -> int | None:
    """Workers that the source is worth; None where its size is not known."""
    sizes = {part.path: part.size for part in job.parts}
    return math.ceil(sum(sizes.values()) / BYTES_PER_WORKER) if all(sizes.values()) else None


def _worker(settings: Predict) -> Any:
    import ray

    trusted = {name: os.environ[name] for name in (trust.TRUSTED,) if os.environ.get(name)}
    return ray.remote(Worker).options(
        num_cpus=settings.cpus_per_worker,
        num_gpus=settings.gpus_per_worker,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": trusted} if trusted else None,
    )
