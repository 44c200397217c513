"""Where rows come from and what they may hold."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from raymlp.config.privacy import Privacy
from raymlp.config.quality import Checks
from raymlp.config.section import Section
from raymlp.config.sources import Source
from raymlp.config.split import Duration, Names, Split


class Join(Section):
    """A smaller table whose columns are added to each row (left join; keys must be unique there)."""

    source: Source
    """The table to look up in. It is held in memory once a worker."""

    keys: tuple[str, ...] = Field(min_length=1)
    """Key columns, by the same name in both tables."""

    prefix: str = ""
    """Put before the name of every column that is added."""

    columns: tuple[str, ...] = ()
    """Columns to add; empty adds all that are not keys."""


class ForwardFill(Section):
    """Missing values become the last known one of the same key, in the order of `problem.time_column`."""

    columns: Names = Field(min_length=1)
    """Columns to fill, each named in one rule alone. A contract of yours that forbids null there turns the row away before."""

    by: Names = ()
    """Columns that name a series, as [sensor]; values never go from one series to another. Empty takes all rows as one."""

    max_gap: Duration | None = None
    """Age beyond which a value is not carried on (`3d`, `12h`, or hours); null carries it on without end."""

    flag: bool = False
    """Add a boolean column NAME_filled for each column, true where a value was filled and else null, so that a request may
    leave it out."""


def flag_of(column: str) -> str:
    """Name of the column that says which values of a column were filled."""
    return f"{column}_filled"


class Data(Section):
    """Rows, from source to snapshot."""

    source: Source
    """The main table: one row a case."""

    fallback: Source | None = None
    """Table to read when `source` is not there or does not answer; the snapshot's warnings name both. Null stops the run."""

    joins: tuple[Join, ...] = ()
    """Tables whose columns are added, in order."""

    drop: tuple[str, ...] = ()
    """Columns to leave out."""

    forward_fill: tuple[ForwardFill, ...] = ()
    """Values to carry forward in time, rule by rule, before rows are divided. Only prepared rows have a past: a value missing in
    a request is imputed by the feature plan, as one that nothing came before."""

    split: Split
    """How rows are divided."""

    privacy: Privacy = Privacy()
    """What happens to personal data before a row reaches any file."""

    images: tuple[str, ...] = ()
    """Columns of encoded images (PNG, JPEG, GIF, BMP, WebP, TIFF): each is decoded once, and a row whose image is damaged goes to
    quarantine. The column `image` of a folder of images is always one."""

    max_image_pixels: int = Field(default=25_000_000, ge=1, le=89_478_485)
    """Most pixels of an image, here and at the endpoint; a larger one is refused before it is decoded."""

    contract: str | None = None
    """A contract file (YAML) to enforce; null infers one from the training split."""

    checks: Checks = Checks()
    """What is looked for in the rows before they may train."""

    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of rows that may go to quarantine before the run stops, in [0, 1]."""

    batch_rows: int = Field(default=65_536, ge=1)
    """Rows that are read, checked and written at a time; more is faster and takes more memory."""

    @model_validator(mode="after")
    def _filled_once(self) -> Self:
        names = [name for rule in self.forward_fill for name in rule.columns]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"forward_fill names the column '{twice}' twice; expected each column in one rule")
        return self

    @property
    def flags(self) -> tuple[str, ...]:
        """Columns that `forward_fill` adds."""
        return tuple(flag_of(name) for rule in self.forward_fill if rule.flag for name in rule.columns)

    @property
    def is_grown_by_new_parts(self) -> bool:
        """Whether new parts can be added to a snapshot without looking at the rows that are there. A filled value looks back."""
        return not self.forward_fill

    def fallen_back(self) -> Self:
        """These settings with the fallback as the source; it stays declared, so that the snapshot has a key of its own."""
        return self.model_copy(update={"source": self.fallback})

    @property
    def image_columns(self) -> tuple[str, ...]:
        """Columns that hold images."""
        return tuple(dict.fromkeys((*self.images, *(("image",) if self.source.kind == "images" else ()))))
