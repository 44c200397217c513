"""How a gradient becomes a step. The step size and the weight decay stand in `train`, since every optimizer has them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raymlp.config.section import Section

Share = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Section):
    """Adam with the weight decay beside the gradient (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"

    betas: tuple[Share, Share] = (0.9, 0.999)
    """Memory of the mean and of the square of the gradient."""


class Adam(Section):
    """Adam (Kingma and Ba 2015); the weight decay is part of the gradient."""

    kind: Literal["adam"] = "adam"

    betas: tuple[Share, Share] = (0.9, 0.999)
    """Memory of the mean and of the square of the gradient."""


class Sgd(Section):
    """Stochastic gradient descent."""

    kind: Literal["sgd"] = "sgd"

    momentum: Share = 0.9
    """Memory of the step before."""

    nesterov: bool = False
    """Look ahead along the momentum. Needs momentum above 0."""

    @model_validator(mode="after")
    def _looks_along_something(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is true and momentum is 0; expected momentum above 0. Set momentum=0.9")
        return self


Optimizer = Annotated[AdamW | Adam | Sgd, Field(discriminator="kind")]
