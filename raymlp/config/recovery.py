"""What training survives: how often it is saved, and with how few workers it goes on."""

from __future__ import annotations

from pydantic import Field

from raymlp.config.section import Section


class Checkpoint(Section):
    """When the state of a run is saved; one checkpoint is kept, the last, and it holds the best weights too. It is uploaded while
    training goes on; one that is due before the last one is up is left out. Whatever is set, a run is saved when it ends, when it is
    told to stop, and when a node is about to be taken away."""

    every_epochs: int | None = Field(default=1, ge=1)
    """Epochs between two checkpoints; null saves none by epochs."""

    every_minutes: float | None = Field(default=None, gt=0)
    """Minutes between two checkpoints, in the middle of an epoch as well; null saves none by time."""


class Elastic(Section):
    """Go on with fewer workers when nodes are lost, and with more, up to `train.num_workers`, when some come: ddp alone.

    Each change starts from the last checkpoint with the rows divided anew, so the batch of all workers together grows and
    shrinks with them, and the run does not repeat exactly.
    """

    min_workers: int = Field(default=1, ge=1)
    """Fewest workers to train with."""

    look_every_s: float = Field(default=60.0, gt=0)
    """Seconds between two looks for nodes that have come."""
