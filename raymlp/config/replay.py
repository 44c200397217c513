"""Live traffic for `raymlp run`: rows the model has not seen, sent to the endpoint in the order of time."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raymlp.config.section import Section


class Replay(Section):
    """What `raymlp run` plays after the deploy."""

    rows_per_window: int = Field(default=3_000, ge=1)
    """Rows sent of each window: evenly spaced over it, in the order of time."""

    window: Literal["month", "week", "day"] = "month"
    """Length of a window for data split by time; other data is one window."""

    max_retrains: int = Field(default=1, ge=0)
    """Retrains that the replay carries out; later requests of the policy are only told."""

    connections: int = Field(default=16, ge=1)
    """Requests in flight at once."""

    drill: bool = False
    """End with a deliberately broken challenger (trained on shuffled labels), to see the rollback work."""
