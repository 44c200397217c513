"""The optimizer that the settings name."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from raymlp.config.optimizer import AdamW, Sgd
from raymlp.config.train import Train


def optimizer_of(groups: list[dict[str, Any]], settings: Train, *, fused: bool) -> Optimizer:
    """The optimizer over parameter groups; `fused` takes the kernel that does a step in one pass."""
    kind = settings.optimizer
    if isinstance(kind, Sgd):
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=kind.momentum, nesterov=kind.nesterov, fused=fused or None)
    method = torch.optim.AdamW if isinstance(kind, AdamW) else torch.optim.Adam
    return method(groups, lr=settings.learning_rate, betas=kind.betas, fused=fused or None)
