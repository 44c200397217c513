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
from itertools import count
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from raymlp.config.train import Train
from raymlp.core.errors import TrainingError
from raymlp.core.metrics import METRICS
from raymlp.model.calibration import Calibration
from raymlp.model.nets import build_net
from raymlp.model.scorer import NetScorer
from raymlp.runtime import environment
from raymlp.train import midway
from raymlp.train.batches import BUFFER_BYTES, VALID_BYTES, VALID_ROWS, TrainBatches, ValidBatches
from raymlp.train.blocks import Source
from raymlp.train.figures import Figures, epoch_figures, flops_per_row, peak_flops
from raymlp.train.job import Job, Outcome, Progress
from raymlp.train.module import TableModule
from raymlp.train.own import module_for
from raymlp.train.pace import Pace
from raymlp.train.private import PoissonBatches
from raymlp.train.pulse import Beat, Notice, Pulse
from raymlp.train.strategy import full_weights, precision_of, share_statistics
from raymlp.train.team import Gather, Report, Save, Stopped, Team, is_due
from raymlp.train.transfer import Thaw, plain_weights

STATE, BEST = "state.ckpt", "best.safetensors"


@dataclass(frozen=True, kw_only=True)
class Seat(Team):
    """Where a worker sits in the team: on which device, under which strategy."""

    strategy: Strategy

    @property
    def device(self) -> torch.device:
        device: torch.device = self.strategy.root_device
        return device


def alone() -> Seat:
    """The seat of the only worker, on the CPU."""
    return Seat(strategy=SingleDeviceStrategy(torch.device("cpu")))


def fit(job: Job, train: Source, valid: Source, *, seat: Seat, report: Report, resume: Path | None = None) -> Outcome:
    """Train to the end or until validation stops getting better, from a checkpoint where one is given.

    Every worker of the group calls it and gets the same outcome. Raises TrainingError when the loss is no number, Stopped when the
    run was saved and ended at its caller's wish.
    """
    _begin(job)
    progress = Progress.load(resume) if resume else Progress(0, Pace(0))
    valid_rows = job.plan.rows_within(VALID_BYTES, job.shape.rows_at_once(VALID_ROWS))
    held_out = ValidBatches(valid, steps=_valid_steps(job, seat.world_size, valid_rows), batch_rows=valid_rows)
    batches = _batches(job, train, seat, epoch=lambda: progress.epochs)
    epoch_steps = _epoch_steps(job, batches)
    if not resume:
        progress.pace.total = job.epochs * epoch_steps
    if not progress.regroup(seat.world_size, epoch_steps, accumulate=job.config.train.accumulate):
        progress.fit_schedule(_settings(job), epoch_steps)
    batches.skip = progress.batch
    watch = EpochWatch(job, seat, batches, progress, report, resume)
    if not progress.finished:
        module = _module(job, seat, progress.pace, losses=lambda: [epoch["valid_loss"] for epoch in progress.history])
        with warnings.catch_warnings():
            if not job.config.runtime.verbose:
                warnings.simplefilter("ignore")
            checkpoint = str(resume / STATE) if resume else None
            _trainer(job, seat, watch, steps=epoch_steps).fit(module, batches, held_out, ckpt_path=checkpoint, weights_only=True)
    best = plain_weights(job.shape, watch.best)
    outputs, answers = _evaluated(job, best, held_out, seat)
    return Outcome(NetScorer(job.shape, best), outputs, answers, progress, environment.facts())


def steps(job: Job, train: Source, *, seat: Seat, watch: pl.Callback) -> None:
    """The training steps of `fit` alone, until `watch` has seen enough of them."""
    _begin(job)
    epoch = count()
    batches = _batches(job, train, seat, epoch=lambda: next(epoch))
    epoch_steps = _epoch_steps(job, batches)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _trainer(job, seat, watch, steps=epoch_steps).fit(_module(job, seat, Pace(job.epochs * epoch_steps)), batches)


def _begin(job: Job) -> None:
    torch.set_num_threads(max(1, int(job.config.train.cpus_per_worker)))
    pl.seed_everything(job.config.train.seed, workers=True, verbose=False)


