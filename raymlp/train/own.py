"""A LightningModule of the user's own: its loss and its optimizer, in our loop.

Legend: B rows, O outputs.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.core.hooks import ModelHooks
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from raymlp.config.train import Train
from raymlp.core.errors import ConfigError, TrainingError
from raymlp.model.decoder import DecoderNet
from raymlp.train.batches import Batch
from raymlp.train.module import LanguageModule, TableModule

UNSEEN = {
    "training_step": ("loss", "label_smoothing", "class_weights", "mix", "augment", "distil", "adversarial", "private"),
    "configure_optimizers": ("optimizer", "schedule", "private"),
}
"""Settings of `train` that do nothing where a net has the hook."""
FOREIGN = (
    *(name for name in vars(ModelHooks) if name.startswith("on_") and not any(word in name for word in ("validation", "test", "predict"))),
    "backward", "configure_gradient_clipping", "configure_model", "lr_scheduler_step", "on_load_checkpoint", "on_save_checkpoint",
    "optimizer_step", "optimizer_zero_grad", "train_dataloader", "transfer_batch_to_device",
)  # fmt: skip
"""Hooks that would change training, and are not called."""


def check(net: nn.Module, settings: Train) -> None:
    """`refuse_hooks`. Raises ConfigError for a LightningModule that steps its optimizers itself, too."""
    refuse_hooks(type(net), settings)
    if isinstance(net, pl.LightningModule) and not net.automatic_optimization:
        raise ConfigError(
            f"model ({type(net).__qualname__}) steps its optimizers itself; expected automatic_optimization to be left on. Mend the net."
        )


def refuse_hooks(kind: type[nn.Module], settings: Train) -> None:
    """Raise ConfigError when a LightningModule has a hook that would not be called, or one that leaves a setting without effect."""
    if not issubclass(kind, pl.LightningModule):
        return
    where, plain = f"model ({kind.__qualname__})", Train()
    for hook in FOREIGN:
        if _overrides(kind, hook):
            raise ConfigError(f"{where} has {hook}, which would not be called; expected no hooks but {' and '.join(UNSEEN)}. Remove it.")
    for hook, names in UNSEEN.items():
        for name in names if _overrides(kind, hook) else ():
            if getattr(settings, name) != getattr(plain, name):
                raise ConfigError(
                    f"{where} has a {hook} of its own, where train.{name} does nothing; expected the default. "
                    f"Remove the setting, or the {hook}."
                )


def _overrides(kind: type[nn.Module], hook: str) -> bool:
    return getattr(kind, hook) is not getattr(pl.LightningModule, hook)


def module_for(net: nn.Module) -> type[TableModule]:
    """The module that trains a net: a LightningModule brings what it overrides, any other net gets our loss and optimizer."""
    if isinstance(net, DecoderNet):
        return LanguageModule
    return OwnModule if isinstance(net, pl.LightningModule) else TableModule


class OwnModule(TableModule):
    """Validation, best epoch, early stop and checkpoints are ours; `training_step` and `configure_optimizers` the net's, where it has them.

    Lightning gives a nested module its trainer, so `self.current_epoch` and the like work; what it
    logs is reported with each epoch, as rank 0 has it. `check` refuses other hooks.
    """

    def training_step(self, batch: Batch, index: int) -> Tensor:
        net: Any = self.net
        if not is_overridden("training_step", net):
            return super().training_step(batch, index)
        net._current_fx_name = "training_step"  # what self.log asks for
        found = net.training_step(batch, index)
        net._current_fx_name = None
        loss = found.get("loss") if isinstance(found, dict) else found
        if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad):
            raise TrainingError(
                f"training_step of {type(net).__qualname__} gives {type(loss).__name__}; expected the loss of the step as a tensor with "
                "one number, or a dict with it under 'loss'. Manual optimization is not supported. Mend the net."
            )
        self.train_sums.add(loss * len(batch), len(batch))
        return loss

    def logged(self, trainer: pl.Trainer) -> dict[str, float]:
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if is_overridden("configure_optimizers", self.net):
            pl.LightningModule.lr_scheduler_step(self, scheduler, metric)
        else:
            super().lr_scheduler_step(scheduler, metric)

    def configure_optimizers(self) -> Any:
        net: Any = self.net
        return net.configure_optimizers() if is_overridden("configure_optimizers", net) else super().configure_optimizers()
