"""How `raymlp find` looks for a learning rate and a batch size."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from raymlp.config.section import Section


class Finder(Section):
    """Bounds of the search. What is found is printed as an override: a run's own settings are always numbers."""

    lowest: float = Field(default=1e-6, gt=0)
    """Learning rate of the first step."""

    highest: float = Field(default=1.0, gt=0)
    """Learning rate of the last step, unless the loss runs away before."""

    steps: int = Field(default=200, ge=20)
    """Steps from the lowest to the highest learning rate, each the same factor larger."""

    memory_mb: int | None = Field(default=None, ge=1)
    """MiB that a worker on the CPU may take in all; null is four fifths of what is free, divided among the workers. A GPU says itself
    when it is full."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.highest <= self.lowest:
            raise ValueError(f"highest is {self.highest:g} and lowest {self.lowest:g}; expected highest above lowest")
        return self
