"""The finders, on curves worked by hand, with a memory that is played, and with real steps."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from raymlp.config.loader import with_overrides
from raymlp.core.errors import ConfigError, TrainingError
from raymlp.core.records import Snapshot
from raymlp.runtime.memory import available
from raymlp.train import finder, memory
from raymlp.train.finder import Sweep, Tried
from tests.train.planted import config_of

Snapshots = Callable[[str], Snapshot]
RATES = np.geomspace(1e-6, 1.0, 200)


def test_the_suggestion_is_where_the_loss_falls_most_steeply() -> None:
    for centre in (1e-4, 1e-2):
        fall = 1 / (1 + np.exp(3 * (np.log(RATES) - math.log(centre))))
        found = Sweep(RATES, fall).suggestion
        assert centre < found < 10 * centre, "smoothing over fifty steps looks back, so the fall is seen a little late"


def test_the_smoothed_loss_begins_at_the_first_and_comes_to_a_constant() -> None:
    smooth = Sweep(RATES[:3], np.array([2.0, 4.0, 4.0])).smoothed
    assert smooth.tolist() == pytest.approx([2.0, (0.98 * 2 + 4) / 1.98, (0.98**2 * 2 + 0.98 * 4 + 4) / (1 + 0.98 + 0.98**2)])


def test_a_loss_that_never_falls_is_said_with_the_settings_to_change() -> None:
    for losses in (np.arange(1.0, 201.0), np.ones(15)):
        with pytest.raises(TrainingError, match=r"never falls from a learning rate of 1e-06.*Set train.finder.lowest"):
            _ = Sweep(RATES[: len(losses)], losses).suggestion


def test_a_sweep_of_real_steps_finds_a_rate_that_learns_and_leaves_its_curve(snapshots: Snapshots, tmp_path: Path) -> None:
    config = config_of(batch_size=64)
    found = finder.learning_rate(config, snapshots("binary").path, tmp_path)
    assert 3e-3 <= float(found.best.removeprefix("train.learning_rate=")) <= 0.5
    with (tmp_path / "learning-rate.csv").open() as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["learning_rate"]) for row in rows]
    assert (rates[0], len(rows)) == (1e-6, config.train.finder.steps)
    assert np.diff(np.log(rates)) == pytest.approx(math.log(rates[1] / rates[0]), rel=1e-3)
    assert float(rows[-1]["smoothed"]) < float(rows[0]["smoothed"])
    assert "</svg>" in (tmp_path / "learning-rate.svg").read_text()


def play(monkeypatch: pytest.MonkeyPatch, *, fixed_mb: int, row_mb: float, rows: int = 10_000) -> list[int]:
    """A memory that every row of a batch takes its part of; the sizes that are tried."""
    sizes: list[int] = []

    def tried(config: object, _: object) -> tuple[float, int]:
        sizes.append(config.train.batch_size)  # type: ignore[attr-defined]
        return 1.0, rows

    monkeypatch.setattr(finder, "_tried", tried)
    monkeypatch.setattr(finder, "peak_bytes", lambda: int((fixed_mb + row_mb * sizes[-1]) * 2**20))
    return sizes


def test_a_batch_that_would_go_over_the_limit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = play(monkeypatch, fixed_mb=100, row_mb=1.0)
    tried = finder.try_batches(with_overrides(config_of(), {"train.finder.memory_mb": 700}), Path())
    assert sizes == [32, 64, 128, 256, 512]
    assert [item.fits for item in tried] == [True] * 5
    assert tried[-1].why == "the next would take about 1,124 of the 700 MiB for a worker"


def test_batches_end_at_the_rows_of_a_worker_or_where_the_first_is_too_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = with_overrides(config_of(), {"train.finder.memory_mb": 700})
    play(monkeypatch, fixed_mb=100, row_mb=0.1, rows=200)
    assert finder.batch_size(config, Path(), tmp_path).best == "train.batch_size=128"
    play(monkeypatch, fixed_mb=800, row_mb=0.1)
    with pytest.raises(TrainingError, match="a batch of 32 rows does not fit"):
        finder.batch_size(config, Path(), tmp_path)


def test_a_device_that_says_it_is_full_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(config: object, _: object) -> tuple[float, int]:
        if config.train.batch_size > 64:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError
        return 1.0, 10_000

    monkeypatch.setattr(finder, "_tried", tried)
    *_, second, last = finder.try_batches(config_of(), Path())
    assert (second.batch_size, second.fits) == (64, True)
    assert last == Tried(128, last.memory_mb, 0.0, False, "the memory is full")


def test_real_steps_are_taken_up_to_the_rows_there_are(snapshots: Snapshots) -> None:
    tried = finder.try_batches(config_of(), snapshots("binary").path)
    assert [item.batch_size for item in tried] == [32, 64, 128, 256, 512, 1024]
    assert all(item.fits and item.rows_per_s > 0 and item.memory_mb > 100 for item in tried)


def test_a_strategy_that_divides_the_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.strategy.kind is deepspeed.*expected ddp"):
        finder.try_batches(config_of(strategy={"kind": "deepspeed"}), Path())


def test_the_peak_is_that_of_memory_which_was_given_back() -> None:
    memory.reset_peak()
    before = memory.peak_bytes()
    np.ones(25_000_000).sum()
    assert 180e6 < memory.peak_bytes() - before < 260e6
    assert available() > 0
