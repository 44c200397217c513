"""Snapshots that several tests read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raymlp.core.records import Snapshot
from tests.train.planted import planted, write_snapshot


@pytest.fixture(scope="session")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Snapshot]:
    """The planted snapshot of a task: 2,000 training and 1,000 validation rows."""
    made: dict[str, Snapshot] = {}

    def get(task: str) -> Snapshot:
        if task not in made:
            made[task] = write_snapshot(tmp_path_factory.mktemp(task), {"train": planted(2_000, 1, task), "valid": planted(1_000, 2, task)})
        return made[task]

    return get
