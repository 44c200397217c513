"""The jobs of a cluster: what there is, a new one, a stop, logs.

Uploading, submitting and following a log go through Ray's `JobSubmissionClient`. State is asked for directly: the client's requests have
no time limit, so a network that has gone silent would hold them for ever.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from raymlp.core.errors import JobError, nearest
from raymlp.jobs.access import Access, is_here

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
STOPPED_CODE = 143
COMMAND_FAILED = "JOB_ENTRYPOINT_COMMAND_ERROR"


class NoSuchJob(JobError):
    """The cluster answers, and knows no job of this name."""


@dataclass(frozen=True)
class Job:
    """A job as the cluster records it. `code` is None until it has ended."""

    id: str
    status: str
    entrypoint: str
    code: int | None = None
    seconds: float = 0.0
    started: float = 0.0
    problem: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @classmethod
    def of(cls, record: Mapping[str, Any], *, now: float) -> Self:
        """From the REST API's record; times there are in milliseconds. `problem` says what is not in the job's own log."""
        start, end = record.get("start_time") or 0, record.get("end_time") or 0
        problem = record.get("message") or ""
        if record["status"] != "FAILED" or record.get("error_type") == COMMAND_FAILED:
            problem = ""
        return cls(
            id=record["submission_id"],
            status=record["status"],
            entrypoint=record.get("entrypoint") or "",
            code=exit_code_of(record["status"], record.get("driver_exit_code")),
            seconds=max((end / 1e3 or now) - start / 1e3, 0.0) if start else 0.0,
            started=start / 1e3,
            problem=problem,
            metadata=record.get("metadata") or {},
        )


def exit_code_of(status: str, driver: int | None) -> int | None:
    """The exit code that tells what became of a job: its driver's, 143 when it was stopped, 1 when it never came to run.

    >>> exit_code_of("FAILED", 7), exit_code_of("STOPPED", None), exit_code_of("FAILED", None), exit_code_of("FAILED", -9)
    (7, 143, 1, 137)
    """
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return STOPPED_CODE
    if status != "FAILED":
        return None
    return 128 - driver if driver is not None and driver < 0 else driver or 1


class Api:
    """The jobs API of a cluster that may be talked to."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._client: Any = None

    def jobs(self) -> list[Job]:
        """All submitted jobs that the cluster remembers, the oldest first."""
        from time import time

        records = [item for item in self.access.ask("/api/jobs/") or () if item.get("submission_id")]
        return sorted((Job.of(item, now=time()) for item in records), key=lambda job: job.started)

    def job(self, name: str) -> Job:
        """One job. Raises JobError when there is none of this name."""
        from time import time

        record = self.access.ask(f"/api/jobs/{name}")
        if record is None:
            known = [job.id for job in self.jobs()]
            raise NoSuchJob(f"{self.access.address} has no job '{name}'.{nearest(name, known)} See raymlp jobs list.")
        return Job.of(record, now=time())

    def log(self, name: str) -> str:
        """What a job has written so far; empty when its node is gone."""
        return str((self.access.ask(f"/api/jobs/{name}/logs") or {}).get("logs") or "")

    def stop(self, name: str) -> bool:
        """Ask a job to stop; whether it was running."""
        return bool((self.access.ask(f"/api/jobs/{name}/stop", method="POST") or {}).get("stopped"))

    async def tail(self, name: str) -> AsyncIterator[str]:
        """A job's log from its beginning, piece by piece, until it ends."""
        async for piece in self._ray().tail_job_logs(name):
            yield piece

    def submit(self, name: str, *, entrypoint: str, metadata: dict[str, str], runtime_env: dict[str, Any], cpus: float) -> None:
        """Upload what is not there yet, and start a job. Raises JobError when the cluster declines."""
        secret = self.access.token
        if secret and secret in f"{entrypoint} {metadata} {runtime_env}":
            raise JobError(
                "the cluster's token is among the job's settings, where everybody could read it; expected it nowhere. Nothing was sent."
            )
        try:
            self._ray().submit_job(
                submission_id=name, entrypoint=entrypoint, metadata=metadata, runtime_env=runtime_env, entrypoint_num_cpus=cpus or None
            )
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            raise JobError(f"{self.access.address} does not take the job {name}: {_reason(error)}") from error

    def _ray(self) -> Any:
        """Ray's own client. The variable RAY_API_SERVER_ADDRESS would win over the address that it is given, a token of the environment
        would go to a cluster that asks for none, and a proxy would get what is meant for this machine."""
        if self._client is None:
            from ray.job_submission import JobSubmissionClient

            for name in ("dashboard_sdk", "job.sdk"):
                logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
            if is_here(self.access.address):
                for name in ("no_proxy", "NO_PROXY"):
                    os.environ[name] = ",".join(filter(None, (os.environ.get(name), urlsplit(self.access.address).hostname)))
            with _variable("RAY_API_SERVER_ADDRESS", self.access.address):
                self._client = JobSubmissionClient(self.access.address, headers=dict(self.access.headers) or {"Authorization": ""})
        return self._client


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _reason(error: Exception) -> str:
    """The last line of what the server says, which is a traceback where it has one."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
