"""Which model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raymlp.config.encoder import ImageEncoder, TextEncoder
from raymlp.config.section import Section


class Mlp(Section):
    """Multilayer perceptron over numbers, category embeddings, the mean embedding of texts, and a small convolutional image encoder."""

    kind: Literal["mlp"] = "mlp"

    hidden: tuple[int, ...] = Field(default=(256, 128), min_length=1)
    """Units of each hidden layer."""

    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of hidden units switched off at random in training."""

    max_embedding: int = Field(default=32, ge=1)
    """Widest category embedding; the width is 1.6 * categories ** .56, up to this."""

    text_embedding: int = Field(default=64, ge=1)
    """Width of a text: the mean of the embeddings of its ids."""

    text_dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of a text's numbers switched off at random in training: words are soon learned by heart."""

    image_channels: tuple[int, ...] = Field(default=(16, 32, 64), min_length=1)
    """Channels of each convolution over the image; each halves height and width."""


class Linear(Section):
    """Logistic, softmax or linear regression over numbers, one-hot categories, the words of texts, and pixels."""

    kind: Literal["linear"] = "linear"


Model = Annotated[Mlp | Linear | TextEncoder | ImageEncoder, Field(discriminator="kind")]
