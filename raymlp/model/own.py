"""A net of the user's own, named by its import path. It is imported only where that is trusted (`raymlp.core.trust`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raymlp.config.model import Own
from raymlp.core import trust
from raymlp.core.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from raymlp.model.nets import NetShape

ROWS = 2
"""Rows that a new net is tried on."""


def class_of(model: Own) -> type[nn.Module]:
    """Import the class that a config names; from now on it is trusted in this process. Raises ConfigError when there is none."""
    try:
        kind = trust.class_of(model.target, nn.Module, noun="net", expected="a subclass of torch.nn.Module")
    except ConfigError as error:
        raise ConfigError(f"model._target_: {error}") from error
    trust.name(model.target, trust.path_of(kind))
    return kind


def own_net(model: Own, shape: NetShape) -> nn.Module:
    """The user's net, made from the shape and its settings, and tried on rows of zeros.

    Raises BundleError where its module is not trusted, ConfigError where it cannot be made or gives outputs of another shape.
    """
    if not trust.is_trusted(model.target):
        raise BundleError(
            f"the bundle runs the net {model.target}, whose module is not trusted; expected one named in {trust.TRUSTED}. "
            f"If you trust its code, set {trust.TRUSTED}={model.target.partition('.')[0]}."
        )
    kind = class_of(model)
    try:
        with torch.device("cpu"):  # also where a net is only counted: it is run
            net = kind(shape, **model.settings)
        found = _tried(net, shape)
    except Exception as error:
        words = str(error).partition("\n")[0]
        raise ConfigError(f"model ({model.target}) cannot be made or run: {type(error).__name__}: {words}. Mend the net.") from error
    expected = (ROWS, shape.outputs)
    if not isinstance(found, Tensor) or tuple(found.shape) != expected:
        what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(f"model ({model.target}) gives {what} for {ROWS} rows; expected {expected}: rows, outputs. Mend its forward.")
    return net


def _tried(net: nn.Module, shape: NetShape) -> object:
    net.eval()
    with torch.no_grad(), torch.device("cpu"):
        found: object = net(_zeros(shape))
    net.train()
    return found


def _zeros(shape: NetShape) -> dict[str, Tensor]:
    tensors = {
        "numeric": torch.zeros(ROWS, shape.num_numeric),
        "categorical": torch.zeros(ROWS, len(shape.cardinalities), dtype=torch.int64),
    }
    if shape.texts:
        tensors["text"] = torch.zeros(ROWS, sum(length for _, length in shape.texts), dtype=torch.int64)
    if shape.image:
        tensors["image"] = torch.zeros(ROWS, 3, *shape.image, dtype=torch.uint8)
    return tensors
