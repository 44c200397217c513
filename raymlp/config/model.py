"""Which model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_serializer, model_validator

from raymlp.config.encoder import ImageEncoder, TextEncoder
from raymlp.config.section import ImportPath, Section
from raymlp.config.trees import LightGBM, XGBoost
from raymlp.config.unsupervised import IsolationForest, KMeans
from raymlp.core.records import WITH_TARGET, Task

Width = Annotated[int, Field(ge=1)]


class PlainNumbers(Section):
    """A number goes in as the feature plan scaled it."""

    kind: Literal["none"] = "none"


class LinearNumbers(Section):
    """A linear layer for each number, with ReLU where the net adds no attention of its own (Gorishniy et al. 2021)."""

    kind: Literal["linear"] = "linear"

    width: Width | None = None
    """Numbers that stand for one; null is 32, and the width of a token in ft_transformer."""


class PiecewiseLinear(Section):
    """Linear in each of several bins (Gorishniy et al. 2022), on top of a linear layer, as TabM's authors have it (version B)."""

    kind: Literal["piecewise_linear"] = "piecewise_linear"

    bins: int = Field(default=48, ge=2, le=512)
    """Most bins of a number, with equal shares of the training rows by the profile; a value that many rows share makes fewer."""
    width: Width | None = None
    """Numbers that stand for one; null is 16, and the width of a token in ft_transformer."""


class Periodic(Section):
    """Sines and cosines of learned frequencies, then a linear layer and ReLU (Gorishniy et al. 2022)."""

    kind: Literal["periodic"] = "periodic"

    frequencies: int = Field(default=48, ge=1)
    """Frequencies of each number."""
    deviation: float = Field(default=0.01, gt=0)
    """Standard deviation of fresh frequencies, in periods a unit of the scaled number: .01 to 100; worth a search."""
    width: Width | None = None
    """Numbers that stand for one; null is 24, and the width of a token in ft_transformer."""


Numbers = Annotated[PlainNumbers | LinearNumbers | PiecewiseLinear | Periodic, Field(discriminator="kind")]
Tokens = Annotated[LinearNumbers | PiecewiseLinear | Periodic, Field(discriminator="kind")]


class Encoders(Section):
    """What nets of tables do with a text and an image."""

    text_dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of a text's numbers switched off at random in training: words are soon learned by heart."""

    image_channels: tuple[int, ...] = Field(default=(16, 32, 64), min_length=1)
    """Channels of each convolution over the image; each halves height and width."""


class SideBySide(Encoders):
    """A row as one long vector: its numbers, category embeddings, the mean embedding of texts, and a small convolutional encoder."""

    numbers: Numbers = PlainNumbers()
    """How the plan's numbers go in. Its 0/1, cyclic and target-encoded outputs, bins and steps of your own go in as they are."""

    max_embedding: int = Field(default=32, ge=1)
    """Widest category embedding; the width is 1.6 * categories ** .56, up to this."""

    text_embedding: int = Field(default=64, ge=1)
    """Width of a text: the mean of the embeddings of its ids."""


class Mlp(SideBySide):
    """Multilayer perceptron."""

    kind: Literal["mlp"] = "mlp"

    hidden: tuple[int, ...] = Field(default=(256, 128), min_length=1)
    """Units of each hidden layer."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of hidden units switched off at random in training."""


class Linear(Section):
    """Logistic, softmax or linear regression over numbers, one-hot categories, the words of texts, and pixels."""

    kind: Literal["linear"] = "linear"


class Resnet(SideBySide):
    """Residual blocks of batch normalisation and two linear layers (Gorishniy et al. 2021). Needs raymlp[tabular]."""

    kind: Literal["resnet"] = "resnet"

    blocks: int = Field(default=2, ge=1)
    """Residual blocks."""

    width: int = Field(default=192, ge=1)
    """Units between the blocks."""

    hidden_factor: float = Field(default=2.0, gt=0)
    """Units inside a block, as a multiple of `width`."""

    hidden_dropout: float = Field(default=0.3, ge=0, lt=1)
    """Share of units inside a block switched off at random in training."""

    residual_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a block's output switched off at random in training."""


