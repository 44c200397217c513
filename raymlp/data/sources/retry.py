"""Patience with a source that does not answer: wait, double the wait, and at last say so."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pyarrow as pa

from raymlp.config.sources import Retry
from raymlp.core.errors import SourceUnavailable
from raymlp.data.sources.part import BadRows

log = logging.getLogger(__name__)
LONGEST_WAIT_S = 30.0
Result = TypeVar("Result")


class Unanswered(SourceUnavailable):
    """A remote source broke off or did not answer; another try may do."""


def persistent(retry: Retry, work: Callable[[], Result]) -> Result:
    """The result of `work`, which is tried again after Unanswered. Raises the last one, with the number of tries."""
    for attempt in range(1, retry.attempts):
        try:
            return work()
        except Unanswered as error:
            _wait(retry, attempt, error)
    try:
        return work()
    except Unanswered as error:
        raise _given_up(retry, error) from error


def persistent_rows(retry: Retry, read: Callable[[], Iterator[pa.Table]], bad: BadRows) -> Iterator[pa.Table]:
    """Tables from `read`; when it breaks off, it is read again from the start and the rows already given are left out."""
    given = 0
    for attempt in range(1, retry.attempts + 1):
        skip = given
        bad.clear()
        try:
            for table in read():
                rest = table.slice(min(skip, table.num_rows))
                skip -= table.num_rows - rest.num_rows
                if rest.num_rows:
                    given += rest.num_rows
                    yield rest
            return
        except Unanswered as error:
            if attempt == retry.attempts:
                raise _given_up(retry, error) from error
            _wait(retry, attempt, error)


def _given_up(retry: Retry, error: Unanswered) -> Unanswered:
    return Unanswered(f"{error} Tried {retry.attempts} time{'s' * (retry.attempts != 1)}.")


def _wait(retry: Retry, attempt: int, error: Unanswered) -> None:
    # Jitter keeps workers that failed together from asking together again.
    seconds = min(retry.first_wait_s * 2 ** (attempt - 1), LONGEST_WAIT_S) * random.uniform(0.5, 1.0)  # noqa: S311
    log.warning("%s Trying again in %.1f s (%d of %d).", error, seconds, attempt + 1, retry.attempts)
    time.sleep(seconds)
