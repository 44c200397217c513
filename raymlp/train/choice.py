"""Which strategy `auto` stands for: a decision from facts, with its reason."""

from __future__ import annotations

from typing import NamedTuple

from raymlp.config.strategy import Ddp, Fsdp, Strategy
from raymlp.config.train import Train

STATE_BYTES = 16
"""Bytes a parameter while training: weight, gradient and Adam's two moments, 4 each (Rajbhandari et al. 2020, section 3.1)."""
STATE_SHARE = 0.5
"""Largest share of a GPU's memory that they may take; activations need the rest."""


class Choice(NamedTuple):
    """A strategy and why it was chosen."""

    strategy: Strategy
    reason: str


def choose(settings: Train, *, parameters: int = 0, gpu_bytes: int = 0) -> Choice:
    """The strategy for a net of so many parameters on GPUs of so many bytes; on the CPU, and alone, neither matters."""
    if settings.num_workers == 1:
        return Choice(Ddp(), "one worker has nothing to divide")
    if not settings.gpu:
        return Choice(Ddp(), "workers on CPUs share the memory of their host, so dividing the net would only cost time")
    state = parameters * STATE_BYTES
    sizes = f"weights, gradients and optimizer state of {parameters / 1e6:,.1f} million parameters take {state / 1e9:,.1f} GB"
    if state <= STATE_SHARE * gpu_bytes:
        return Choice(Ddp(), f"{sizes}, at most half of a GPU's {gpu_bytes / 1e9:,.1f} GB")
    return Choice(Fsdp(), f"{sizes}, more than half of a GPU's {gpu_bytes / 1e9:,.1f} GB, and fsdp divides them among the workers")


def foretold(settings: Train) -> str:
    """What will be chosen and why, as far as it can be known before the net is."""
    if settings.num_workers == 1 or not settings.gpu:
        choice = choose(settings)
        return f"{choice.strategy.kind}: {choice.reason}"
    return f"ddp where {STATE_BYTES} bytes a parameter are at most half of a GPU's memory, fsdp beyond; settled once the net is known"
