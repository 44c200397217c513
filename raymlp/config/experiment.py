"""An experiment on live traffic: which versions, which metrics, how sure.

The arms are compared with the control, which is the champion of the endpoint. The primary metric says which arm is better; guard rails
only have to be no worse than their margins.
"""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raymlp.config.section import AsText, Section


class ErrorRate(Section):
    """Keys whose first request failed with status 500 or above; lower is better."""

    kind: Literal["errors"] = "errors"
    """Which metric this is."""

    margin: float = Field(default=0.01, gt=0, lt=1)
    """Difference of the error rates, in [0, 1], that does not matter."""

    @property
    def name(self) -> str:
        """How it is called in reports."""
        return "error rate"


class LatencyQuantile(Section):
    """A quantile of the time from request to answer in the replica, over each key's first answer; lower is better. Fixed weights only."""

    kind: Literal["latency"] = "latency"
    """Which metric this is."""

    quantile: float = Field(default=0.95, gt=0, lt=1)
    """The quantile, in (0, 1)."""

    margin: float = Field(default=0.2, gt=0)
    """Difference that does not matter, as a share of the control's quantile."""

    @property
    def name(self) -> str:
        """How it is called in reports."""
        return f"latency p{100 * self.quantile:g} (ms)"


class Quality(Section):
    """Answers beside the labels, every version scored on the same rows whichever of them served it; the first labelled row of each key."""

    kind: Literal["quality"] = "quality"
    """Which metric this is."""

    measure: Literal["loss", "accuracy", "auc"] = "loss"
    """`loss` is that of training (lower is better); `accuracy` the share of right labels, for classes; `auc` for binary problems."""

    margin: float = Field(default=0.005, gt=0)
    """Difference that does not matter, in the measure's own unit."""

    @property
    def name(self) -> str:
        """How it is called in reports."""
        return "AUC" if self.measure == "auc" else self.measure


class Business(Section):
    """A number that comes back for predictions, on each version's own keys; the first value of each key."""

    kind: Literal["business"] = "business"
    """Which metric this is."""

    column: str
    """Column of the labels' files that holds it."""

    higher_is_better: bool = True
    """Which direction is good."""

    margin: float = Field(default=0.02, gt=0)
    """Difference that does not matter, as a share of the control's mean."""

    @property
    def name(self) -> str:
        """How it is called in reports."""
        return self.column


Metric = Annotated[ErrorRate | LatencyQuantile | Quality | Business, Field(discriminator="kind")]


class Bandit(Section):
    """Thompson sampling: each look gives an arm the share of traffic that is its chance of being the best by the primary metric."""

    floor: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of traffic that every arm keeps, the control too; what keeps the intervals narrow and lets an arm come back."""

    look_s: float = Field(default=60.0, gt=0)
    """Seconds between two looks of `raymlp experiment watch`."""

    min_keys: int = Field(default=200, ge=100)
    """New keys with a value of the primary metric between two changes of the weights."""


class Experiment(Section):
    """An A/B or A/B/n test of registered versions beside the champion of a running endpoint."""

    versions: tuple[Annotated[str, AsText], ...] = ()
    """The arms beside the control: numbers of registered versions or aliases, as `[4, 5]` or `[challenger]`."""

    weights: tuple[float, ...] | None = None
    """Shares of traffic of the arms, in (0, 1), in the order of `versions`; the control has the rest. Null divides evenly."""

    primary: Metric = Quality()
    """The metric that decides."""

    guard_rails: tuple[Metric, ...] = (ErrorRate(), LatencyQuantile())
    """Metrics of which an arm must be shown to be no worse than by their margin before it is called better."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance that any interval of the experiment ever misses its true difference, over all arms, metrics and looks."""

    ratio_alpha: float = Field(default=0.001, gt=0, lt=0.5)
    """Chance of doubting traffic that is divided as it should be."""

    max_s: float = Field(default=1_209_600.0, gt=0)
    """Seconds it is planned for: what can be found by then is told at the start, and `raymlp experiment watch` ends there."""

    bandit: Bandit | None = None
    """Weights that follow the primary metric; null keeps them fixed."""

    @property
    def metrics(self) -> tuple[ErrorRate | LatencyQuantile | Quality | Business, ...]:
        """The primary metric and the guard rails."""
        return (self.primary, *self.guard_rails)

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of traffic at the start, the control's first."""
        arms = self.weights if self.weights is not None else (1 / (len(self.versions) + 1),) * len(self.versions)
        return (1 - sum(arms), *arms)

    def alpha_of(self, place: int) -> float:
        """Chance of a miss of one interval of the metric at this place: half of alpha is the primary metric's, half the guard rails', each
        divided evenly among metrics and arms."""
        half = self.alpha / 2 if self.guard_rails else self.alpha
        return half / max(len(self.versions), 1) / (1 if place == 0 else len(self.guard_rails))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.versions)) < len(self.versions):
            raise ValueError(f"versions are {list(self.versions)}; expected each once")
        if self.weights is not None:
            if len(self.weights) != len(self.versions):
                raise ValueError(f"weights are {list(self.weights)} for {len(self.versions)} versions; expected one a version")
            if not all(0 < share < 1 for share in self.weights) or sum(self.weights) >= 1:
                raise ValueError(f"weights are {list(self.weights)}; expected shares above 0 that leave something for the control")
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError(f"primary and guard_rails are {', '.join(names)}; expected each metric once")
        if self.bandit is not None:
            if any(metric.kind == "latency" for metric in chain([self.primary], self.guard_rails)):
                raise ValueError("a latency metric needs fixed weights; expected none beside bandit. Set guard_rails without it")
            if self.primary.kind == "quality" and self.primary.measure == "auc":
                raise ValueError("auc is no mean over keys, which a bandit needs; expected loss or accuracy as primary.measure")
            if self.bandit.floor * (len(self.versions) + 1) >= 1:
                raise ValueError(f"bandit.floor is {self.bandit.floor:g} for {len(self.versions) + 1} arms; expected less than 1 in total")
            if any(share < self.bandit.floor for share in self.shares) and self.versions:
                raise ValueError(f"weights begin below bandit.floor ({self.bandit.floor:g}); expected each arm above it")
        return self
