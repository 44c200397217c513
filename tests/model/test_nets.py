"""Nets: what they give for known weights, and how they treat what the plan holds."""

from __future__ import annotations

import pytest
import torch

from raymlp.config.loader import load_config
from raymlp.config.model import Linear
from raymlp.core.errors import ConfigError
from raymlp.model.nets import NetShape, build_net


def test_the_linear_model_is_a_sum_of_weights() -> None:
    """By hand: 2 * 1 - 3 from numbers, 5 from the category, half of each word's weight, and the red of a white pixel."""
    shape = NetShape(model=Linear(), num_numeric=2, cardinalities=(3,), outputs=1, texts=((9, 4),), image=(1, 1))
    net = build_net(shape)
    weights = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    weights["head.weight"][0] = torch.tensor([1.0, -1, 7, 0, 0])
    weights["categories.0.weight"][2] = 5
    weights["texts.0.embedding.weight"][[4, 6], 0] = torch.tensor([8.0, 2])
    net.load_state_dict(weights)
    tensors = {
        "numeric": torch.tensor([[2.0, 3]]),
        "categorical": torch.tensor([[2]]),
        "text": torch.tensor([[4, 6, 0, 0]]),
        "image": torch.full((1, 3, 1, 1), 255, dtype=torch.uint8),
    }
    assert net(tensors).item() == 2 - 3 + 5 + (8 + 2) / 2 + 7


def test_a_model_is_chosen_by_its_kind() -> None:
    assert load_config("flights", ["model=linear"]).model == Linear()
    with pytest.raises(ConfigError, match=r"model\.kind is 'mpl'; expected one of 'mlp', 'linear'"):
        load_config("flights", ["model.kind=mpl"])
