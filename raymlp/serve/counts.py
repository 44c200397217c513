"""What all replicas of an endpoint count together, in an actor beside them: tokens of the rate limit, distinct rows of a caller.

Each replica tells what it saw and hears what all saw, in the background: ten times a second while callers with a limit ask, and as soon
as one is refused. An actor that does not answer changes nothing for a request: the replica goes on alone as `quota` says, and starts
another. Its counts are gone with it: callers begin with a full burst, and with the distinct rows that replicas tell from then on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from raymlp.core.errors import ServingError
from raymlp.serve.extraction import DistinctRows, Sketches
from raymlp.serve.quota import PRESENT_S, SYNC_S, Buckets, Grant, Quota, Spent

NAMESPACE = "raymlp"
ANSWER_S = 2.0
"""Seconds after which the actor is taken not to answer."""
ROWS_S = 1.0
"""How often distinct rows are told, unless a caller comes near the limit: then with every word."""
SOONEST_S = SYNC_S / 4
"""Least seconds between two words, however many requests are refused."""
logger = logging.getLogger("ray.serve")


class Counts:
    """The actor."""

    def __init__(self) -> None:
        self._buckets, self._rows = Buckets(), DistinctRows()

    def tell(
        self, replica: str, spent: Mapping[str, Spent], rows: Mapping[str, tuple[int, bytes]]
    ) -> tuple[dict[str, Grant], int, Sketches]:
        """What a replica saw since it last told; gives back its grants, the number of replicas, and the unions of those sketches."""
        grants, replicas = self._buckets.settle(replica, spent, time.monotonic())
        return grants, replicas, self._rows.merge(rows)


class Together:
    """One replica's side: keeps its quota and distinct rows in step with the others'."""

    def __init__(self, model: str, replica: str, quota: Quota, rows: DistinctRows) -> None:
        self.model, self.replica, self.quota, self.rows = model, replica, quota, rows
        self._actor: Any = None
        self._told = self._rows_told = 0.0
        self._is_alone = False

    async def keep(self) -> None:
        """Run for as long as the replica does."""
        while True:
            await asyncio.sleep(SOONEST_S if self._actor is not None else SYNC_S)
            now = time.monotonic()
            if not (self.quota.is_short or now - self._told >= SYNC_S):
                continue
            spent = self.quota.report()
            rows = self.rows.changes() if self.rows.is_near or now - self._rows_told >= ROWS_S else {}
            is_known = self._actor is not None and now - self._told >= PRESENT_S / 2
            if not (spent or rows or is_known):
                continue
            self._told = now
            try:
                await self._exchange(spent, rows)
                self._rows_told = now if rows else self._rows_told
                if self._is_alone:
                    logger.warning("limits of %s are counted over all replicas again", self.model)
                self._is_alone = False
            except Exception as error:
                self._actor = None
                self.rows.tell_again(rows)
                if not self._is_alone:
                    logger.error("limits of %s are counted by each replica alone for now: %s", self.model, type(error).__name__)
                self._is_alone = True
                await asyncio.sleep(ANSWER_S)

    async def _exchange(self, spent: dict[str, Spent], rows: Sketches) -> None:
        if self._actor is None:
            self._actor = await asyncio.wait_for(asyncio.to_thread(counts_of, self.model), 10 * ANSWER_S)
        answer = self._actor.tell.remote(self.replica, spent, rows)
        grants, replicas, unions = await asyncio.wait_for(asyncio.wrap_future(answer.future()), ANSWER_S)
        self.quota.take_over(spent, grants, replicas, time.monotonic())
        self.rows.merge(unions)


def counts_of(model: str) -> Any:
    """The actor of a model, started when it is not there. Raises ServingError without Ray, which it must not start."""
    import ray

    if not ray.is_initialized():
        raise ServingError("Ray is not running; expected it where replicas count together.")
    options = {"namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True, "num_cpus": 0, "max_restarts": -1}
    return ray.remote(Counts).options(name=_name(model), **options).remote()


def stop_counts(model: str) -> None:
    """End the actor of a model, if there is one."""
    import ray

    with suppress(ValueError):
        ray.kill(ray.get_actor(_name(model), namespace=NAMESPACE))


def _name(model: str) -> str:
    return f"counts-{model}"
