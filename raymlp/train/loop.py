"""The training loop of one worker: the same code in a Ray Train group and inside one process.

Legend: N validation rows, K classes, O outputs of the net.
"""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from raymlp.core.metrics import METRICS
from raymlp.model.calibration import Calibration
from raymlp.model.nets import build_net
from raymlp.train import midway
from raymlp.train.batches import BUFFER_BYTES, VALID_BYTES, VALID_ROWS, TrainBatches, ValidBatches
from raymlp.train.blocks import Source
from raymlp.train.figures import Figures, epoch_figures, flops_per_row, peak_flops
from raymlp.train.job import Job, Outcome, Progress
from raymlp.train.module import TableModule
from raymlp.train.pace import Pace
from raymlp.train.pulse import Agree, Beat, Notice, Pulse
from raymlp.train.strategy import full_weights, precision_of

STATE, BEST = "state.ckpt", "best.safetensors"
Save = Callable[[Path], None]
Report = Callable[[dict[str, float], Save | None], None]
"""Hears the metrics of an epoch (or, within one, the `step` alone) and, when a checkpoint is due, a function that writes it into a
folder."""
Gather = Callable[[NDArray[Any]], NDArray[Any]]
"""Puts the rows of all workers together, in the order of their ranks."""


@dataclass(frozen=True)
class Seat:
    """Where a worker sits: its rank among how many, its device and strategy, how it meets the others, and what it hears from outside."""

    strategy: Strategy
    rank: int = 0
    world_size: int = 1
    gather: Gather = lambda rows: rows
    agree: Agree = lambda values: values
    hear: Callable[[], Notice] = lambda: Notice.NONE
    uploading: Callable[[], bool] = lambda: False
    """Whether a checkpoint is still on its way."""

    @property
    def device(self) -> torch.device:
        device: torch.device = self.strategy.root_device
        return device


def alone() -> Seat:
    """The seat of the only worker, on the CPU."""
    return Seat(SingleDeviceStrategy(torch.device("cpu")))


def fit(job: Job, train: Source, valid: Source, *, seat: Seat, report: Report, resume: Path | None = None) -> Outcome:
    """Train to the end or until validation stops getting better, from a checkpoint where one is given.

    Every worker of the group calls it and gets the same outcome. Raises TrainingError when the loss is no number, Stopped when the
    run was saved and ended at its caller's wish.
    """
    settings = job.config.train
    torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    valid_rows = job.plan.rows_within(VALID_BYTES, VALID_ROWS)
    held_out = ValidBatches(valid, steps=_valid_steps(job, seat.world_size, valid_rows), batch_rows=valid_rows)
    resample = job.resampler(seat.world_size)
    batches = TrainBatches(
        train,
        rows=resample.rows if resample else job.train_rows(seat.world_size),
        batch_size=settings.batch_size,
        buffer_rows=job.plan.rows_within(BUFFER_BYTES, settings.shuffle_rows) if settings.shuffle_rows else 0,
        seed=(settings.seed, seat.rank),
        epoch=lambda: progress.epochs,
        shuffle_labels=job.shuffle_labels,
        resample=resample,
    )
    epoch_steps = _epoch_steps(job, batches)
    progress = Progress.load(resume) if resume else Progress(0, Pace(settings.epochs * epoch_steps))
    if not progress.regroup(seat.world_size, len(batches)):
        progress.fit_schedule(settings, epoch_steps)
    batches.skip = progress.batch
    watch = EpochWatch(job, seat, batches, progress, report, resume)
    if not progress.finished:
        module = TableModule(
            build_net(job.shape),
            job.plan.target.task,
            settings,
            pace=progress.pace,
            total_steps=settings.epochs * epoch_steps,
            fused=_can_fuse(job, seat),
            class_weights=job.class_weights,
        )
        with warnings.catch_warnings():
            if not job.config.runtime.verbose:
                warnings.simplefilter("ignore")
            checkpoint = str(resume / STATE) if resume else None
            _trainer(job, seat, watch).fit(module, batches, held_out, ckpt_path=checkpoint, weights_only=True)
    outputs, answers = _evaluated(job, watch.best, held_out, seat)
    return Outcome(watch.best, outputs, answers, progress)


class Stopped(Exception):
    """The run was saved and ended because its caller wanted it to."""


