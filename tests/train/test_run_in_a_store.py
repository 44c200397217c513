"""A run whose folder is in a store that speaks the S3 protocol: checkpoints, the order to stop, and the bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raymlp.config.runtime import Runtime
from raymlp.core.errors import TrainingError
from raymlp.core.records import Snapshot
from raymlp.model.comparison import compare
from raymlp.runtime.claim import Claim, Taken
from raymlp.runtime.store import StorePlace, place_of
from raymlp.train import named
from raymlp.train.follow import CHECKPOINTS
from raymlp.train.trainer import finished, train
from tests.train.planted import config_of

Snapshots = Callable[[str], Snapshot]


@pytest.fixture
def runs(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorePlace]:
    """An empty folder in the bucket, on a machine without copies."""
    filesystem, query = bucket
    monkeypatch.setenv("RAYMLP_CACHE", str(tmp_path / "cache"))
    folder = place_of(f"s3://lake/runs?{query}")
    assert isinstance(folder, StorePlace)
    yield folder
    filesystem.delete_dir_contents("lake")


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_that_was_cut_off_goes_on_to_the_model_of_one_that_was_not(
    ray_runtime: Runtime, snapshots: Snapshots, runs: StorePlace, tmp_path: Path
) -> None:
    snapshot, config = snapshots("binary"), config_of(num_workers=1, epochs=4)
    whole = train(config, snapshot, run_dir=tmp_path / "whole", run_id="run")
    heard: list[float] = []

    def on_epoch(metrics: dict[str, float]) -> None:
        heard.append(metrics["epoch"])
        if metrics["epoch"] == 1.0 and len(heard) == 2:
            raise KeyboardInterrupt

    folder = runs / "cut"
    with pytest.raises(KeyboardInterrupt):
        train(config, snapshot, run_dir=folder, run_id="run", on_epoch=on_epoch)
    assert finished(config, snapshot, run_dir=folder) is None
    (folder / CHECKPOINTS / "checkpoint_never_whole" / "weights").write_text("1")
    with pytest.raises(TrainingError, match=r"begun with other settings or data: train\.batch_size"):
        train(config_of(num_workers=1, epochs=4, batch_size=32), snapshot, run_dir=folder, run_id="run")
    model = train(config, snapshot, run_dir=folder, run_id="run", on_epoch=on_epoch)
    assert model.bundle == folder / "bundle"
    assert heard[:2] == [0.0, 1.0]
    assert heard[-1] == 3.0
    assert model.metrics == whole.metrics
    assert all(fact.same for fact in compare(whole.bundle, model.bundle))
    assert [file.name for file in (folder / CHECKPOINTS).glob("checkpoint_never_whole/*")] == []
    assert len(list((folder / CHECKPOINTS).glob("checkpoint_*-*"))) <= 2
    again = finished(config, snapshot, run_dir=folder)
    assert again is not None
    assert again.metrics == model.metrics


def away(*_: object) -> None:
    raise OSError("the store does not answer")


def test_a_name_is_claimed_by_one_process_and_stands_for_its_run(runs: StorePlace) -> None:
    pytest.importorskip("obstore")
    assert named.run_of(runs, "nightly", "auto") is None
    with named.claimed(runs, "nightly"):
        named.remember(runs, "nightly", "run-7")
        with pytest.raises(TrainingError, match=r"'nightly' is going on in process \d+ on "), named.claimed(runs, "nightly"):
            raise AssertionError
    with named.claimed(runs, "nightly") as require_alone:
        assert named.run_of(runs, "nightly", "auto") == "run-7"
        require_alone()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StorePlace, "write_if", away)
            require_alone()  # for a moment, which ends no training
        other = Claim(runs / "nightly.lock", silent_s=0.3)  # as when this process had stood still for long
        assert other.take_when_silent()
        with pytest.raises(Taken, match=r"nightly\.lock.* was claimed by process \d+ on .*; expected to have it alone"):
            require_alone()
        other.release()
    with pytest.raises(TrainingError, match=r"no run named 'weekly' to go on with; expected one of: nightly\."):
        named.run_of(runs, "weekly", "must")
