"""The repeated blocks of a net: what is gathered, or computed again, at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from raymlp.config.train import Train
from raymlp.core.errors import ConfigError


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


def require_blocks(net: nn.Module) -> list[nn.Module]:
    """`blocks_of`. Raises ConfigError when there are none for `train.activation_checkpointing`."""
    blocks = blocks_of(net)
    if not blocks:
        raise ConfigError(
            f"train.activation_checkpointing is true, and {type(net).__name__} has no repeated blocks; expected some. "
            "Set train.activation_checkpointing=false."
        )
    return blocks


def prepare(net: nn.Module, settings: Train) -> None:
    """Make the blocks of a net compute their activations again in the backward pass, and compile it, where the settings say so.

    Changes how the net runs, neither its names nor what comes of it. Raises as `require_blocks`.
    """
    if settings.activation_checkpointing:
        for block in require_blocks(net):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=partial(_contexts, block))
    if settings.compile:
        net.compile()


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_as_they_are(block)


@contextmanager
def _statistics_as_they_are(block: nn.Module) -> Iterator[None]:
    """Batch normalisation counts its rows in the first pass, and not once more when they pass again."""
    layers = [layer for layer in block.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [(layer.momentum, None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone()) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum = momentum
            if layer.num_batches_tracked is not None and count is not None:
                layer.num_batches_tracked.copy_(count)


def _is_block(module: nn.Module) -> bool:
    has_forward = type(module).forward is not nn.Module.forward
    return has_forward and any(True for _ in module.children()) and any(True for _ in module.parameters())
