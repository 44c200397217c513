"""Transfer learning: which weights of an encoder learn, when and how fast; adapters, and their way back into plain weights.

Levels are those of `EncoderNet.levels`. Other nets learn as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from raymlp.config.encoder import ImageEncoder, Lora, TextEncoder
from raymlp.core.errors import ConfigError
from raymlp.model.nets import NetShape, build_net
from raymlp.model.pretrained import EncoderNet


def let_learn(net: nn.Module) -> None:
    """Give an encoder its adapters, and let learn what may. Weights that never do get no gradient, and so no optimizer state.

    Raises ConfigError when peft is not installed or finds no layer for an adapter.
    """
    if not isinstance(net, EncoderNet):
        return
    transfer = net.transfer
    if transfer.lora is not None:
        _adapters(net, transfer.lora)
    levels = net.levels()
    head = max(levels.values())
    lowest = 0 if transfer.train_blocks is None else head - transfer.train_blocks
    for name, weight in net.named_parameters():
        frozen = "lora_" not in name and levels[name] < head if transfer.lora is not None else levels[name] < lowest
        weight.requires_grad_(not frozen)


def plain_weights(shape: NetShape, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of training as the net of the bundle takes them: adapters are added in. Without adapters, the same."""
    transfer = shape.model.transfer if isinstance(shape.model, TextEncoder | ImageEncoder) else None
    if transfer is None or transfer.lora is None:
        return dict(weights)
    net = build_net(shape)
    assert isinstance(net, EncoderNet)
    adapted = _adapters(net, transfer.lora)
    net.load_state_dict(dict(weights))
    net.encoder = adapted.merge_and_unload()
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def rate_shares(net: nn.Module) -> dict[str, float]:
    """The step size of every weight by its name, as a share of the learning rate: the head takes all of it, the uppermost block
    `encoder_rate`, each block below `layer_decay` of the one above. 1 in a net without an encoder."""
    if not isinstance(net, EncoderNet):
        return {name: 1.0 for name, _ in net.named_parameters()}
    levels, transfer = net.levels(), net.transfer
    head = max(levels.values())
    return {
        name: transfer.encoder_rate * transfer.layer_decay ** (head - 1 - level) if level < head else 1.0 for name, level in levels.items()
    }


def _adapters(net: EncoderNet, settings: Lora) -> Any:
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError:
        raise ConfigError("model.transfer.lora is set, which needs peft. Run: pip install 'raymlp[text]'") from None
    wanted = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.modules) or "all-linear",
    )
    try:
        return LoraModel(net.encoder, wanted, "default")
    except ValueError as error:
        raise ConfigError(f"model.transfer.lora finds no layer to adapt ({error}). Set model.transfer.lora.modules.") from error


class Thaw(pl.Callback):
    """Keeps what does not learn as it is: without dropout and running means, and, under `gradual`, asleep until its epoch has come."""

    def __init__(self) -> None:
        self._asleep: list[nn.Parameter] = []
        self._later: dict[str, nn.Parameter] | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        net = pl_module.net
        if not isinstance(net, EncoderNet):
            return
        if self._later is None:
            self._later = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
        if net.transfer.gradual:
            levels = net.levels()
            awake = max(levels.values()) - trainer.current_epoch
            self._asleep = [weight for name, weight in self._later.items() if levels[name] < awake]
        asleep = set(self._asleep)
        learning = {weight for weight in self._later.values() if weight not in asleep}
        if isinstance(trainer.strategy, SingleDeviceStrategy):
            for weight in self._later.values():
                weight.requires_grad_(weight in learning)
        net.train()
        _settle(net, learning)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """DDP counts on the gradient of every weight that it has known from the start; those of sleepers are thrown away."""
        for weight in self._asleep:
            weight.grad = None


def _settle(module: nn.Module, learning: set[nn.Parameter]) -> None:
    """Put every part of which no weight learns to evaluation."""
    weights = list(module.parameters())
    if weights and not any(weight in learning for weight in weights):
        module.eval()
        return
    for part in module.children():
        _settle(part, learning)