def _batches(job: Job, train: Source, seat: Seat, *, epoch: Callable[[], int]) -> TrainBatches:
    settings, resample, budget = job.config.train, job.resampler(seat.world_size), job.budget
    if budget is not None:
        return PoissonBatches(train, budget)
    return TrainBatches(
        train,
        rows=resample.rows if resample else job.train_rows(seat.world_size),
        batch_size=settings.batch_size,
        buffer_rows=job.plan.rows_within(BUFFER_BYTES, settings.shuffle_rows) if settings.shuffle_rows else 0,
        seed=(settings.seed, seat.rank),
        epoch=epoch,
        shuffle_labels=job.shuffle_labels,
        resample=resample,
    )


def _settings(job: Job) -> Train:
    return job.config.train.model_copy(update={"epochs": job.epochs})


def _module(job: Job, seat: Seat, pace: Pace, *, losses: Callable[[], list[float]] = list) -> TableModule:
    net = job.net()
    return module_for(net)(
        net,
        job.plan.target.task,
        _settings(job),
        pace=pace,
        fused=_can_fuse(job, seat),
        class_weights=job.class_weights,
        budget=job.budget,
        attacker=job.attacker,
        losses=losses,
    )


class EpochWatch(pl.Callback):
    """What happens after a step and at the end of an epoch: sums, best weights, limits, report, checkpoint."""

    def __init__(self, job: Job, seat: Seat, batches: TrainBatches, progress: Progress, report: Report, resume: Path | None) -> None:
        self._job, self._seat, self._batches, self._progress, self._report = job, seat, batches, progress, report
        self._settings = _settings(job)
        self._midway = resume if resume and midway.is_midway(resume) else None
        self.best = load_file(resume / BEST) if resume and progress.best_epoch else {}
        """Full weights of the best epoch so far."""
        self._pulse = Pulse(seat.agree, seat.hear, rank=seat.rank, seconds=progress.seconds)
        self._figures = Figures()
        self._flops: float | None = None
        self._peak = peak_flops(seat.device, self._settings.precision, self._settings.peak_tflops) if seat.rank == 0 else None
        self._train_s = self._valid_s = 0.0
        self._saved_s, self._saved_for_notice, self._over = progress.seconds, False, False

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._midway:
            midway.moved(checkpoint["loops"], self._progress.batch)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TableModule)
        self._pulse.start(self._progress.pace.steps)
        if self._peak:
            self._flops = flops_per_row(lambda: build_net(self._job.shape), self._job.plan.shapes)
        if not self._midway:
            return
        _seed_epoch(self._settings.seed, self._progress.epochs, self._seat.rank)
        sums = midway.load(self._midway, self._seat.rank) if self._progress.batch else None
        if sums is not None:
            pl_module.train_sums.loss, pl_module.train_sums.rows = sums["loss"].to(pl_module.device), sums["rows"]
            pl_module.train_sums.tokens = sums["tokens"].to(pl_module.device)
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
        share_statistics(pl_module, trainer.strategy)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TableModule)
        self._valid_s = self._figures.seconds - self._train_s
        beat = self._beat()
        metrics = self._metrics(trainer, pl_module)
        if self._progress.add(metrics, self._settings, over=self._over):
            self.best = full_weights(pl_module.kept)
        trainer.should_stop = self._progress.finished
        stop = beat.notice is Notice.STOP and not self._progress.finished
        asked = self._settings.checkpoint
        due = self._progress.finished or stop or is_due(asked, self._progress.epochs, beat, saved_s=self._saved_s)
        if self._report(metrics, self._saving(trainer, beat) if due else None):
            trainer.should_stop = True
        if stop:
            raise Stopped

    def _beat(self) -> Beat:
        beat = self._pulse.beat(self._progress.pace.steps, reserve_s=self._valid_s, uploading=self._seat.uploading())
        self._progress.seconds = beat.seconds
        if minutes := self._settings.budget.minutes:
            left_s = minutes * 60 - beat.seconds - beat.reserve_s
            self._over = self._over or left_s <= 0
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

    def _saving(self, trainer: pl.Trainer, beat: Beat, module: TableModule | None = None) -> Save:
        """What writes a checkpoint; with a module, one in the middle of an epoch. Every worker must call it: under ZeRO each writes
        its part."""
        self._saved_s, self._saved_for_notice = beat.seconds, beat.notice is not Notice.NONE

        def save(folder: Path) -> None:
            trainer.save_checkpoint(folder / STATE)
            if module is not None:
                loss, _, tokens = module.train_sums.total(module.device).cpu()
                sums = {"loss": loss, "rows": module.train_sums.rows, "tokens": tokens}
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
        train_loss, train_rows, train_tokens, valid_loss, valid_rows, valid_tokens = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        per_token = {"tokens_per_s": train_tokens / self._train_s} if task == "language" else {}
        outputs, answers = _in_unit(self._job, module.valid_outputs, module.valid_answers, self._seat.gather)
        return module.logged(trainer) | {
            "epoch": float(self._progress.epochs),
            "train_loss": train_loss / ((train_tokens or math.nan) if per_token else train_rows),
            "valid_loss": valid_loss / ((valid_tokens or math.nan) if per_token else valid_rows),
            f"valid_{name}": METRICS[task][name](answers, Calibration.undoing(task, self._job.class_weights).apply(outputs)),
            "workers": float(self._seat.world_size),
            **self._robust(module, answers),
            **self._job.spent(self._progress.epochs + 1),
            "rows_per_s": train_rows / self._train_s,
            **per_token,
            **epoch_figures(self._seat.gather(self._figures.row(train_s=self._train_s, waited_s=self._batches.waited_s))),
            **self._utilisation(train_rows / self._train_s),
        }

    def _utilisation(self, rows_per_s: float) -> dict[str, float]:
        """Share of the peak of all devices that the net's own arithmetic takes (model FLOP utilisation, Chowdhery et al. 2022)."""
        return {"mfu": self._flops * rows_per_s / (self._peak * self._seat.world_size)} if self._peak and self._flops else {}

    def _robust(self, module: TableModule, answers: NDArray[np.float64]) -> dict[str, float]:
        """How good the net is on validation rows that were moved against it; empty without `train.adversarial`."""
        if module.attacker is None:
            return {}
        outputs, _ = _in_unit(self._job, module.robust_outputs, module.valid_answers, self._seat.gather)
        name = "rmse" if module.task == "regression" else "accuracy"
        scores = Calibration.undoing(module.task, self._job.class_weights).apply(outputs)
        return {f"valid_robust_{name}": METRICS[module.task][name](answers, scores)}


