"""One planted problem of each task, made once."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow.parquet as pq
import pytest

from raymlp.core.records import Snapshot, Task
from tests.evaluate.planted import Case, config_of, planted, write_bundle


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Task], Case]:
    made: dict[Task, Case] = {}

    def get(task: Task) -> Case:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            tables = {"train": planted(1_500, 1, task), "valid": planted(400, 2, task), "test": planted(1_000, 3, task)}
            for split, table in tables.items():
                (folder / split).mkdir()
                pq.write_table(table, folder / split / "part-00000.parquet")
            config = config_of(task)
            snapshot = Snapshot(folder, "5" * 64, {split: table.num_rows for split, table in tables.items()}, quarantined=4)
            made[task] = Case(config, snapshot, write_bundle(config, tables["train"], folder / "bundle"), tables)
        return made[task]

    return get
