"""What `raymlp doctor` says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, what was found and expected, and what to do unless it is `ok`."""

    what: str
    level: Level
    found: str
    expected: str
    do: str = ""
