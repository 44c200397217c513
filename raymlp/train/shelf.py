"""Rows transformed once for all trials of a study: one process fits each feature plan and puts its rows into the object store.

A trial reads them in place, so that ten trials hold the rows once. Kept small: the process loads no torch.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from raymlp.config.distil import Distil
from raymlp.config.features import Features
from raymlp.config.problem import Problem
from raymlp.core.errors import ConfigError
from raymlp.core.files import Place
from raymlp.data.place import split_files
from raymlp.data.snapshot import load_profile
from raymlp.features.plan import FeaturePlan
from raymlp.train.blocks import Block, row_bytes, unpack
from raymlp.train.feed import HOLD_SHARE, SPLITS, local_tables

log = logging.getLogger(__name__)


class _Keeper:
    """Runs in a process of its own. Rows of the plans used last are kept, as many as the room holds."""

    def __init__(self, path: Place, problem: Problem, distil: Distil | None, room: float) -> None:
        self._path, self._problem, self._distil, self._room = path, problem, distil, room
        self._profile = load_profile(path)
        self._made: OrderedDict[str, tuple[str, dict[str, list[Any]], int]] = OrderedDict()

    def get(self, features: Features) -> tuple[str, dict[str, list[Any]]]:
        """The plan as JSON, and references to the packed rows by split."""
        key = features.model_dump_json()
        if key not in self._made:
            self._made[key] = self._make(features)
        self._made.move_to_end(key)
        plan, refs, _ = self._made[key]
        return plan, refs

    def made(self) -> int:
        """Plans that are kept."""
        return len(self._made)

    def _make(self, features: Features) -> tuple[str, dict[str, list[Any]], int]:
        plan = FeaturePlan.fit(features, self._problem, self._profile, files=split_files(self._path, "train"))
        refs: dict[str, list[Any]] = {split: [] for split in SPLITS}
        size, each = 0, row_bytes(plan, taught=self._distil is not None)
        for split in SPLITS:
            for table in local_tables(self._path, plan, split, self._distil):
                size += each * table.num_rows
                if size > self._room:
                    raise ConfigError(
                        f"the rows of the snapshot take more than {self._room / 1e6:,.0f} MB once transformed, which is what the object "
                        "store has for them; expected room. Set runtime.object_store_mb, or tune.workers=as_train, whose trials stream."
                    )
                self._evict(size)
                refs[split].append(ray.put(table))
        return plan.model_dump_json(), refs, size

    def _evict(self, size: int) -> None:
        """Let go of plans that were not used for longest until so many bytes more fit. A trial that reads them keeps them for itself."""
        while self._made and size + sum(kept for *_, kept in self._made.values()) > self._room:
            self._made.popitem(last=False)


@dataclass(frozen=True)
class Shelf:
    """What trials are given to reach the rows by. It travels between processes."""

    keeper: Any

    def get(self, features: Features) -> tuple[FeaturePlan, dict[str, list[Block]]]:
        """The plan of the features and the transformed rows by split, in place. Raises what fitting and reading raise."""
        try:
            text, refs = ray.get(self.keeper.get.remote(features))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        plan = FeaturePlan.from_json(text)
        return plan, {split: [block for table in ray.get(refs[split]) for block in unpack(table, plan)] for split in SPLITS}


@contextmanager
def shelf(path: Place, problem: Problem, features: Features, distil: Distil | None = None) -> Iterator[Shelf]:
    """A shelf that begins with the rows of these features, and what a teacher says of them, while the caller goes on, and ends with the
    block. Needs Ray."""
    room = HOLD_SHARE * float(ray.cluster_resources().get("object_store_memory", 0.0))
    keeper = ray.remote(_Keeper).options(num_cpus=0, max_restarts=1).remote(path, problem, distil, room)
    keeper.get.remote(features)
    try:
        yield Shelf(keeper)
    finally:
        ray.kill(keeper)
