"""How traffic moves from champion to challenger: the plan of steps, and what a challenger is watched for.

Every guard has two bounds. Beyond the first (`tolerated`) a challenger is rolled back, once that is certain. It is promoted once it is
certain that it is within the second (`margin`), which is wider: nothing can be shown to be exactly as good as something else.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from raymlp.config.section import Section


class Errors(Section):
    """Answers with status 500 or above, beside the champion's in the same time."""

    tolerated: float = Field(default=0.001, ge=0, lt=1)
    """Error rate in [0, 1] up to which a challenger is not rolled back for failing more often than the champion."""

    margin: float = Field(default=0.5, gt=0)
    """Extra errors that need not be excluded before promotion, as a share of the champion's error rate."""

    acceptable: float = Field(default=0.01, gt=0, lt=1)
    """Error rate in [0, 1] that is good enough for promotion, whatever the champion's."""

    limit: float | None = Field(default=0.05, gt=0, lt=1)
    """Error rate in [0, 1] above which a challenger is rolled back, whatever the champion's; null sets none."""

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.acceptable < self.tolerated:
            raise ValueError(f"acceptable is {self.acceptable:g}; expected at least tolerated ({self.tolerated:g})")
        return self


class Latency(Section):
    """Time from request to answer in the replica, by quantiles."""

    quantiles: tuple[float, ...] = (0.5, 0.95)
    """Quantiles in (0, 1) that are compared."""

    tolerated: float = Field(default=0.1, ge=0)
    """How much slower a quantile may be, as a share of the champion's."""

    margin: float = Field(default=0.25, gt=0)
    """How much slower that need not be excluded before promotion, as a share of the champion's."""

    slack_ms: float = Field(default=1.0, ge=0)
    """Milliseconds slower that never count, however fast the champion is."""

    @model_validator(mode="after")
    def _within(self) -> Self:
        if not self.quantiles or not all(0 < quantile < 1 for quantile in self.quantiles):
            raise ValueError(f"quantiles are {list(self.quantiles)}; expected one or more numbers between 0 and 1")
        if self.margin < self.tolerated:
            raise ValueError(f"margin is {self.margin:g}; expected at least tolerated ({self.tolerated:g})")
        return self


class Distribution(Section):
    """Predictions beside the champion's: a challenger that gives other answers before anyone knows which are right."""

    max_gap: float | None = Field(default=0.25, gt=0, lt=1)
    """Largest share of answers, in (0, 1), that may have moved to another part of the champion's range (for numbers the
    Kolmogorov-Smirnov distance); null does not look."""

    on_shift: Literal["hold", "pause", "rollback"] = "hold"
    """`hold` keeps the weight until labels show that quality is no worse, `pause` waits for a person, `rollback` ends it."""


class Quality(Section):
    """Loss and, for binary problems, ranking, both versions scored on the same labelled rows."""

    required: bool = True
    """Whether labels must show that quality is no worse before promotion; false where none come."""

    tolerated: float = Field(default=0.0, ge=0)
    """Extra mean loss for which a challenger is not rolled back, as a share of the champion's mean loss."""

    margin: float = Field(default=0.01, gt=0)
    """Extra mean loss that need not be excluded before promotion, as a share of the champion's mean loss."""

    ranking_tolerated: float = Field(default=0.0, ge=0, le=1)
    """Binary: AUC that a challenger may be behind without being rolled back, in [0, 1]."""

    ranking_margin: float = Field(default=0.02, gt=0, le=1)
    """Binary: AUC behind that need not be excluded before promotion, in [0, 1]."""

    @model_validator(mode="after")
    def _within(self) -> Self:
        for prefix in ("", "ranking_"):
            tolerated, margin = getattr(self, f"{prefix}tolerated"), getattr(self, f"{prefix}margin")
            if margin < tolerated:
                raise ValueError(f"{prefix}margin is {margin:g}; expected at least {prefix}tolerated ({tolerated:g})")
        return self


class Business(Section):
    """A number that comes back for each prediction, on each version's own traffic. Higher is better."""

    column: str
    """Column of the labels' files that holds it."""

    tolerated: float = Field(default=0.0, ge=0)
    """Loss of the mean for which a challenger is not rolled back, as a share of the champion's mean."""

    margin: float = Field(default=0.02, gt=0)
    """Loss of the mean that need not be excluded before promotion, as a share of the champion's mean."""

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.margin < self.tolerated:
            raise ValueError(f"margin is {self.margin:g}; expected at least tolerated ({self.tolerated:g})")
        return self


class Rollout(Section):
    """Moving traffic from champion to challenger."""

    weights: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5, 1.0)
    """The challenger's shares of traffic, in (0, 1], one a step, ascending. A last share of 1 is a trial without the champion before
    the promotion; nothing but the challenger's own errors and its quality can be judged in it."""

    min_requests: int = Field(default=100, ge=1)
    """Requests the challenger must have answered in a step before the next one."""

    min_step_s: float = Field(default=60.0, ge=0)
    """Seconds a step takes at least."""

    max_requests: int = Field(default=200_000, ge=1)
    """Requests in total after which a rollout without a verdict ends with the champion."""

    max_s: float = Field(default=604_800.0, gt=0)
    """Seconds after which a rollout without a verdict ends with the champion."""

    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance of rolling back an equal challenger, over all guards and the whole rollout, however often it is looked at; and of
    promoting one that is beyond a margin."""

    ratio_alpha: float = Field(default=0.001, gt=0, lt=0.5)
    """Chance of pausing a rollout whose traffic is divided as it should be."""

    blind_s: float = Field(default=300.0, gt=0)
    """Seconds for which the evidence cannot be read or the endpoint not be reached, after which a rollout pauses."""

    follow_registry_s: float | None = Field(default=None, gt=0)
    """Seconds between two looks at the registry's aliases, which the endpoint then follows: `challenger` set to a version starts its
    rollout, taken away ends it, `champion` moved by hand has that version served. Null does not look; `raymlp deploy` sets it."""

    webhook: str | None = None
    """Address at which the tracking server reaches the endpoint, as `https://models.example.com`: `raymlp deploy` has MLflow tell it
    there of every alias that is moved, so that it need not wait for the next look. Needs `follow_registry_s` (which may then be long),
    a tracking server, and the same secret in RAYMLP_WEBHOOK_SECRET for this command and for the replicas."""

    errors: Errors = Errors()
    """Failed requests."""

    latency: Latency = Latency()
    """Slow requests."""

    distribution: Distribution = Distribution()
    """Other answers."""

    quality: Quality = Quality()
    """Worse answers."""

    business: Business | None = None
    """A business metric; null has none."""

    @model_validator(mode="after")
    def _followed(self) -> Self:
        if self.webhook is not None and self.follow_registry_s is None:
            raise ValueError("webhook is set and follow_registry_s is null; expected both: what a message misses, a look finds")
        if self.webhook is not None and not self.webhook.startswith(("https://", "http://")):
            raise ValueError(f"webhook is {self.webhook}; expected an address that begins with https://")
        return self

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        shares = self.weights
        if not shares or not all(0 < share <= 1 for share in shares) or any(a >= b for a, b in pairwise(shares)):
            raise ValueError(f"weights are {list(shares)}; expected shares above 0 and up to 1, each larger than the one before")
        if shares[0] == 1:
            raise ValueError("weights begin with 1, which compares nothing; expected a first share below 1, as 0.01")
        return self
