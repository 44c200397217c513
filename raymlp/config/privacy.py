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

    quasi_identifiers: tuple[str, ...] = ()
    """Columns that together may point to a person (zip code, birth, sex): k-anonymity over them is counted after the rules
    above and reported in the manifest. Empty counts none."""

    min_k: int = Field(default=5, ge=2)
    """Rows that each group of equal quasi-identifiers should have at least."""

    min_k_action: Literal["warn", "stop"] = "warn"
    """What happens when a group has fewer rows than `min_k`."""

    retention_days: int | None = Field(default=None, ge=1)
    """Days that a row is kept: older ones, and rows without a time, stay out of new snapshots, which are made anew each day (UTC).
    `raymlp forget --expired` removes them from those there are. Null keeps all."""

    retention_column: str = ""
    """Timestamp column that tells the age of a row; needed with `retention_days`."""

    encrypt_snapshots: bool = False
    """Write the Parquet files and the profile of a snapshot encrypted, with the key in `RAYMLP_SNAPSHOT_KEY` (32 characters or
    more), which every process that reads them then needs. The manifest and the contract (types and ranges, no example) stay
    readable; two snapshots of the same rows have different digests."""

    @model_validator(mode="after")
    def _retention_has_a_column(self) -> Self:
        if self.retention_days is not None and not self.retention_column:
            raise ValueError("retention_days is set without retention_column; expected the timestamp column that tells a row's age")
        return self
