"""Configs of studies, trainings that are made up, and trials as a study keeps them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymlp.config.schema import Config
from raymlp.config.tune import Tune
from raymlp.tune.search import Objective, Report
from raymlp.tune.trials import Trial
from tests.train.planted import config_of


def tuned(space: dict[str, Any], **settings: Any) -> Config:
    """The planted problem with a study of six trials, two at a time, of six epochs."""
    defaults: dict[str, Any] = {"epochs": 6, "max_concurrent": 2}
    if settings.get("searcher", {}).get("kind") != "grid":
        defaults["num_samples"] = 6
    return config_of().model_copy(update={"tune": Tune(space=space, **defaults | settings)})


def bowl(refused: int = 0, deaths: Mapping[float, int] | None = None, marks: str = "", pause_s: float = 0.0) -> Objective:
    """A made-up training run whose loss falls with the epochs and is lowest for a learning rate of .01 and no dropout.

    It refuses a batch size, and its process is killed in the second epoch so many times for a learning rate; files in the folder
    `marks` count. Made inside a function, so that it travels to the trials by value: they cannot import this file.
    """

    def run(config: Config, report: Report, resume: Path | None) -> dict[str, float]:
        import os
        import signal
        import time

        if config.train.batch_size == refused:
            raise ValueError("too small\nfor anything")
        floor = abs(math.log10(config.train.learning_rate) + 2) + config.model.dropout
        for epoch in range(config.train.epochs):
            due = (deaths or {}).get(config.train.learning_rate, 0) if epoch == 1 else 0
            mark = Path(marks) / str(config.train.learning_rate)
            if due > (before := len(mark.read_text()) if due and mark.exists() else 0):
                mark.write_text("x" * (before + 1))
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(pause_s)
            if report({"epoch": epoch, "valid_loss": floor + 1 / (epoch + 1), "valid_auc": 1 - floor / 9}, None):
                break
        auc = 1 - floor / 9
        return {"valid_loss": floor, "auc": auc, "interval_low": auc - 0.01, "interval_high": auc + 0.01, "latency_ms": 1 / (0.1 + floor)}

    return run


def ended(number: int, draw: dict[str, Any], loss: float | None, *, state: Any = "finished", **values: float) -> Trial:
    """A trial as a study keeps it."""
    known = {} if loss is None else {"valid_loss": loss}
    return Trial(number, draw, state, {**known, **values}, epochs=3, seconds=1.5, error=None if loss is not None else "ValueError: no")
