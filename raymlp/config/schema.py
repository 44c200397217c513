"""The whole config as one frozen object."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from raymlp.config.data import Data
from raymlp.config.evaluate import Evaluate
from raymlp.config.features import Features
from raymlp.config.jobs import Jobs
from raymlp.config.model import TASKS, Mlp, Model, tasks_of
from raymlp.config.monitor import Monitor
from raymlp.config.predict import Predict
from raymlp.config.problem import Problem
from raymlp.config.registry import Registry
from raymlp.config.replay import Replay
from raymlp.config.retrain import Retrain
from raymlp.config.runtime import Runtime
from raymlp.config.section import Section
from raymlp.config.serve import Serve
from raymlp.config.train import Train
from raymlp.config.tune import Tune
from raymlp.core.records import has_classes, needs_target


class Site(Section):
    """Where runs are recorded and results lie: the part of a config that is the machine's, whatever the run."""

    registry: Registry = Registry()
    """Where runs and versions are recorded."""
    runtime: Runtime = Runtime()
    """Where Ray runs and where results go."""

    @model_validator(mode="after")
    def _has_a_tracking_store(self) -> Self:
        require_tracking(self.registry, self.runtime)
        return self


def require_tracking(registry: Registry, runtime: Runtime) -> None:
    """Raise ValueError when nothing could hold runs and versions: a database file cannot lie in an object store."""
    if runtime.is_in_store and registry.tracking_uri is None:
        raise ValueError(
            f"runtime.storage is {runtime.storage}, which cannot hold the MLflow database; expected a tracking server beside it. "
            "Set registry.tracking_uri"
        )


class Config(Section):
    """Everything that can be set. Built by `load_config`; pass stages the section they need."""

    problem: Problem
    """What is predicted."""
    data: Data
    """Where rows come from."""
    features: Features = Features()
    """Which columns become tensors."""
    model: Model = Mlp()
    """Which model."""
    train: Train = Train()
    """How it is trained."""
    tune: Tune
    """How settings are searched."""
    evaluate: Evaluate = Evaluate()
    """How a model is judged."""
    registry: Registry = Registry()
    """Where runs and versions are recorded."""
    serve: Serve = Serve()
    """How the endpoint runs."""
    predict: Predict = Predict()
    """How a whole source is predicted."""
    monitor: Monitor = Monitor()
    """When live traffic counts as different."""
    retrain: Retrain = Retrain()
    """When a new model is worth training."""
    replay: Replay = Replay()
    """Live traffic for `raymlp run`."""
    runtime: Runtime = Runtime()
    """Where Ray runs and where results go."""
    jobs: Jobs = Jobs()
    """How verbs run as jobs on a cluster."""

    @model_validator(mode="after")
    def _has_a_tracking_store(self) -> Self:
        require_tracking(self.registry, self.runtime)
        return self

    @model_validator(mode="after")
    def _images_are_checked(self) -> Self:
        image, known = self.features.image, self.data.image_columns
        if image is not None and image not in known:
            raise ValueError(
                f"features.image is '{image}', which is not among the checked images ({', '.join(known) or 'none'}); "
                f"expected it there, so that damaged ones go to quarantine. Set data.images=[{image}]"
            )
        return self

    @model_validator(mode="after")
    def _watches_what_is_measured(self) -> Self:
        watched, known = self.train.stopping.metric, ("valid_loss", self.problem.main_metric)
        if watched not in known:
            raise ValueError(f"train.stopping.metric is '{watched}'; expected {' or '.join(known)}. Set it, or problem.metric")
        return self

    @model_validator(mode="after")
    def _model_has_the_task(self) -> Self:
        kind, task = self.model.kind, self.problem.task
        if task not in tasks_of(kind):
            suited = next((other for other, tasks in TASKS.items() if task in tasks), "mlp")
            raise ValueError(f"model.kind is {kind} with problem.task={task}; expected a model for it. Set model={suited}, or problem.task")
        return self

    @model_validator(mode="after")
    def _drill_has_answers(self) -> Self:
        if self.replay.drill and not needs_target(self.problem.task):
            raise ValueError(
                f"replay.drill shuffles answers, and problem.task={self.problem.task} has none; expected false. Set replay.drill=false"
            )
        return self

    @model_validator(mode="after")
    def _has_classes(self) -> Self:
        asked = {
            "train.class_weights": self.train.class_weights,
            "train.resample": self.train.resample,
            "train.loss.kind": self.train.loss.kind,
        }
        for key, value in asked.items():
            plain = "cross_entropy" if key == "train.loss.kind" else "none"
            if value != plain and not has_classes(self.problem.task):
                raise ValueError(
                    f"{key} is {value} with problem.task={self.problem.task}, which has no classes; expected {plain}. Set {key}={plain}"
                )
        return self