def quiet(verbose: bool) -> None:
    """Keep Lightning and DeepSpeed off the screen unless asked for."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)


def _epoch_steps(job: Job, batches: TrainBatches) -> int:
    """Steps of the optimizer in an epoch. Raises TrainingError when there are not batches enough for one."""
    settings = job.config.train
    steps = len(batches) // settings.accumulate
    if not steps:
        raise TrainingError(
            f"an epoch has {len(batches)} batches on each worker, and train.accumulate is {settings.accumulate}; expected no more than "
            "there are batches. Set train.accumulate or train.batch_size."
        )
    return steps


def _trainer(job: Job, seat: Seat, watch: pl.Callback, *, steps: int) -> pl.Trainer:
    from ray.train.lightning import RayLightningEnvironment

    settings = job.config.train
    single = isinstance(seat.strategy, SingleDeviceStrategy)
    precision = precision_of(settings, seat.strategy)
    trainer = pl.Trainer(
        accelerator="cpu" if seat.device.type == "cpu" else "gpu",
        devices=1 if single else "auto",
        strategy=seat.strategy,
        plugins=precision.pop("plugins", []) + ([] if single else [RayLightningEnvironment()]),
        **precision,
        max_epochs=settings.epochs,
        limit_train_batches=steps * settings.accumulate,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=None if settings.private else settings.gradient_clip or None,
        gradient_clip_algorithm=settings.gradient_clip_by,
        callbacks=[watch, Thaw()],
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
    settings = job.config.train
    return settings.precision == "32" and (isinstance(seat.strategy, SingleDeviceStrategy) or settings.strategy.kind == "ddp")


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
    """Outputs (N,), (N, K) or (N, 3) and answers (N,) of all workers, in the unit of the target, as the predictor gives them."""
    target = job.plan.target
    values = gather(np.concatenate(outputs)).astype(np.float64)
    truth = gather(np.concatenate(answers)).astype(np.float64)
    return target.in_unit(values), truth if target.task == "multiclass" else truth * target.scale + target.mean


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
