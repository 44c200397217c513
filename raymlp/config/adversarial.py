"""Learning to withstand small changes of the inputs that are chosen to mislead."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raymlp.config.section import Section


class Attack(Section):
    """What every attack has in common. Numbers and pixels are moved, categories and texts are not."""

    epsilon: float = Field(default=0.1, ge=0)
    """Largest change of a number, in the unit that the net sees (standard deviations where a column is standardised). Only columns that
    stay one number are moved: not parts of a date, numbers of a category, or whether a value was missing."""

    image_epsilon: float = Field(default=4.0, ge=0, le=255)
    """Largest change of a pixel, of 255."""

    immutable: tuple[str, ...] = ()
    """Columns that nobody can change, such as an age: they are not moved."""

    share: float = Field(default=0.5, gt=0, le=1)
    """Share of the moved rows in the training loss; 1 learns from them alone."""

    @model_validator(mode="after")
    def _moves_something(self) -> Self:
        if not self.epsilon and not self.image_epsilon:
            raise ValueError("epsilon and image_epsilon are both 0; expected one above 0")
        return self


class Fgsm(Attack):
    """One step along the sign of the loss's slope (Goodfellow et al. 2015): quick; twice the work of plain training."""

    kind: Literal["fgsm"] = "fgsm"


class Pgd(Attack):
    """Several smaller steps from a random start, each brought back within the bound (Madry et al. 2018): stronger."""

    kind: Literal["pgd"] = "pgd"

    steps: int = Field(default=7, ge=1, le=100)
    """Steps of the attack; each is one more pass through the net and back."""

    step_share: float = Field(default=0.25, gt=0, le=1)
    """Size of a step, as a share of epsilon."""


Adversarial = Annotated[Fgsm | Pgd, Field(discriminator="kind")]
