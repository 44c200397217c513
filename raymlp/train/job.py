"""What a training run is, in plain values that travel to the workers, and how far it has come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raymlp.config.mix import NoMix
from raymlp.config.model import Own
from raymlp.config.schema import Config
from raymlp.config.train import Train
from raymlp.config.trees import Trees
from raymlp.config.unsupervised import IsolationForest, KMeans
from raymlp.core.errors import ConfigError, TrainingError
from raymlp.core.files import to_json
from raymlp.core.metrics import gain, score
from raymlp.core.records import Task
from raymlp.features.plan import FeaturePlan
from raymlp.model.calibration import Calibration
from raymlp.model.huggingface import Start
from raymlp.model.nets import Edges, NetShape, build_net
from raymlp.model.scorer import Scorer
from raymlp.train.adversarial import Attacker
from raymlp.train.imbalance import Resampler, balanced_weights
from raymlp.train.layers import require_blocks
from raymlp.train.pace import Pace
from raymlp.train.private import Budget, budget_of, refuse_unfit, try_rows

SHOWN = 3
"""Columns that an error names."""
SPENT = ("epsilon", "delta")
"""What all epochs together have spent, whichever of them was the best: all were looked at."""


@dataclass(frozen=True)
class Job:
    """One training run. `rows` counts usable rows by split over all workers, `class_counts` (K,) the training rows of each class.
    `edges` are where the net's bins lie, by `number_edges`."""

    config: Config
    plan: FeaturePlan
    rows: Mapping[str, int]
    hold: bool = True
    shuffle_labels: bool = False
    class_counts: tuple[float, ...] = ()
    edges: Edges = ()
    start: Start | None = None
    """Settings and weights of a Hugging Face encoder; None for other nets."""

    def __post_init__(self) -> None:
        """Raises ConfigError for SMOTE on texts or images, since nothing lies between two; for augmentation without images; for images
        that are mixed beside other features; for privacy that the net or the budget does not allow; for an attack that has nothing
        to move; for activations to compute again in a net without blocks; and for a net of the user's own that is not sound."""
        if self.config.train.augment.is_on and self.plan.image is None:
            raise ConfigError("train.augment changes images, and the features hold none; expected one. Set features.image.")
        if self.config.train.resample == "smote" and (self.plan.texts or self.plan.image):
            kind = "a text" if self.plan.texts else "an image"
            raise ConfigError(
                f"train.resample is smote, and the features hold {kind}; expected numbers and categories alone. "
                "Set train.resample=oversample or undersample."
            )
        if not isinstance(self.config.train.mix, NoMix) and (len(self.plan.inputs) > 1 or self.plan.image is None):
            others = [name for name in self.plan.inputs if self.plan.image is None or name != self.plan.image.column]
            raise ConfigError(
                f"train.mix.kind is {self.config.train.mix.kind}, which mixes images and their answers, and the features hold "
                f"{', '.join(others[:SHOWN])}, which would speak for one of the two alone; expected the image as the only feature. "
                "Set train.mix.kind=none, or leave the others out by features.drop."
            )
        if self.config.train.activation_checkpointing and self.has_net:
            with torch.device("meta"):
                require_blocks(build_net(self.shape))
        if not self.has_net and (self.plan.texts or self.plan.image):
            raise ConfigError(
                f"model.kind is {self.config.model.kind}, and the features hold {'a text' if self.plan.texts else 'an image'}; expected "
                "numbers and categories alone. Choose a model that reads it, or leave the column out by features.drop."
            )
        if self.config.train.adversarial:
            Attacker(self.config.train.adversarial, self.plan)
        if self.budget is not None:
            from raymlp.train.transfer import let_learn

            net = build_net(self.shape)
            let_learn(net)
            refuse_unfit(net, self.config.model.kind)
            try_rows(net, self.shape)
            _ = self.budget.epochs
        if isinstance(self.config.model, Own):
            from raymlp.train.own import check

            check(build_net(self.shape), self.config.train)

    @property
    def class_weights(self) -> tuple[float, ...]:
        """What training gives to each class (K,), through the loss or through the choice of rows; empty when it is left as it is."""
        settings = self.config.train
        return balanced_weights(self.class_counts) if settings.class_weights == "balanced" or settings.resample != "none" else ()

    def resampler(self, world_size: int) -> Resampler | None:
        """What chooses the training rows of an epoch, on each of so many workers."""
        kind = self.config.train.resample
        return None if kind == "none" else Resampler(kind, self.class_counts, world_size=world_size)

    @cached_property
    def budget(self) -> Budget | None:
        """What a private run spends. Raises ConfigError when that is not possible."""
        return budget_of(self.config.train, self.train_rows(1))

    @property
    def attacker(self) -> Attacker | None:
        """What moves rows against the net. Raises ConfigError when there is nothing to move."""
        settings = self.config.train.adversarial
        return Attacker(settings, self.plan) if settings else None

    @property
    def epochs(self) -> int:
        """Most epochs: those asked for, as far as a privacy budget allows them."""
        return self.budget.epochs if self.budget else self.config.train.epochs

    def spent(self, epochs: int) -> dict[str, float]:
        """`epsilon` and `delta` after so many epochs; empty without privacy."""
        return {"epsilon": self.budget.epsilon(epochs), "delta": self.budget.delta} if self.budget else {}

    @property
    def has_net(self) -> bool:
        """Whether a net is trained, and no trees or clusters."""
        return not isinstance(self.config.model, Trees | KMeans | IsolationForest)

    @property
    def shape(self) -> NetShape:
        """That of the net."""
        model = self.start.model if self.start else self.config.model
        assert not isinstance(model, Trees | KMeans | IsolationForest)
        return NetShape.of(model, self.plan, self.edges)

    def net(self) -> nn.Module:
        """The net as training begins with it; seed torch first for equal weights."""
        from raymlp.train.transfer import let_learn

        net = build_net(self.shape)
        if self.start is not None:
            self.start.put_into(net.encoder)  # type: ignore[arg-type]
            let_learn(net)
        return net

    def train_rows(self, world_size: int) -> int:
        """Training rows of each worker: all have as many, so up to `world_size - 1` rows are left out."""
        return self.rows["train"] // world_size

    def valid_range(self, rank: int, world_size: int) -> tuple[int, int]:
        """First validation row of a worker, and the one after its last."""
        rows = self.rows["valid"]
        return rows * rank // world_size, rows * (rank + 1) // world_size


