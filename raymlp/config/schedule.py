"""How the step size changes over a run. A step is one of the optimizer: `accumulate` batches on every worker."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raymlp.config.section import Section

WarmUp = Annotated[float, Field(ge=0, lt=1)]


class OneCycle(Section):
    """From a 25th of `train.learning_rate` up to it and down to nearly 0, both along a cosine (Smith and Topin 2018)."""

    kind: Literal["one_cycle"] = "one_cycle"

    warm_up: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the steps in which the step size rises."""


class Cosine(Section):
    """Down along half a cosine (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"

    warm_up: WarmUp = 0.05
    """Share of the steps in which the step size rises in a line."""

    end: float = Field(default=0.0, ge=0, le=1)
    """Share of `train.learning_rate` at the end."""


class Linear(Section):
    """Down in a line."""

    kind: Literal["linear"] = "linear"

    warm_up: WarmUp = 0.05
    """Share of the steps in which the step size rises in a line."""

    end: float = Field(default=0.0, ge=0, le=1)
    """Share of `train.learning_rate` at the end."""


class Constant(Section):
    """The same all along."""

    kind: Literal["constant"] = "constant"

    warm_up: WarmUp = 0.0
    """Share of the steps in which the step size rises in a line."""


class Plateau(Section):
    """Smaller whenever the validation loss has not fallen for a while."""

    kind: Literal["plateau"] = "plateau"

    warm_up: WarmUp = 0.0
    """Share of the steps in which the step size rises in a line."""

    factor: float = Field(default=0.3, gt=0, lt=1)
    """What the step size is multiplied by."""

    epochs: int = Field(default=2, ge=1)
    """Epochs without a lower validation loss before it is; expected below `train.stopping.patience`, which ends the run."""


Schedule = Annotated[OneCycle | Cosine | Linear | Constant | Plateau, Field(discriminator="kind")]
