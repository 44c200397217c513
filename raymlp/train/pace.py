"""How far a run has come along its schedule, when the number of steps that it will make is known and when it is not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Pace:
    """A position between 0 and `total`, the steps of the schedule as it was planned at the first start.

    Each step moves it by `rate`: 1 in a run that makes the steps it was planned for; more or less when time is the limit, or when
    another number of workers takes another number of steps for the same rows. The schedule always ends at `total`.
    """

    total: float
    position: float = 0.0
    rate: float = 1.0
    steps: int = 0
    """Steps made."""

    @property
    def ahead(self) -> float:
        """The position after the step that is being made."""
        return min(self.position + self.rate, self.total)

    def step(self) -> None:
        self.position = self.ahead
        self.steps += 1

    def refit(self, steps_left: float) -> None:
        """Reach the end in so many steps from here."""
        self.rate = (self.total - self.position) / max(1.0, steps_left)