class EpochWatch(pl.Callback):
    """What happens after a step and at the end of an epoch: sums, best weights, limits, report, checkpoint."""

    def __init__(self, job: Job, seat: Seat, batches: TrainBatches, progress: Progress, report: Report, resume: Path | None) -> None:
        self._job, self._seat, self._batches, self._progress, self._report = job, seat, batches, progress, report
        self._settings = job.config.train
        self._resume = resume
        self.best = load_file(resume / BEST) if resume and progress.best_epoch else {}
        """Full weights of the best epoch so far."""
        self._pulse = Pulse(seat.agree, seat.hear, rank=seat.rank, seconds=progress.seconds)
        self._figures = Figures()
        self._flops: float | None = None
        self._peak = peak_flops(seat.device, self._settings.precision, self._settings.peak_tflops) if seat.rank == 0 else None
        self._train_s = self._valid_s = 0.0
        self._saved_s, self._saved_for_notice, self._over = progress.seconds, False, False

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._progress.batch:
            midway.moved(checkpoint["loops"], self._progress.batch)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TableModule)
        self._pulse.start(self._progress.pace.steps)
        if self._peak:
            self._flops = flops_per_row(lambda: build_net(self._job.shape), self._job.plan.shapes)
        if not (self._resume and self._progress.batch):
            return
        _seed_epoch(self._settings.seed, self._progress.epochs, self._seat.rank)
        sums = midway.load(self._resume, self._seat.rank)
        if sums is not None:
            pl_module.train_sums.loss, pl_module.train_sums.rows = sums["loss"].to(pl_module.device), sums["rows"]
            self._batches.reset_clock(sums["waited_s"])
        self._figures.start(sums["train_s"] if sums else 0.0)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _seed_epoch(self._settings.seed, self._progress.epochs, self._seat.rank)
        self._batches.reset_clock()
        self._figures.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._figures.step()
        if trainer.fit_loop._should_accumulate():
            return
        pace, limit = self._progress.pace, self._settings.budget.steps
        pace.step()
        if limit and pace.steps >= limit:
            self._over = trainer.should_stop = True
        elif batch_idx + 1 < trainer.num_training_batches and self._pulse.due(pace.steps):
            self._progress.batch = batch_idx + 1
            self._between_steps(trainer, pl_module, self._beat())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._train_s = self._figures.seconds

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TableModule)
        self._valid_s = self._figures.seconds - self._train_s
        beat = self._beat()
        metrics = self._metrics(trainer, pl_module)
        if self._progress.add(metrics, self._settings, over=self._over):
            self.best = full_weights(pl_module.net)
        trainer.should_stop = self._progress.finished
        stop = beat.notice is Notice.STOP and not self._progress.finished
        due = self._progress.finished or stop or (self._is_due(beat) and not beat.uploading)
        self._report(metrics, self._saving(trainer, beat) if due else None)
        if stop:
            raise Stopped

    def _beat(self) -> Beat:
        beat = self._pulse.beat(self._progress.pace.steps, reserve_s=self._valid_s, uploading=self._seat.uploading())
        self._progress.seconds = beat.seconds
        if minutes := self._settings.budget.minutes:
            left_s = minutes * 60 - beat.seconds - beat.reserve_s
            self._over = left_s <= 0
            self._progress.fit_schedule(self._settings, _epoch_steps(self._job, self._batches), left_s)
        return beat

    def _between_steps(self, trainer: pl.Trainer, module: pl.LightningModule, beat: Beat) -> None:
        """What may happen in the middle of an epoch: the time is over, or the run is saved."""
        assert isinstance(module, TableModule)
        if self._over:
            trainer.should_stop = True
            return
        asked = beat.notice is Notice.STOP or (beat.notice is Notice.SAVE and not self._saved_for_notice)
        minutes = self._settings.checkpoint.every_minutes
        if asked or (minutes and beat.seconds - self._saved_s >= minutes * 60 and not beat.uploading):
            self._report({"step": float(self._progress.pace.steps)}, self._saving(trainer, beat, module))
        if beat.notice is Notice.STOP:
            raise Stopped

    def _is_due(self, beat: Beat) -> bool:
        """Whether a checkpoint is due at the end of an epoch."""
        epochs, minutes = self._settings.checkpoint.every_epochs, self._settings.checkpoint.every_minutes
        by_epochs = epochs is not None and self._progress.epochs % epochs == 0
        return by_epochs or (minutes is not None and beat.seconds - self._saved_s >= minutes * 60) or beat.notice is Notice.SAVE

    def _saving(self, trainer: pl.Trainer, beat: Beat, module: TableModule | None = None) -> Save:
        """What writes a checkpoint; with a module, one in the middle of an epoch. Every worker must call it: under ZeRO each writes
        its part."""
        self._saved_s, self._saved_for_notice = beat.seconds, beat.notice is not Notice.NONE

        def save(folder: Path) -> None:
            trainer.save_checkpoint(folder / STATE)
            if module is not None:
                sums = {"loss": module.train_sums.total(module.device)[0].cpu(), "rows": module.train_sums.rows}
                spent = {"train_s": self._figures.seconds, "waited_s": self._batches.waited_s}
                midway.save(folder, self._seat.rank, sums | spent)
            if self._seat.rank == 0:
                if self.best:
                    save_file(self.best, folder / BEST)
                self._progress.save(folder)

        return save

    def _metrics(self, trainer: pl.Trainer, module: TableModule) -> dict[str, float]:
        task, name = module.task, self._job.config.problem.main_metric
        sums = torch.cat([module.train_sums.total(module.device), module.valid_sums.total(module.device)])
        train_loss, train_rows, valid_loss, valid_rows = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        outputs, answers = _in_unit(self._job, module.valid_outputs, module.valid_answers, self._seat.gather)
        return {
            "epoch": float(self._progress.epochs),
            "train_loss": train_loss / train_rows,
            "valid_loss": valid_loss / valid_rows,
            f"valid_{name}": METRICS[task][name](answers, Calibration.undoing(task, self._job.class_weights).apply(outputs)),
            "workers": float(self._seat.world_size),
            "rows_per_s": train_rows / self._train_s,
            **epoch_figures(self._seat.gather(self._figures.row(train_s=self._train_s, waited_s=self._batches.waited_s))),
            **self._utilisation(train_rows / self._train_s),
        }

    def _utilisation(self, rows_per_s: float) -> dict[str, float]:
        """Share of the peak of all devices that the net's own arithmetic takes (model FLOP utilisation, Chowdhery et al. 2022)."""
        return {"mfu": self._flops * rows_per_s / (self._peak * self._seat.world_size)} if self._peak and self._flops else {}


