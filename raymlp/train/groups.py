"""Which parameters of a net are pulled towards 0, and which are left alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from raymlp.config.train import Train


def parameter_groups(net: nn.Module, settings: Train) -> list[dict[str, Any]]:
    """The parameters of a net that learn, as an optimizer takes them, each with its step size and weight decay.

    Weight decay keeps matrices and kernels small. It does nothing good to biases, normalisations and other vectors, nor to
    embeddings, whose rare rows it would wear down between two visits: these are in a group without. A parameter is part of an
    embedding when it lies in a module called so.
    """
    spared = {id(parameter) for module in net.modules() if _embeds(module) for parameter in module.parameters()}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in net.parameters():
        if parameter.requires_grad:
            (others if parameter.ndim < 2 or id(parameter) in spared else matrices).append(parameter)
    groups = [(matrices, settings.weight_decay), (others, 0.0)]
    return [{"params": part, "lr": settings.learning_rate, "weight_decay": decay} for part, decay in groups if part]


def _embeds(module: nn.Module) -> bool:
    return "embedding" in type(module).__name__.lower()
