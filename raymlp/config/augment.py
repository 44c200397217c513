"""What is done at random to the images of a training batch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raymlp.config.section import Section

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, lt=1)]


class Augment(Section):
    """Every image of every batch is drawn for anew; 0 leaves a change out. Needs raymlp[vision]."""

    flip: Probability = 0.0
    """Chance that left and right change places."""

    shift: Strength = 0.0
    """Farthest move to each side, as a share of height and width; the border is drawn out."""

    zoom: Strength = 0.0
    """Strongest change of size: .2 takes from .8 to 1.2 times; beyond 1 the image is cropped."""

    rotate: float = Field(default=0.0, ge=0, le=180)
    """Farthest turn to each side, in degrees."""

    colour: Strength = 0.0
    """Strongest change of brightness, contrast and saturation, each a factor of up to 1 plus or minus this."""

    erase: Probability = 0.0
    """Chance that a rectangle of 2 to 33 % of the image turns black (Zhong et al. 2020)."""

    @property
    def is_on(self) -> bool:
        return any(self.model_dump().values())
