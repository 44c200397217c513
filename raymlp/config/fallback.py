"""What the endpoint answers when no version can."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raymlp.config.section import Section


class Rule(Section):
    """The rule that evaluation compares models with: the training rows' positive rate, class shares, or mean."""

    kind: Literal["rule"] = "rule"


class Constant(Section):
    """A number of your own, for binary problems and regression."""

    kind: Literal["constant"]

    value: float = Field(allow_inf_nan=False)
    """The probability of the positive class, from 0 to 1, or the value."""


Fallback = Annotated[Rule | Constant, Field(discriminator="kind")]
