"""The training loop of one worker: the same code in a Ray Train group and inside one process.

Legend: N validation rows, K classes, O outputs of the net.
"""

from __future__ import annotations

import logging
import math
import random
import time
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

from raymlp.core.errors import TrainingError
from raymlp.core.metrics import METRICS
from raymlp.model.calibration import Calibration
from raymlp.model.nets import build_net
from raymlp.model.scorer import NetScorer
from raymlp.train.batches import BUFFER_BYTES, VALID_BYTES, VALID_ROWS, TrainBatches, ValidBatches
from raymlp.train.blocks import Source
from raymlp.train.job import Job, Outcome, Progress
from raymlp.train.module import TableModule
from raymlp.train.own import module_for
from raymlp.train.strategy import full_weights, precision_of, share_statistics
from raymlp.train.transfer import Thaw, plain_weights

STATE, BEST = "state.ckpt", "best.safetensors"
Save = Callable[[Path], None]
Report = Callable[[dict[str, float], Save | None], bool | None]
"""Hears the metrics of an epoch and, when a checkpoint is due, a function that writes it into a folder. True ends training."""
Gather = Callable[[NDArray[Any]], NDArray[Any]]
"""Puts the rows of all workers together, in the order of their ranks."""


@dataclass(frozen=True)
class Seat:
    """Where a worker sits: its rank among how many, its device and strategy, and how rows of all are put together."""

    strategy: Strategy
    rank: int = 0
    world_size: int = 1
    gather: Gather = lambda rows: rows

    @property
    def device(self) -> torch.device:
        device: torch.device = self.strategy.root_device
        return device


def alone() -> Seat:
    """The seat of the only worker, on the CPU."""
    return Seat(SingleDeviceStrategy(torch.device("cpu")))


def fit(job: Job, train: Source, valid: Source, *, seat: Seat, report: Report, resume: Path | None = None) -> Outcome:
    """Train to the end or until validation stops getting better, from a checkpoint where one is given.

    Every worker of the group calls it and gets the same outcome. Raises TrainingError when the loss is no number.
    """
    settings = job.config.train
    torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
    pl.seed_everything(settings.seed, workers=True, verbose=False)
    fingerprint = job.fingerprint(seat.world_size)
    progress = Progress.load(resume, fingerprint) if resume else Progress(fingerprint)
    valid_rows = job.plan.rows_within(VALID_BYTES, job.shape.rows_at_once(VALID_ROWS))
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
    watch = EpochWatch(job, seat, batches, progress, load_file(resume / BEST) if resume else {}, report)
    if not progress.finished:
        net = job.net()
        module = module_for(net)(
            net,
            job.plan.target.task,
            settings,
            epoch_steps=_epoch_steps(job, batches),
            fused=_can_fuse(job, seat),
            class_weights=job.class_weights,
            losses=lambda: [epoch["valid_loss"] for epoch in progress.history],
        )
        with warnings.catch_warnings():
            if not job.config.runtime.verbose:
                warnings.simplefilter("ignore")
            checkpoint = str(resume / STATE) if resume else None
            _trainer(job, seat, watch, steps=_epoch_steps(job, batches)).fit(
                module, batches, held_out, ckpt_path=checkpoint, weights_only=True
            )
    best = plain_weights(job.shape, watch.best)
    outputs, answers = _evaluated(job, best, held_out, seat)
    return Outcome(NetScorer(job.shape, best), outputs, answers, progress)


class EpochWatch(pl.Callback):
    """What happens at the end of an epoch: sums, best weights, early stop, report, checkpoint."""

    def __init__(self, job: Job, seat: Seat, batches: TrainBatches, progress: Progress, best: dict[str, Tensor], report: Report) -> None:
        self._job, self._seat, self._batches, self._progress, self._report = job, seat, batches, progress, report
        self.best = best
        """Full weights of the best epoch so far."""
        self._started = self._train_s = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _seed_epoch(self._job.config.train.seed, self._progress.epochs, self._seat.rank)
        self._batches.reset_clock()
        self._started = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._train_s = max(time.perf_counter() - self._started, 1e-9)
        share_statistics(pl_module, trainer.strategy)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TableModule)
        settings = self._job.config.train
        metrics = self._metrics(trainer, pl_module)
        if self._progress.add(metrics, patience=settings.patience, epochs=settings.epochs):
            self.best = full_weights(pl_module.kept)
        trainer.should_stop = self._progress.finished
        due = self._progress.finished or self._progress.epochs % settings.checkpoint_every_epochs == 0
        if self._report(metrics, (lambda folder: self._save(trainer, folder)) if due else None):
            trainer.should_stop = True

    def _metrics(self, trainer: pl.Trainer, module: TableModule) -> dict[str, float]:
        task, name = module.task, self._job.config.problem.main_metric
        sums = torch.cat([module.train_sums.total(module.device), module.valid_sums.total(module.device)])
        train_loss, train_rows, valid_loss, valid_rows = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        outputs, answers = _in_unit(self._job, module.valid_outputs, module.valid_answers, self._seat.gather)
        return module.logged(trainer) | {
            "epoch": float(self._progress.epochs),
            "train_loss": train_loss / train_rows,
            "valid_loss": valid_loss / valid_rows,
            f"valid_{name}": METRICS[task][name](answers, Calibration.undoing(task, self._job.class_weights).apply(outputs)),
            "rows_per_s": train_rows / self._train_s,
            "data_wait_share": min(1.0, self._batches.waited_s / self._train_s),
        }

    def _save(self, trainer: pl.Trainer, folder: Path) -> None:
        """Every worker must call it: under ZeRO each writes its part."""
        trainer.save_checkpoint(folder / STATE)
        if self._seat.rank == 0:
            save_file(self.best, folder / BEST)
            self._progress.save(folder)


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


def _trainer(job: Job, seat: Seat, watch: EpochWatch, *, steps: int) -> pl.Trainer:
    from ray.train.lightning import RayLightningEnvironment

    settings = job.config.train
    single = isinstance(seat.strategy, SingleDeviceStrategy)
    precision = precision_of(settings, seat.strategy)
    return pl.Trainer(
        accelerator="cpu" if seat.device.type == "cpu" else "gpu",
        devices=1 if single else "auto",
        strategy=seat.strategy,
        plugins=precision.pop("plugins", []) + ([] if single else [RayLightningEnvironment()]),
        **precision,
        max_epochs=settings.epochs,
        limit_train_batches=steps * settings.accumulate,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip or None,
        gradient_clip_algorithm=settings.gradient_clip_by,
        callbacks=[watch, Thaw()],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


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
