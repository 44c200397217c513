"""Learning from another model."""

from __future__ import annotations

from pydantic import Field

from raymlp.config.section import Section


class Distil(Section):
    """Knowledge distillation (Hinton et al. 2015): the net learns the answers and, beside them, what a teacher says of the same rows.

    The teacher is any bundle for the same target; it reads the raw columns by its own feature plan.
    """

    teacher: str = Field(min_length=1)
    """Folder of the teacher's bundle, or `NAME@ALIAS` or `NAME/VERSION` of the registry; the run records the bundle that it was."""

    temperature: float = Field(default=2.0, gt=0, le=100)
    """Both models' logits are divided by it: above 1 the teacher's small probabilities say more. Classes alone."""

    weight: float = Field(default=0.5, gt=0, le=1)
    """Share of the teacher in the training loss; 1 takes no notice of the answers. Validation is judged by the answers."""
