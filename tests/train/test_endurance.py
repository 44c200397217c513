"""Runs that are cut off, limited or watched, in one process: they end where they should, with the numbers of the undisturbed run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymlp.config.schema import Config
from raymlp.core.records import Snapshot
from raymlp.data.place import split_files
from raymlp.data.snapshot import load_profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.scorer import NetScorer
from raymlp.train import loop
from raymlp.train.feed import held_source, local_blocks
from raymlp.train.job import Job, Outcome
from raymlp.train.loop import alone, fit
from raymlp.train.pulse import Notice, Pulse
from raymlp.train.team import Save, Stopped
from tests.train.planted import config_of

Snapshots = Callable[[str], Snapshot]


class Drill:
    """A run in this process whose steps, news and checkpoints the test rules. Every step has a beat."""

    def __init__(self, snapshot: Snapshot, **settings: Any) -> None:
        config: Config = config_of(**settings)
        config = config.model_copy(update={"model": config.model.model_copy(update={"dropout": 0.2})})
        plan = FeaturePlan.fit(config.features, config.problem, load_profile(snapshot.path), files=split_files(snapshot.path, "train"))
        self.blocks = {split: list(local_blocks(snapshot.path, plan, split)) for split in ("train", "valid")}
        self.job = Job(config, plan, {split: sum(map(len, blocks)) for split, blocks in self.blocks.items()})
        self.heard: list[dict[str, float]] = []
        self.saved: list[Path] = []

    def run(self, folder: Path | None = None, *, stop_at: int | None = None, resume: Path | None = None, seat: Any = None) -> Outcome:
        """Train; with `stop_at` the caller wants an end at that beat of this start. Checkpoints go to folders below `folder`."""
        beats = itertools.count(1)

        def hear() -> Notice:
            return Notice.STOP if next(beats) == stop_at else Notice.NONE

        def report(metrics: dict[str, float], save: Save | None) -> None:
            self.heard.append(metrics)
            if save and folder:
                self.saved.append(folder / str(len(self.saved)))
                self.saved[-1].mkdir(parents=True)
                save(self.saved[-1])

        seat = seat or alone()
        return fit(
            self.job,
            *(held_source(self.blocks[split]) for split in ("train", "valid")),
            seat=replace(seat, hear=hear),
            report=report,
            resume=resume,
        )


@pytest.fixture(autouse=True)
def _a_beat_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pulse, "due", lambda self, step: True)


def same(one: Outcome, two: Outcome) -> bool:
    assert isinstance(one.scorer, NetScorer)
    assert isinstance(two.scorer, NetScorer)
    mine, theirs = one.scorer.weights, two.scorer.weights
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)


SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 128, "checkpoint": {"every_epochs": None}}


@pytest.mark.parametrize("stop_at", [1, 9, 16, 17, 30])
def test_a_run_that_is_stopped_after_any_step_ends_as_the_undisturbed_one(stop_at: int, snapshots: Snapshots, tmp_path: Path) -> None:
    """An epoch has 16 batches: 15 beats within it and one at its end, so the 16th lies between two epochs."""
    whole = Drill(snapshots("binary"), **SETTINGS)
    expected = whole.run()
    cut = Drill(snapshots("binary"), **SETTINGS)
    with pytest.raises(Stopped):
        cut.run(tmp_path, stop_at=stop_at)
    assert len(cut.saved) == 1
    again = cut.run(resume=cut.saved[0])
    assert same(again, expected)
    losses = [epoch["train_loss"] for epoch in whole.heard]
    assert [epoch["train_loss"] for epoch in again.progress.history] == pytest.approx(losses, rel=1e-12)
    assert again.progress.pace.steps == expected.progress.pace.steps == 48


@pytest.mark.parametrize(
    "recipe",
    [
        {"average": {"kind": "ema"}, "schedule": {"kind": "plateau", "epochs": 1}},
        {"average": {"kind": "swa", "start": 0.4}, "schedule": {"kind": "linear"}},
        {"adversarial": {"kind": "pgd"}, "label_smoothing": 0.1},
    ],
)
def test_a_run_of_any_recipe_goes_on_within_an_epoch_of_five_steps(recipe: dict[str, Any], snapshots: Snapshots, tmp_path: Path) -> None:
    settings = SETTINGS | {"accumulate": 3} | recipe
    expected = Drill(snapshots("binary"), **settings).run()
    cut = Drill(snapshots("binary"), **settings)
    with pytest.raises(Stopped):
        cut.run(tmp_path, stop_at=8)
    assert loop.Progress.load(cut.saved[0]).batch == 9, "three steps of three batches into the second epoch"
    again = cut.run(resume=cut.saved[0])
    assert same(again, expected)
    assert again.progress.pace.steps == expected.progress.pace.steps == 15


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each look at the clock finds that a second has passed."""
    seconds = itertools.count()
    monkeypatch.setattr(loop, "Pulse", lambda *args, **named: Pulse(*args, **named, clock=lambda: float(next(seconds))))
    return


