"""Finding a learning rate and a batch size by real training steps of one worker, on its device.

Learning rate (Smith 2017): the step size rises by the same factor at every step while the loss is watched. Batch size: twice as
large each time, until the memory is full.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from numpy.typing import NDArray

from raymlp.config.loader import with_overrides
from raymlp.config.schema import Config
from raymlp.core.errors import ConfigError, TrainingError
from raymlp.core.files import Place, write_text
from raymlp.core.records import Found
from raymlp.runtime.memory import available
from raymlp.train import loop
from raymlp.train.feed import held_source
from raymlp.train.memory import peak_bytes, reset_peak
from raymlp.train.worker import job_alone

Floats = NDArray[np.float64]
MEMORY = 0.98
"""Share of the past in the smoothed loss."""
RUNAWAY = 4.0
"""The sweep ends when the smoothed loss is so many times its lowest."""
EDGE = 10
"""Steps at either end of a sweep that are not looked at: the first are of the fresh net, the last run away."""
FIRST_ROWS = 32
TRIED_STEPS = 3
SCHEDULED = 20
"""Steps that a schedule is made for at least."""
SHARE = 0.8
MIB = 1 << 20
"""Share of the free memory that the batch may fill."""


@dataclass(frozen=True)
class Sweep:
    """One loss a step: `rates` and `losses` float64 (n,)."""

    rates: Floats
    losses: Floats

    @property
    def smoothed(self) -> Floats:
        """Exponential mean of the losses without the pull of its start, as far as they are finite."""
        mean, found = 0.0, []
        for step, loss in enumerate(self.losses, 1):
            mean = MEMORY * mean + (1 - MEMORY) * loss
            found.append(mean / (1 - MEMORY**step))
        return np.array(found)

    @property
    def suggestion(self) -> float:
        """The rate at which the smoothed loss falls most steeply over the rate's logarithm. Raises TrainingError when it never falls."""
        smooth, log = self.smoothed, np.log(self.rates)
        if len(smooth) > 2 * EDGE:
            slope = np.gradient(smooth, log)[EDGE:-EDGE]
            if slope.min() < 0:
                return float(self.rates[EDGE + int(slope.argmin())])
        raise TrainingError(
            f"the loss never falls from a learning rate of {self.rates[0]:g} to {self.rates[-1]:g} in {len(smooth)} steps; expected it to "
            "fall somewhere. Set train.finder.lowest, highest or steps."
        )


@dataclass(frozen=True)
class Tried:
    """A batch size: the most memory held, in MiB, rows a second, and why no larger one was tried, where memory is the reason."""

    batch_size: int
    memory_mb: float
    rows_per_s: float
    fits: bool
    why: str = ""


def sweep_rates(config: Config, snapshot: Place) -> Sweep:
    """Raise the learning rate from `train.finder.lowest` to `highest` and note the loss. A step takes the rows of all workers."""
    settings, finder = config.train, config.train.finder
    watch = _Rates(np.geomspace(finder.lowest, finder.highest, finder.steps))
    _steps(with_overrides(config, {"train.batch_size": settings.batch_size * settings.num_workers}), snapshot, watch, finder.steps)
    return Sweep(watch.rates[: len(watch.losses)], np.array(watch.losses))


def try_batches(config: Config, snapshot: Place) -> list[Tried]:
    """Batch sizes from 32 rows upwards, each twice the last, until one does not fit or is more than a worker has rows.

    On a CPU a size that would take more than the limit, by how the memory has grown, is not tried. Raises ConfigError under a strategy
    that divides the memory among workers.
    """
    settings = config.train
    if settings.strategy.kind != "ddp":
        raise ConfigError(f"train.strategy.kind is {settings.strategy.kind}, whose workers share the memory; expected ddp to try batches.")
    reset_peak()
    limit, tried, rows = _limit_bytes(config), [], FIRST_ROWS  # type: tuple[float, list[Tried], int]
    while not tried or (tried[-1].fits and not tried[-1].why):
        try:
            seconds, most = _tried(with_overrides(config, {"train.batch_size": rows}), snapshot)
        except (torch.OutOfMemoryError, MemoryError):
            return [*tried, Tried(rows, math.nan, 0.0, False, "the memory is full")]
        if rows > most:
            break
        peak = _peak(settings.gpu)
        next_mb = (peak + 2 * max(0.0, peak - (tried[-1].memory_mb * MIB if tried else peak))) / MIB
        why = "" if next_mb * MIB <= limit else f"the next would take about {next_mb:,.0f} of the {limit / MIB:,.0f} MiB for a worker"
        tried.append(Tried(rows, peak / MIB, rows * TRIED_STEPS / seconds, peak <= limit, why))
        rows *= 2
    return tried


def _limit_bytes(config: Config) -> float:
    settings = config.train
    if settings.gpu:
        return math.inf
    if settings.finder.memory_mb:
        return float(settings.finder.memory_mb << 20)
    return peak_bytes() + SHARE * available() / settings.num_workers


