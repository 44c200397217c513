"""How many replicas run: three presets, by what matters most."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raymlp.config.section import Section

Preset = Literal["latency", "cost", "steady"]


class Scaling(Section):
    """When replicas come and go. A replica is added for every `target_ongoing_requests` in progress, averaged over the last seconds."""

    min_replicas: int = Field(ge=0)
    """Replicas that always run; 0 lets the endpoint sleep, and the first request then waits until one has loaded."""

    max_replicas: int = Field(ge=1)
    """Replicas that may run at most."""

    target_ongoing_requests: float = Field(gt=0)
    """Requests in progress a replica that autoscaling aims for."""

    upscale_delay_s: float = Field(ge=0)
    """Seconds of load before a replica is added."""

    downscale_delay_s: float = Field(ge=0)
    """Seconds of calm before a replica is removed, the last one too."""

    window_s: float = Field(gt=0)
    """Seconds over which requests in progress are averaged; also how often they are looked at, ten times in it."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas is {self.min_replicas}; expected at most max_replicas ({self.max_replicas})")
        return self


PRESETS: dict[Preset, Scaling] = {
    "latency": Scaling(
        min_replicas=2, max_replicas=4, target_ongoing_requests=2, upscale_delay_s=0.5, downscale_delay_s=300, window_s=2
    ),
    "steady": Scaling(
        min_replicas=1, max_replicas=2, target_ongoing_requests=8, upscale_delay_s=3, downscale_delay_s=60, window_s=10
    ),
    "cost": Scaling(
        min_replicas=0, max_replicas=4, target_ongoing_requests=16, upscale_delay_s=3, downscale_delay_s=20, window_s=5
    ),
}  # fmt: skip
"""`latency`: a spare replica is always there, more come at the first sign of load and stay for long. `steady`: one replica, a second
one under lasting load. `cost`: none while nothing is asked, and each is filled before the next one comes."""