def test_a_budget_of_steps_ends_in_the_middle_of_an_epoch_with_the_schedule_at_its_end(snapshots: Snapshots) -> None:
    drill = Drill(snapshots("binary"), **SETTINGS, budget={"steps": 20})
    pace = drill.run().progress.pace
    assert pace.steps == 20
    assert pace.position == pytest.approx(pace.total, rel=1e-12)
    assert [epoch["epoch"] for epoch in drill.heard] == [0, 1]
    assert drill.heard[1]["valid_loss"] < drill.heard[0]["valid_loss"], "the cut epoch was validated"


def test_the_limit_that_is_met_first_ends_training(snapshots: Snapshots) -> None:
    drill = Drill(snapshots("binary"), **SETTINGS, budget={"steps": 20, "minutes": 60})
    assert (drill.run().progress.pace.steps, len(drill.heard)) == (20, 2)


def test_a_budget_of_time_ends_training_with_the_schedule_at_its_end(snapshots: Snapshots, clock: None) -> None:
    """Thirty seconds, of which each step takes one and the validation is kept out of the count."""
    drill = Drill(snapshots("binary"), **(SETTINGS | {"epochs": 100}), budget={"minutes": 0.5})
    outcome = drill.run()
    pace = outcome.progress.pace
    assert 26 <= pace.steps <= 30
    assert pace.position == pytest.approx(pace.total, rel=0.05)
    assert outcome.progress.finished
    assert outcome.progress.epochs == len(drill.heard) == 2
    assert math.isfinite(drill.heard[-1]["valid_loss"])


def test_checkpoints_come_by_epochs_and_at_the_end(snapshots: Snapshots, tmp_path: Path) -> None:
    drill = Drill(snapshots("binary"), **(SETTINGS | {"epochs": 5, "checkpoint": {"every_epochs": 2}}))
    drill.run(tmp_path)
    assert [loop.Progress.load(folder).epochs for folder in drill.saved] == [2, 4, 5]


def test_checkpoints_come_by_time_in_the_middle_of_an_epoch_unless_one_is_on_its_way(
    snapshots: Snapshots, tmp_path: Path, clock: None
) -> None:
    settings = SETTINGS | {"epochs": 2, "checkpoint": {"every_epochs": None, "every_minutes": 0.1}}
    free, busy = Drill(snapshots("binary"), **settings), Drill(snapshots("binary"), **settings)
    outcome = free.run(tmp_path / "free")
    steps = [loop.Progress.load(folder).pace.steps for folder in free.saved]
    assert steps == [6, 12, 18, 24, 30, 32], "a beat a second"
    assert same(free.run(resume=free.saved[2]), outcome)
    busy.run(tmp_path / "busy", seat=replace(alone(), uploading=lambda: True))
    assert [loop.Progress.load(folder).pace.steps for folder in busy.saved] == [32], "the last one waits for none"


def test_a_run_goes_on_with_other_workers_at_the_same_share_of_its_epoch_and_schedule(snapshots: Snapshots, tmp_path: Path) -> None:
    """Stopped by one worker after 4 of 16 batches; had there been two, those would have been 4 of 8."""
    drill = Drill(snapshots("binary"), **SETTINGS)
    with pytest.raises(Stopped):
        drill.run(tmp_path, stop_at=4)
    progress = loop.Progress.load(drill.saved[0])
    assert (progress.world_size, progress.batch, progress.batches) == (1, 4, 16)
    replace(progress, world_size=2, batches=8).save(drill.saved[0])
    after = drill.run(resume=drill.saved[0]).progress
    assert after.epochs == 3
    assert after.pace.steps == 4 + 8 + 2 * 16
    assert after.pace.position == pytest.approx(48)
    assert after.pace.rate == pytest.approx((48 - 4) / 40)


def test_an_epoch_that_is_one_step_of_the_new_group_begins_anew(snapshots: Snapshots, tmp_path: Path) -> None:
    """Stopped after 4 of 16 batches; the workers that go on make a whole epoch of one."""
    drill, wide = (Drill(snapshots("binary"), **(SETTINGS | {"batch_size": size})) for size in (128, 2_000))
    with pytest.raises(Stopped):
        drill.run(tmp_path, stop_at=4)
    after = wide.run(resume=drill.saved[0]).progress
    assert after.epochs == len(after.history) == 3
    assert after.pace.steps == 4 + 3
    assert after.pace.position == pytest.approx(48)
    assert [epoch["epoch"] for epoch in wide.heard] == [0, 1, 2]
    assert all(math.isfinite(epoch["train_loss"]) and math.isfinite(epoch["valid_loss"]) for epoch in wide.heard)


def test_figures_of_an_epoch_hold_together(snapshots: Snapshots) -> None:
    drill = Drill(snapshots("binary"), **SETTINGS, peak_tflops=0.01)
    drill.run()
    for epoch in drill.heard:
        assert 0 <= epoch["data_wait_share"] <= 1
        assert 0 < epoch["step_ms_p50"] <= epoch["step_ms_p99"]
        assert 50 < epoch["memory_mb"] < 100_000
        assert 0 < epoch["mfu"] < 1
        assert "gpu_memory_mb" not in epoch
        rows_s = 1_968 / (epoch["step_ms_p50"] * 16 / 1e3)
        assert 0.2 * rows_s < epoch["rows_per_s"] < 2 * rows_s