def _peak(gpu: bool) -> int:
    return int(torch.cuda.max_memory_allocated()) if gpu else peak_bytes()


class _Rates(pl.Callback):
    """Sets the learning rate before each step, keeps the loss after it, and ends the sweep."""

    def __init__(self, rates: Floats) -> None:
        self.rates, self.losses = rates, []  # type: tuple[Floats, list[float]]
        self._shares: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        groups = trainer.optimizers[0].param_groups
        if not self._shares:
            highest = max(group["initial_lr"] for group in groups)
            self._shares = [group["initial_lr"] / highest for group in groups]
        for group, share in zip(groups, self._shares, strict=True):
            group["lr"] = share * self.rates[len(self.losses)]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = float(outputs["loss"])
        if math.isfinite(loss):
            self.losses.append(loss)
        smooth = Sweep(self.rates[: len(self.losses)], np.array(self.losses)).smoothed
        away = len(smooth) > 2 * EDGE and smooth[-1] > RUNAWAY * smooth.min()
        trainer.should_stop = not math.isfinite(loss) or len(self.losses) == len(self.rates) or bool(away)


class _Count(pl.Callback):
    """Ends after a few steps, and says how long they took and how many rows a worker has."""

    def __init__(self, steps: int) -> None:
        self.steps, self.started = steps, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def _tried(config: Config, snapshot: Place) -> tuple[float, int]:
    """Seconds of a few steps, and the rows of a worker; without steps when the batch is larger than that."""
    if config.train.gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    count = _Count(TRIED_STEPS)
    rows = _steps(config, snapshot, count, TRIED_STEPS)
    return time.perf_counter() - count.started, rows


def _steps(config: Config, snapshot: Place, watch: pl.Callback, steps: int) -> int:
    """Training steps of one worker without validation, as `raymlp train` makes them; gives the rows of a worker."""
    loop.quiet(config.runtime.verbose)
    job, splits = job_alone(config, snapshot)
    rows = job.train_rows(1)
    if config.train.batch_size <= rows:
        epochs = math.ceil(max(steps + 1, SCHEDULED) / (rows // config.train.batch_size))
        device = torch.device("cuda", 0) if config.train.gpu else torch.device("cpu")
        job = replace(job, config=with_overrides(config, {"train.epochs": epochs}))
        loop.steps(job, held_source(splits["train"]), seat=loop.Seat(strategy=SingleDeviceStrategy(device)), watch=watch)
    return rows


def learning_rate(config: Config, snapshot: Place, folder: Place) -> Found:
    """The suggestion of a sweep, with `learning-rate.csv` and `learning-rate.svg` in `folder`."""
    from matplotlib.figure import Figure

    sweep = sweep_rates(config, snapshot)
    columns = {"learning_rate": sweep.rates, "loss": sweep.losses, "smoothed": sweep.smoothed}
    table = _csv(folder / "learning-rate.csv", tuple(columns), zip(*columns.values(), strict=True))
    best = sweep.suggestion
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.plot(sweep.rates, sweep.losses, color="0.8", label="loss of a step")
    axes.plot(sweep.rates, sweep.smoothed, color="C0", label="smoothed")
    axes.axvline(best, color="C1", label=f"steepest fall, {best:.2g}")
    axes.set_ylim(top=1.5 * float(sweep.smoothed[: EDGE + 1].max()))
    axes.legend(frameon=False)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    write_text(folder / "learning-rate.svg", drawing.getvalue())
    shown = [(f"{sweep.rates[i]:.2g}", f"{sweep.smoothed[i]:.4f}") for i in range(0, len(sweep.losses), max(1, len(sweep.losses) // 12))]
    return Found(f"train.learning_rate={best:.2g}", ("learning rate", "loss"), tuple(shown), (table, folder / "learning-rate.svg"))


def batch_size(config: Config, snapshot: Place, folder: Place) -> Found:
    """The largest batch that fits, with `batch-size.csv` in `folder`. Raises TrainingError when none does."""
    tried = try_batches(config, snapshot)
    titles = ("batch_size", "memory_mb", "rows_per_s", "fits", "why")
    table = _csv(folder / "batch-size.csv", titles, (tuple(vars(item).values()) for item in tried))
    fitting = [item.batch_size for item in tried if item.fits]
    if not fitting:
        raise TrainingError(f"a batch of {FIRST_ROWS} rows does not fit the memory; expected it to. Make the model smaller.")
    shown = [(f"{item.batch_size:,}", f"{item.memory_mb:,.0f}", f"{item.rows_per_s:,.0f}", item.why) for item in tried]
    return Found(f"train.batch_size={fitting[-1]}", ("batch size", "MiB", "rows/s", ""), tuple(shown), (table,))


def _csv(path: Place, titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> Place:
    import csv

    text = io.StringIO()
    csv.writer(text).writerows([titles, *rows])
    return write_text(path, text.getvalue())
