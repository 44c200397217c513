"""The repeated blocks of a net: what is gathered, or computed again, at a time."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from raymlp.config.train import Train
from raymlp.core.errors import TrainingError


def blocks_of(net: nn.Module) -> list[nn.Module]:
    """The outermost blocks of a net: members of one class, with parts and parameters of their own, that a list holds."""
    found: list[nn.Module] = []
    for child in net.children():
        members = list(child.children())
        if isinstance(child, nn.ModuleList) and len({type(member) for member in members}) == 1 and _is_block(members[0]):
            found += members
        else:
            found += blocks_of(child)
    return found


def prepare(net: nn.Module, settings: Train) -> None:
    """Make the blocks of a net compute their activations again in the backward pass, and compile it, where the settings say so.

    Changes how the net runs, not its names. Raises TrainingError when there are no blocks for `train.activation_checkpointing`.
    """
    blocks = blocks_of(net)
    if settings.activation_checkpointing:
        if not blocks:
            raise TrainingError(
                f"train.activation_checkpointing is true, and {type(net).__name__} has no repeated blocks; expected some. "
                "Set train.activation_checkpointing=false."
            )
        for block in blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if settings.compile:
        net.compile()


def _is_block(module: nn.Module) -> bool:
    has_forward = type(module).forward is not nn.Module.forward
    return has_forward and any(True for _ in module.children()) and any(True for _ in module.parameters())