@dataclass
class Progress:
    """How far a run has come: saved with every checkpoint."""

    world_size: int
    """Workers of the group that made the last step."""
    pace: Pace
    epochs: int = 0
    batch: int = 0
    """Batches made of the epoch that is going on, by each worker; 0 between two epochs."""
    batches: int = 0
    """Batches of an epoch, by each worker."""
    seconds: float = 0.0
    """Training time, over all starts."""
    best_epoch: int = 0
    best_value: float | None = None
    """Of the metric that is watched."""
    risen_epoch: int = 0
    """The last epoch that was better by `min_delta` or more than the one before it that was."""
    risen_value: float | None = None
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)

    def add(self, metrics: dict[str, float], settings: Train, *, over: bool) -> bool:
        """Take in an epoch; true when it is the best so far. `over` says that a limit of the budget is reached.

        Raises TrainingError when the loss is no number.
        """
        self.epochs, self.batch = self.epochs + 1, 0
        loss, watched = metrics["valid_loss"], settings.stopping.metric
        if not np.isfinite([loss, metrics["train_loss"]]).all():
            raise TrainingError(
                f"the loss is {metrics['train_loss']:g} in training and {loss:g} in validation after epoch {self.epochs}; "
                "expected finite numbers. Lower train.learning_rate, or use features.scaling=quantile."
            )
        self.history.append(metrics)
        value = metrics["valid_loss"] if watched == "valid_loss" else metrics[f"valid_{watched}"]
        better = self.best_value is None or gain(watched, value, self.best_value) > 0
        if better:
            self.best_epoch, self.best_value = self.epochs, value
        if self.risen_value is None or gain(watched, value, self.risen_value) > settings.stopping.min_delta:
            self.risen_epoch, self.risen_value = self.epochs, value
        self.finished = over or self.epochs >= settings.epochs or self.epochs - self.risen_epoch >= settings.stopping.patience
        return better

    def regroup(self, world_size: int, epoch_steps: int, *, accumulate: int = 1) -> bool:
        """Go on with so many workers, each of which makes so many steps in an epoch; true when there were as many before.

        In the middle of an epoch the same share of it counts as done: with another number of workers some of its rows are then seen
        twice, and some not at all. An epoch of a single step begins anew.
        """
        batches = epoch_steps * accumulate
        same = (world_size, batches) == (self.world_size, self.batches)
        if self.batch and not same:
            self.batch = min(max(1, round(self.batch / self.batches * epoch_steps)), epoch_steps - 1) * accumulate
        self.world_size, self.batches = world_size, batches
        return same

    def fit_schedule(self, settings: Train, epoch_steps: int, left_s: float | None = None) -> None:
        """Let the schedule end with the steps that are still to come, as far as epochs, the budget and the seconds left tell.

        An epoch has `epoch_steps` steps; the time of one is that of all so far.
        """
        steps = (settings.epochs - self.epochs) * epoch_steps - self.batch * epoch_steps / self.batches
        if settings.budget.steps is not None:
            steps = min(steps, settings.budget.steps - self.pace.steps)
        if left_s is not None:
            steps = min(steps, left_s * self.pace.steps / max(self.seconds, 1e-6))
        self.pace.refit(steps)

    def save(self, folder: Path) -> None:
        (folder / "progress.json").write_text(to_json(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Self:
        plain = json.loads((folder / "progress.json").read_text())
        history = [{name: float("nan") if value is None else value for name, value in epoch.items()} for epoch in plain["history"]]
        return cls(**{**plain, "history": history, "pace": Pace(**plain["pace"])})


@dataclass(frozen=True)
class Outcome:
    """What training gives: the scorer of the best epoch, and on the validation split its `outputs`, float64 (N,) or
    (N, K), and the `answers` (N,), or whatever the task is judged by. `environment` is that of the worker (see
    `raymlp.runtime.environment`). A `calibration` that is given is not fitted again; `facts` are metrics to be kept with the others."""

    scorer: Scorer
    outputs: NDArray[np.float64]
    answers: NDArray[np.float64]
    progress: Progress
    environment: Mapping[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None
    facts: Mapping[str, float] = field(default_factory=dict)

    def scored(self, task: Task, class_weights: Sequence[float] = ()) -> tuple[Calibration, NDArray[np.float64], dict[str, float]]:
        """The calibration, the calibrated scores (N,) or (N, K), and the metrics on the validation split.

        `class_weights` (K,) are those of the job.
        `train_loss` and `valid_loss` are those of the best epoch; `epochs` counts all that were run.
        """
        calibration = self.calibration or Calibration.fit(task, self.outputs, self.answers, class_weights=class_weights)
        scores = calibration.apply(self.outputs)
        best = self.progress.history[self.progress.best_epoch - 1]
        losses = {"train_loss": best["train_loss"], "valid_loss": best["valid_loss"]}
        robust = {name.removeprefix("valid_"): value for name, value in best.items() if name.startswith("valid_robust_")}
        spent = {name: self.progress.history[-1][name] for name in SPENT if name in best}
        counts = {"epochs": float(self.progress.epochs), "best_epoch": float(self.progress.best_epoch)}
        return calibration, scores, {**score(task, self.answers, scores), **losses, **counts, **robust, **spent, **self.facts}
