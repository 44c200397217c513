"""A node of a training run loses its power."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from raymlp.runtime.cluster.layout import Shape
from tests.chaos.faults import drive, running
from tests.train.planted import planted, write_snapshot

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("cluster")]


def test_a_run_that_loses_its_node_goes_on_from_its_checkpoint_to_the_same_metrics(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The autoscaler brings another node in its place. What one process makes of these rows is what the run makes when nothing breaks."""
    write_snapshot(tmp_path / "snapshot", {"train": planted(2_000, 1, "binary"), "valid": planted(1_000, 2, "binary")})
    with running(Shape(1, 1, worker_cpus=1, head_cpus=0)) as cluster:
        seen = drive(cluster, "training_drill", tmp_path, cluster.folder)
    assert (seen["lost"], seen["came"]) == (1, 1)
    assert seen["heard"] == [0, 1, 2, 3, 4], "each epoch once: it did not begin anew"
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "run" / "epochs.jsonl").read_text().splitlines()]
    assert epochs.count(0) == 1
    assert seen["metrics"] == seen["expected"]
    record_property("seconds from the cut to the next epoch", round(seen["away_s"], 1))
