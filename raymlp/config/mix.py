"""Whether training images are mixed in pairs, and their answers with them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raymlp.config.section import Section


class NoMix(Section):
    """Images as they are."""

    kind: Literal["none"] = "none"


class Mixup(Section):
    """Each image is blended with another of its batch, and the loss takes both answers in the same shares (Zhang et al. 2018)."""

    kind: Literal["mixup"] = "mixup"

    alpha: float = Field(default=0.2, gt=0)
    """The share of a batch's blend is drawn from Beta(alpha, alpha): small values leave most images nearly alone."""


class Cutmix(Section):
    """A rectangle of each image comes from another of its batch, and the loss takes both answers by area (Yun et al. 2019)."""

    kind: Literal["cutmix"] = "cutmix"

    alpha: float = Field(default=1.0, gt=0)
    """The area left alone is drawn from Beta(alpha, alpha)."""


Mix = Annotated[NoMix | Mixup | Cutmix, Field(discriminator="kind")]
