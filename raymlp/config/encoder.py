"""Encoders of Hugging Face, pretrained or fresh, with a head of our own."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raymlp.config.section import Section

TEXT_TYPES = ("albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "t5", "xlm-roberta")
IMAGE_TYPES = ("efficientnet", "mobilenet_v1", "mobilenet_v2", "resnet", "vit")
Share = Annotated[float, Field(gt=0, le=1)]
Colour = tuple[float, float, float]


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021): the encoder stays as it is, and every linear layer of it learns the difference as a product
    of two thin matrices. They are added into the weights before the bundle is written."""

    rank: int = Field(default=8, ge=1, le=256)
    """Columns of the thin matrices."""

    alpha: float = Field(default=16, gt=0)
    """The product counts alpha / rank times."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs switched off at random in training."""

    modules: tuple[str, ...] = ()
    """Last part of the names of the layers that get one, as [query, value]; empty takes every linear layer."""


class Transfer(Section):
    """What of a pretrained encoder learns, when, and how fast. Its blocks are counted from the top, next to the head."""

    train_blocks: int | None = Field(default=None, ge=0)
    """Blocks that learn; the rest stays as it is, without optimizer state. Null is all of them and what lies below (embeddings, or the
    first convolution), 0 the head alone."""

    gradual: bool = False
    """Begin with the head alone and let one block more learn in each epoch, from the top (Howard and Ruder 2018)."""

    encoder_rate: Share = 1.0
    """Step size of the uppermost block, as a share of `train.learning_rate`, which the head takes."""

    layer_decay: Share = 1.0
    """Step size of a block, as a share of that of the block above (Howard and Ruder 2018)."""

    lora: Lora | None = None
    """Adapters in place of the encoder's own weights; null trains those."""

    @model_validator(mode="after")
    def _adapters_alone(self) -> Self:
        if self.lora is not None and (self.train_blocks is not None or self.gradual):
            raise ValueError("lora keeps the whole encoder as it is; expected train_blocks=null and gradual=false beside it")
        return self


class _Encoder(Section):
    """What both have in common."""

    types: ClassVar[tuple[str, ...]]

    source: str | None = None
    """Where the weights come from: a folder of this machine, or a name on the Hugging Face hub, `name@revision` for one version of it.
    Read once, on the driver; only safetensors, never code. Null draws the weights at random."""

    architecture: dict[str, Any] = {}
    """Settings of the encoder in the words of transformers, as {hidden_dropout_prob: 0.2}: without a source `model_type` and what differs
    from its defaults, with one what differs from the source."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Units of each layer between the joined vector of encoder, numbers and categories, and the answer; none is a linear head."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of that vector and of the hidden units switched off at random in training."""

    transfer: Transfer = Transfer()
    """What of the encoder learns, and how fast."""

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        kind = self.architecture.get("model_type")
        if kind is None and self.source is None:
            raise ValueError("neither source nor architecture.model_type is set; expected one of them, to know which encoder")
        if kind is not None and kind not in self.types:
            raise ValueError(f"architecture.model_type is {kind!r}; expected one of {', '.join(self.types)}")
        return self


class TextEncoder(_Encoder):
    """A transformer over texts (the BERT family, or the encoder of T5), its pooled vector joined by numbers and category embeddings."""

    types: ClassVar = TEXT_TYPES

    kind: Literal["text_encoder"] = "text_encoder"

    pooling: Literal["mean", "first"] = "mean"
    """One vector of all pieces of a text: their mean, or that of the first, where BERT has its mark for the whole text."""


class ImageEncoder(_Encoder):
    """A ResNet, EfficientNet, MobileNet or vision transformer, its pooled vector joined by numbers and category embeddings."""

    types: ClassVar = IMAGE_TYPES

    kind: Literal["image_encoder"] = "image_encoder"

    pixel_mean: Colour | None = None
    """Mean of red, green and blue in [0, 1] that is subtracted; null takes what the source was trained with, .5 without a source."""

    pixel_deviation: Colour | None = None
    """Deviation of each colour that pixels are divided by; null as for `pixel_mean`."""
