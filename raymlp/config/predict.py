"""Batch prediction: a model over all rows of a source, into Parquet files."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raymlp.config.section import Section
from raymlp.config.split import Names


class Predict(Section):
    """What `raymlp predict` reads from `data.source`, and what it writes where."""

    output: str = ""
    """Folder, or address in an object store (`s3://`, `gs://`, `abfs://`, `hdfs://`), of the Parquet files with the answers. It is seen
    when all of them are there. All nodes have to see the folder; a relative one begins where the command runs, which in a job that was
    submitted to a cluster is a copy that Ray removes. Credentials of a store come from the environment of every node."""

    keep: Names | Literal["all"] | None = None
    """Columns that are written beside the answers, after their privacy rules: names, `all` of the source, or null for those of
    `problem.id_columns` that the source has."""

    prefix: str = ""
    """Put before the names of the answers' columns (`score`, `label`, ...), where a kept column has such a name."""

    missing_as_null: bool = False
    """Take a column that the source lacks as null in every row, where the model's contract allows null, as the endpoint does with
    a field. Otherwise such a source is refused, since a renamed column looks the same."""

    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """Share of rows, in [0, 1], that may go to quarantine. Beyond it the job stops at its end, or after a million rows, and
    publishes nothing; what is finished stays, and a run with a larger share goes on from there."""

    overwrite: bool = False
    """Take the place of answers of another model or of other rows that are at `output`. The old ones are there until then."""

    file_rows: int = Field(default=131_072, ge=1)
    """Rows of an output file at most, and of what a worker is given at a time; wide rows make smaller files."""

    num_workers: int | None = Field(default=None, ge=1)
    """Processes that hold the model; null takes as many as the cluster's nodes have free CPUs (or GPUs) for, and fewer for a small source.
    A job begins with those that Ray finds room for, and ends when it has found none for a minute."""

    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs reserved for each of them, and threads of its net."""

    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs reserved for each of them: its net runs there. A fraction lets several share one, so that features are made while another
    one's net runs. Features are always made on CPUs."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        if self.gpus_per_worker > 1:
            raise ValueError(f"gpus_per_worker is {self.gpus_per_worker:g}; expected at most 1, since a model runs on one. Set num_workers")
        return self
