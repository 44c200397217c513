"""What happens to personal data before a row reaches any file. The key is never here: it comes from `RAYMLP_PRIVACY_KEY`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from raymlp.config.section import Section


class Keep(Section):
    """Leave the column as it is: a person has looked at it, and the scan for personal data says no more about it."""

    kind: Literal["keep"] = "keep"


class Drop(Section):
    """Leave the column out."""

    kind: Literal["drop"] = "drop"


class Mask(Section):
    """Put `*` in place of characters; the length of the text stays."""

    kind: Literal["mask"] = "mask"
    keep_last: int = Field(default=4, ge=0)
    """Characters that stay at the end; never more than half of a value."""


class Hash(Section):
    """A keyed HMAC-SHA256: equal values stay equal, and nobody can turn one back."""

    kind: Literal["hash"] = "hash"
    length: int = Field(default=32, ge=16, le=64)
    """Hexadecimal digits that are kept of 64; 32 make a collision unlikely beyond any number of people."""


class Pseudonymise(Section):
    """AES-SIV: equal values stay equal, and the holder of the key can turn one back."""

    kind: Literal["pseudonymise"] = "pseudonymise"


class Generalise(Section):
    """Say less: a range for a number, a period for a moment, a beginning for a text. Set exactly one of the three."""

    kind: Literal["generalise"] = "generalise"
    width: float | None = Field(default=None, gt=0)
    """Width of the ranges of a number; a value becomes the lower end of its range."""
    to: Literal["year", "quarter", "month", "day"] | None = None
    """Period of a timestamp; a value becomes the period's first moment, in UTC."""
    first: int | None = Field(default=None, ge=1)
    """Characters that stay at the beginning of a text."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in ("width", "to", "first") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"generalise has {' and '.join(given) or 'nothing'}; expected exactly one of width, to, first")
        return self


def _spelled_out(value: Any) -> Any:
    """`email: drop` is short for `email: {kind: drop}`."""
    return {"kind": value} if isinstance(value, str) else value


Rule = Annotated[Keep | Drop | Mask | Hash | Pseudonymise | Generalise, Field(discriminator="kind"), BeforeValidator(_spelled_out)]


class Privacy(Section):
    """Personal data, at the door."""

    columns: dict[str, Rule] = {}
    """Column to rule: keep, drop, mask, hash, pseudonymise or generalise, in short or with settings
    (`phone: {kind: mask, keep_last: 2}`). The bundle carries the rules, so that the endpoint does the same to a request."""
