"""When training ends: a limit of steps or time, and validation that no longer gets better."""

from __future__ import annotations

from pydantic import Field

from raymlp.config.section import Section


class Budget(Section):
    """Limits besides `train.epochs`; whichever is met first ends training, with a last validation and the best weights."""

    steps: int | None = Field(default=None, ge=1)
    """Most optimizer steps of each worker. The step size falls to its end within them."""

    minutes: float | None = Field(default=None, gt=0)
    """Most minutes of training, over all starts of the run: from the first step to the end of the last validation, start-up apart.
    The step size falls as fast as the time goes. A run with such a limit does not repeat exactly."""


class Stopping(Section):
    """When validation counts as no longer getting better."""

    metric: str = "valid_loss"
    """What is watched, for the best weights as well: `valid_loss`, or the problem's main metric by its name (`auc`)."""

    min_delta: float = Field(default=0.0, ge=0)
    """What counts as better, in the unit of the metric: less than this for `patience` epochs ends training."""

    patience: int = Field(default=3, ge=1)
    """Epochs without a better value before training stops."""
