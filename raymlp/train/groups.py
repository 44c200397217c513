"""Which parameters of a net are pulled towards 0, and which are left alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from raymlp.config.train import Train
from raymlp.train.transfer import rate_shares


def parameter_groups(net: nn.Module, settings: Train) -> list[dict[str, Any]]:
    """The parameters of a net that learn, as an optimizer takes them, each with its step size and weight decay.

    Weight decay keeps matrices and kernels small. It does nothing good to biases, normalisations and other vectors, nor to
    embeddings, whose rare rows it would wear down between two visits: these are in a group without. A parameter is part of an
    embedding when it lies in a module called so.
    """
    spared = {id(parameter) for module in net.modules() if _embeds(module) for parameter in module.parameters()}
    shares = rate_shares(net)
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim < 2 or id(parameter) in spared else settings.weight_decay
            found.setdefault((shares[name], decay), []).append(parameter)
    return [
        {"params": part, "lr": settings.learning_rate * share, "weight_decay": decay}
        for (share, decay), part in sorted(found.items(), key=lambda item: item[0], reverse=True)
    ]


def _embeds(module: nn.Module) -> bool:
    return "embedding" in type(module).__name__.lower()