def _epoch_steps(job: Job, batches: TrainBatches) -> int:
    """Steps of the optimizer in an epoch."""
    return len(batches)


def quiet(verbose: bool) -> None:
    """Keep Lightning and DeepSpeed off the screen unless asked for."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)


def _trainer(job: Job, seat: Seat, watch: EpochWatch) -> pl.Trainer:
    from ray.train.lightning import RayLightningEnvironment

    settings = job.config.train
    trainer = pl.Trainer(
        accelerator="cpu" if seat.device.type == "cpu" else "gpu",
        devices=1 if isinstance(seat.strategy, SingleDeviceStrategy) else "auto",
        strategy=seat.strategy,
        plugins=[] if isinstance(seat.strategy, SingleDeviceStrategy) else [RayLightningEnvironment()],
        precision=precision_of(settings),
        max_epochs=settings.epochs,
        gradient_clip_val=settings.gradient_clip or None,
        callbacks=[watch],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Lightning would let all workers agree on signals before every step, and wait for the device: the pulse does it once a second
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def _can_fuse(job: Job, seat: Seat) -> bool:
    """The fused AdamW is quicker; DeepSpeed and Lightning's mixed precisions, which clip gradients themselves, need the plain one."""
    return job.config.train.precision == "32" and type(seat.strategy).__name__ in ("SingleDeviceStrategy", "RayDDPStrategy")


def _seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Dropout of an epoch depends on seed, epoch and rank alone, so a resumed run draws the same."""
    drawn = int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])
    torch.manual_seed(drawn)
    np.random.seed(drawn)
    random.seed(drawn)


def _valid_steps(job: Job, world_size: int, rows: int) -> int:
    ranges = [job.valid_range(rank, world_size) for rank in range(world_size)]
    return math.ceil(max(stop - start for start, stop in ranges) / rows)


def _in_unit(
    job: Job, outputs: list[NDArray[np.float32]], answers: list[NDArray[np.float32]], gather: Gather
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Outputs (N,) or (N, K) and answers (N,) of all workers, in the unit of the target, as the predictor gives them."""
    target = job.plan.target
    values = gather(np.concatenate(outputs)).astype(np.float64)
    truth = gather(np.concatenate(answers)).astype(np.float64)
    if target.task == "multiclass":
        return values, truth
    return values[:, 0] * target.scale + target.mean, truth * target.scale + target.mean


def _evaluated(job: Job, weights: dict[str, Tensor], batches: ValidBatches, seat: Seat) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Outputs and answers on the validation split, by the very weights that the bundle holds, in float32."""
    net = build_net(job.shape)
    net.load_state_dict(weights)
    net.to(seat.device).eval()
    outputs, answers = [], []
    with torch.inference_mode():
        for batch in batches:
            moved = batch.to(seat.device)
            outputs.append(net(moved.tensors).cpu().numpy())
            answers.append(batch.target.numpy())
    return _in_unit(job, outputs, answers, seat.gather)
