"""FT-Transformer (Gorishniy et al. 2021), by its authors' package. Legend: B rows, T tokens, D width of a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raymlp.config.model import FtTransformer
from raymlp.model.encoders import ImageEncoder, TextMean, in_pieces
from raymlp.model.numbers import NumberEmbeddings

if TYPE_CHECKING:
    from raymlp.model.nets import NetShape

PIECE = 1_024
"""Rows that are scored at a time: attention takes B x heads x T x T numbers."""


class FtTransformerNet(nn.Module):
    """A token for each number, category, text and the image, and one that gathers the answer, through transformer blocks."""

    def __init__(self, model: FtTransformer, shape: NetShape) -> None:
        super().__init__()
        import rtdl_revisiting_models as authors

        width = model.width
        self.numbers = NumberEmbeddings(model.numbers, shape.num_numeric, shape.embedded, shape.edges, width=width, relu=False)
        self.others = authors.LinearEmbeddings(self.numbers.rest, width) if self.numbers.rest else None
        self.categories = authors.CategoricalEmbeddings(list(shape.cardinalities), width) if shape.cardinalities else None
        self.texts = nn.ModuleList(TextMean(size, width, model.text_dropout) for size, _ in shape.texts)
        self._lengths = [length for _, length in shape.texts]
        self.image = ImageEncoder(shape.image, model.image_channels) if shape.image else None
        self.picture = nn.Linear(self.image.width, width) if self.image else None
        self.gather = _token(1, width)
        self.text_tokens = _token(len(self.texts), width) if self.texts else None
        self.body = authors.FTTransformerBackbone(
            d_out=shape.outputs,
            n_blocks=model.blocks,
            d_block=width,
            attention_n_heads=model.heads,
            attention_dropout=model.attention_dropout,
            ffn_d_hidden=max(1, int(width * model.hidden_factor)),
            ffn_d_hidden_multiplier=None,
            ffn_dropout=model.hidden_dropout,
            residual_dropout=model.residual_dropout,
        )

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self._outputs(tensors) if self.training else in_pieces(self._outputs, tensors, PIECE)

    def _outputs(self, tensors: Mapping[str, Tensor]) -> Tensor:
        out: Tensor = self.body(torch.cat(self._tokens(tensors), dim=1))
        return out

    def _tokens(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Each (B, some of the T, D)."""
        numeric = tensors["numeric"].to(self.gather.dtype)
        embedded, others = self.numbers(numeric)
        tokens = [self.gather.expand(numeric.shape[0], 1, -1)]
        if embedded is not None:
            tokens.append(embedded)
        if self.others is not None:
            tokens.append(self.others(others))
        if self.categories is not None:
            tokens.append(self.categories(tensors["categorical"]))
        if self.text_tokens is not None:
            parts = torch.split(tensors["text"], self._lengths, dim=1)
            tokens.append(torch.stack([text(ids) for text, ids in zip(self.texts, parts, strict=True)], dim=1) + self.text_tokens)
        if self.image is not None and self.picture is not None:
            tokens.append(self.picture(self.image(tensors["image"]))[:, None])
        return tokens


def _token(count: int, width: int) -> nn.Parameter:
    """Fresh tokens, as the authors begin with."""
    return nn.Parameter(torch.empty(count, width).uniform_(-(width**-0.5), width**-0.5))