class FtTransformer(Encoders):
    """A transformer over a token for each number, category, text and image (Gorishniy et al. 2021). Needs raymlp[tabular]."""

    kind: Literal["ft_transformer"] = "ft_transformer"

    numbers: Tokens = LinearNumbers()
    """How the plan's numbers become tokens."""

    blocks: int = Field(default=3, ge=1)
    """Transformer blocks."""

    width: int = Field(default=192, ge=1)
    """Width of a token, a multiple of `heads`."""

    heads: int = Field(default=8, ge=1)
    """Attention heads."""

    attention_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of attention switched off at random in training."""

    hidden_factor: float = Field(default=4 / 3, gt=0)
    """Units inside a feed-forward layer, as a multiple of `width`."""

    hidden_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of those units switched off at random in training."""

    residual_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a layer's output switched off at random in training."""

    @model_validator(mode="after")
    def _tokens_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width} with {self.heads} heads; expected a multiple of them")
        if self.numbers.width is not None:
            raise ValueError(f"numbers.width is {self.numbers.width}; expected null, since a token has the net's width ({self.width})")
        return self


class Tabm(SideBySide):
    """Many perceptrons that share most of their weights, trained each by its own loss and averaged in prediction (Gorishniy et al.
    2024). Needs raymlp[tabular]."""

    kind: Literal["tabm"] = "tabm"

    numbers: Numbers = PiecewiseLinear()
    """How the plan's numbers go in, as for the other nets."""

    members: int = Field(default=32, ge=1)
    """Perceptrons, which give a prediction each."""

    sharing: Literal["tabm", "tabm-mini", "tabm-packed"] = "tabm"
    """What members have of their own: scales around every layer, around the first alone, or all weights."""

    blocks: int = Field(default=2, ge=1)
    """Hidden layers; the authors take 3 where numbers are not embedded."""

    width: int = Field(default=512, ge=1)
    """Units of each."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of them switched off at random in training."""

    max_onehot: int = Field(default=512, ge=0)
    """Most ids of a category that goes in one-hot, as the authors have it; one with more is embedded."""


class Decoder(Section):
    """A decoder-only language model: a transformer that tells of every piece of a text how likely it was after those before (Radford
    et al. 2019). For `problem.task=language`, and one text by the pieces of a tokenizer (features.text_encoding=subword)."""

    kind: Literal["decoder"] = "decoder"

    layers: int = Field(default=4, ge=1)
    """Transformer blocks."""

    width: int = Field(default=256, ge=1)
    """Width of a token, a multiple of `heads`."""

    heads: int = Field(default=4, ge=1)
    """Attention heads."""

    context: int = Field(default=256, ge=1)
    """Places that the net has embeddings for: the most that `features.text_length` may be."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of embeddings, of attention and of what each part adds that is switched off at random in training."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width} with {self.heads} heads; expected a multiple of them")
        return self


class Own(Section):
    """A net of your own, an `nn.Module` or a `LightningModule`; see docs/custom-nets.md. What stands beside `_target_` are its settings."""

    model_config = ConfigDict(extra="allow")

    kind: Literal["own"] = "own"

    target: ImportPath = Field(alias="_target_")
    """Import path of its class, as `mypackage.nets.Wide`."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the path."""
        return dict(self.model_extra or {})

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {"kind": self.kind, "_target_": self.target, **self.settings}


Net = Annotated[Mlp | Linear | Resnet | FtTransformer | Tabm | TextEncoder | ImageEncoder | Decoder | Own, Field(discriminator="kind")]
Model = Annotated[
    Mlp | Linear | Resnet | FtTransformer | Tabm | TextEncoder | ImageEncoder | Decoder | Own
    | XGBoost | LightGBM | KMeans | IsolationForest,
    Field(discriminator="kind"),
]  # fmt: skip
TASKS: Mapping[str, tuple[Task, ...]] = {"kmeans": ("clustering",), "isolation_forest": ("anomaly",), "decoder": ("language",)}
"""Tasks of the kinds of model that do not learn a target."""


def tasks_of(kind: str) -> tuple[Task, ...]:
    """The tasks that a kind of model is for."""
    return TASKS.get(kind, WITH_TARGET)
