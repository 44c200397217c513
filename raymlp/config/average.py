"""Whether the weights of a run are averaged over its steps: the average is what is validated and kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raymlp.config.section import Section


class NoAverage(Section):
    """The weights as they are."""

    kind: Literal["none"] = "none"


class Ema(Section):
    """Exponential moving average: after each step the average moves a little towards the weights (Polyak and Juditsky 1992)."""

    kind: Literal["ema"] = "ema"

    decay: float = Field(default=0.999, gt=0, lt=1)
    """Share of the average that stays at each step; early on less, (1 + steps) / (10 + steps), so that the fresh weights are soon gone."""


class Swa(Section):
    """Stochastic weight averaging: the mean of the weights at the ends of the last epochs (Izmailov et al. 2018)."""

    kind: Literal["swa"] = "swa"

    start: float = Field(default=0.75, ge=0, lt=1)
    """Share of `train.epochs` after which averaging begins; weights are taken as they are until then."""

    rate: float = Field(default=0.5, gt=0, le=1)
    """Share of `train.learning_rate` that is held from there on, whatever the schedule says: the weights must keep moving."""


Average = Annotated[NoAverage | Ema | Swa, Field(discriminator="kind")]
