"""How settings are searched."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raymlp.config.section import Section


class Choice(Section):
    """One of several values."""

    kind: Literal["choice"] = "choice"
    values: tuple[float | int | str | bool | tuple[int, ...], ...] = Field(min_length=1)
    """Values to draw from."""


class Uniform(Section):
    """A number between two bounds, every one as likely."""

    kind: Literal["uniform"] = "uniform"
    low: float
    """Smallest value."""
    high: float
    """Largest value."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g}; expected less than high ({self.high:g})")
        return self


class LogUniform(Uniform):
    """A positive number between two bounds, every order of magnitude as likely."""

    kind: Literal["loguniform"] = "loguniform"  # type: ignore[assignment]
    low: float = Field(gt=0)


class Integer(Uniform):
    """A whole number between two bounds, both included."""

    kind: Literal["integer"] = "integer"  # type: ignore[assignment]
    low: int
    high: int


Domain = Annotated[Choice | Uniform | LogUniform | Integer, Field(discriminator="kind")]


class Tune(Section):
    """Random search with early stopping of weak trials (ASHA, Li et al. 2020)."""

    space: dict[str, Domain] = Field(min_length=1)
    """Setting to domain, by full key: `train.learning_rate`, `model.hidden`."""

    num_samples: int = Field(default=8, ge=1)
    """Trials."""

    max_concurrent: int = Field(default=2, ge=1)
    """Trials at the same time; each takes one CPU."""

    scheduler: Literal["asha", "none"] = "asha"
    """`asha` stops trials that fall behind; `none` lets every trial finish."""

    grace_epochs: int = Field(default=2, ge=1)
    """Epochs before a trial may be stopped."""

    epochs: int = Field(default=10, ge=1)
    """Most epochs of a trial."""

    seed: int = 0
    """Seed of the draws."""
