"""Nets. Legend: B rows, N numbers, C categories, L ids of all texts, H height, W width, O outputs, M members.

A net takes a dict of tensors: `numeric` float32 (B, N), `categorical` int64 (B, C) and, where the plan has them, `text` int64 (B, L) and
`image` uint8 (B, 3, H, W). It gives float32 (B, O): one logit (binary), K logits (multiclass), or one standardised value (regression).
One of several members gives (B, M, O) in training, where each has its own loss.
"""

from __future__ import annotations

import importlib.util
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import nn

from raymlp.config.encoder import ImageEncoder, TextEncoder
from raymlp.config.model import Decoder, FtTransformer, Linear, Mlp, Model, Net, Own, PiecewiseLinear, PlainNumbers, Resnet, Tabm
from raymlp.config.section import Section
from raymlp.core import trust
from raymlp.core.errors import ConfigError
from raymlp.core.records import Task
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.model.numbers import edges_of, embedded

PACKAGES = {"resnet": "rtdl_revisiting_models", "ft_transformer": "rtdl_revisiting_models", "tabm": "tabm"}
"""The authors' packages, by kind of model."""
PLAIN = PlainNumbers()
Edges = tuple[tuple[float, ...], ...]
"""Of the bins of each embedded number, rising."""

PIECES = 1 << 14
"""Pieces of text that a transformer looks at in one go where nothing is learned."""
LOGITS = 1 << 25
"""Numbers in which a decoder says what comes next, in one go where nothing is learned: 128 MiB."""


class NetShape(Section):
    """What a net is built from: kept in the bundle, so that weights always find their net."""

    model: Net
    """Kind and hyperparameters."""
    num_numeric: int = Field(ge=0)
    """N."""
    cardinalities: tuple[int, ...]
    """Ids of each category, C of them."""
    outputs: int = Field(ge=1)
    """O."""
    texts: tuple[tuple[int, int], ...] = ()
    """Number of different ids, and of ids a row, of each text column."""
    image: tuple[int, int] | None = None
    """H and W."""
    task: Task | None = None
    """What the outputs mean."""
    embedded: tuple[int, ...] = ()
    """Places of the numbers that `model.numbers` embeds."""
    edges: Edges = ()
    """Where the bins of each lie, for piecewise-linear embeddings."""

    @model_validator(mode="after")
    def _bins_are_there(self) -> Self:
        if isinstance(getattr(self.model, "numbers", None), PiecewiseLinear) and len(self.edges) != len(self.embedded):
            raise ValueError(f"edges has {len(self.edges)} rows; expected one for each of {len(self.embedded)} embedded numbers")
        return self

    @classmethod
    def of(cls, model: Net, plan: FeaturePlan, edges: Edges = ()) -> Self:
        """What a config's model becomes with a plan; `edges` are those of `number_edges`. A net of the user's own is trusted, since
        the config names it."""
        if isinstance(model, Own):
            trust.name(model.target)
        return cls(
            model=model,
            num_numeric=plan.num_numeric,
            cardinalities=plan.cardinalities,
            outputs=plan.target.outputs,
            texts=tuple((step.size, step.length) for step in plan.texts),
            image=(plan.image.height, plan.image.width) if plan.image else None,
            task=plan.target.task,
            embedded=() if isinstance(getattr(model, "numbers", PLAIN), PlainNumbers) else tuple(embedded(plan)),
            edges=edges,
        )

    def rows_at_once(self, most: int) -> int:
        """Rows, from 1 to `most`, that are looked at in one go: a transformer sees at most `PIECES` pieces of text, which it makes
        hundreds of numbers of, and a decoder as many as make `LOGITS` numbers."""
        if isinstance(self.model, Decoder):
            return max(1, min(most, LOGITS // sum(size * length for size, length in self.texts)))
        pieces = max((length for _, length in self.texts), default=0) if isinstance(self.model, TextEncoder) else 0
        return max(1, min(most, PIECES // pieces)) if pieces else most


def number_edges(model: Model, plan: FeaturePlan, profile: Profile) -> Edges:
    """Where the bins of each embedded number lie, by the profile of the training split; nothing for a model without bins."""
    numbers = getattr(model, "numbers", None)
    return edges_of(plan, profile, numbers.bins) if isinstance(numbers, PiecewiseLinear) else ()


def require(model: Model) -> None:
    """Raise ConfigError when what a config's model needs is not here: a package, or the class of a net of the user's own."""
    _require_packages(model)
    if isinstance(model, Own):
        from raymlp.model.own import class_of

        class_of(model)


def _require_packages(model: Model) -> None:
    asked: list[tuple[str, str, str]] = []
    if model.kind in PACKAGES:
        asked.append(("model.kind", model.kind, PACKAGES[model.kind]))
    numbers = getattr(model, "numbers", PLAIN)
    if not isinstance(numbers, PlainNumbers):
        asked.append(("model.numbers.kind", numbers.kind, "rtdl_num_embeddings"))
    for key, kind, package in asked:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{key} is {kind}, which needs the package {package}. Run: pip install 'raymlp[tabular]'.")


def build_net(shape: NetShape) -> nn.Module:
    """A freshly initialised net of the shape; seed torch first for equal weights.

    Raises ConfigError when a package is missing or a net of the user's own is not sound, BundleError when that is not trusted.
    """
    _require_packages(shape.model)
    match shape.model:
        case Mlp():
            from raymlp.model.mlp import MlpNet

            return MlpNet(shape.model, shape)
        case Linear():
            from raymlp.model.linear import LinearNet

            return LinearNet(shape)
        case Resnet():
            from raymlp.model.resnet import ResnetNet

            return ResnetNet(shape.model, shape)
        case FtTransformer():
            from raymlp.model.ft_transformer import FtTransformerNet

            return FtTransformerNet(shape.model, shape)
        case Tabm():
            from raymlp.model.tabm import TabmNet

            return TabmNet(shape.model, shape)
        case Decoder():
            from raymlp.model.decoder import DecoderNet

            return DecoderNet(shape.model, shape)
        case Own():
            from raymlp.model.own import own_net

            return own_net(shape.model, shape)
        case TextEncoder():
            from raymlp.model.pretrained import TextEncoderNet

            return TextEncoderNet(shape.model, shape)
        case ImageEncoder():
            from raymlp.model.pretrained import ImageEncoderNet

            return ImageEncoderNet(shape.model, shape)


def parameters_of(shape: NetShape) -> int:
    """How many parameters the net of a shape has; none of them is made."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_net(shape).parameters())
