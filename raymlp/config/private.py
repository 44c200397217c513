"""Learning that keeps each training row private."""

from __future__ import annotations

from pydantic import Field

from raymlp.config.section import Section


class Private(Section):
    """Differentially private gradient descent (DP-SGD, Abadi et al. 2016), by Opacus (extra `privacy`).

    A batch is drawn by Poisson sampling, each row's gradient is clipped, and noise is added to their sum. Both are drawn from the
    operating system's randomness, not from `train.seed`, which is written in the run: such a run cannot be made again bit by bit.
    """

    max_epsilon: float = Field(gt=0)
    """Privacy budget: training stops before the epoch that would spend more. Smaller is more private; 1 is strict, 10 loose."""

    delta: float | None = Field(default=None, gt=0, lt=1)
    """Chance that the promise of epsilon does not hold; null is a tenth of one over the number of training rows."""

    noise: float | None = Field(default=None, gt=0)
    """Deviation of the noise over `clip`; null is what spends `max_epsilon` in `train.epochs`."""

    clip: float = Field(default=1.0, gt=0)
    """Largest norm of one row's gradient, in the place of `train.gradient_clip`."""
