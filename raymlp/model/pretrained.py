"""Nets around an encoder of Hugging Face. Legend: B rows, L ids of a text, W width, H height and V width of an image, O outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raymlp.config.encoder import ImageEncoder, TextEncoder, Transfer
from raymlp.features.ids import FIRST
from raymlp.features.text import PADDING
from raymlp.model.huggingface import blocks_of, encoder_of

if TYPE_CHECKING:
    from raymlp.model.nets import NetShape

WIDEST = 32
"""Widest category embedding; the width is 1.6 * categories ** .56, up to this."""
TOGETHER = 8
"""A batch of texts is cut to its longest one, rounded up to this many ids."""


class Head(nn.Module):
    """The encoder's vectors, numbers and category embeddings side by side, through linear, normalisation, GELU and dropout layers."""

    def __init__(self, width: int, model: TextEncoder | ImageEncoder, shape: NetShape) -> None:
        super().__init__()
        widths = [min(WIDEST, round(1.6 * size**0.56)) for size in shape.cardinalities]
        self.embeddings = nn.ModuleList(nn.Embedding(size, each) for size, each in zip(shape.cardinalities, widths, strict=True))
        width += shape.num_numeric + sum(widths)
        layers: list[nn.Module] = [nn.Dropout(model.dropout)]
        for hidden in model.hidden:
            layers += [nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(model.dropout)]
            width = hidden
        self.body = nn.Sequential(*layers)
        self.answer = nn.Linear(width, shape.outputs)

    def forward(self, vectors: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """Float32 (B, O) from vectors (B, W) of the encoder and the tensors of the plan."""
        parts = [*vectors, tensors["numeric"].to(self.answer.weight.dtype)]
        parts += [embedding(tensors["categorical"][:, i]) for i, embedding in enumerate(self.embeddings)]
        out: Tensor = self.answer(self.body(torch.cat(parts, dim=1)))
        return out


class EncoderNet(nn.Module):
    """An encoder and a head, and the order in which the encoder's weights come."""

    encoder: nn.Module
    blocks: str
    """Path of the list of blocks inside the encoder."""
    transfer: Transfer
    """How the encoder learns."""

    def levels(self) -> dict[str, int]:
        """Level of every weight by its name: 0 below the blocks, 1 and up a block (and what follows the last), then one more, the head."""
        prefix = f"encoder.{self.blocks}."
        depth = max(int(name.removeprefix(prefix).split(".")[0]) for name, _ in self.named_parameters() if name.startswith(prefix)) + 1
        found: dict[str, int] = {}
        level = 0
        for name, _ in self.named_parameters():
            if name.startswith(prefix):
                level = int(name.removeprefix(prefix).split(".")[0]) + 1
            elif level:
                level = depth
            found[name] = level if name.startswith("encoder.") else depth + 1
        return found


class TextEncoderNet(EncoderNet):
    """A transformer that all texts pass one by one. A missing text is a vector of zeros, which an empty one is not."""

    def __init__(self, model: TextEncoder, shape: NetShape) -> None:
        super().__init__()
        encoder = self.encoder = encoder_of(model.architecture)
        self.blocks, self.transfer = blocks_of(model.architecture), model.transfer
        self.padding = model.architecture.get("pad_token_id") or 0
        self.pooling = model.pooling
        self.lengths = [length for _, length in shape.texts]
        self.head = Head(len(self.lengths) * encoder.config.hidden_size, model, shape)

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        texts = torch.split(tensors["text"], self.lengths, dim=1)
        out: Tensor = self.head([self.vector(ids) for ids in texts], tensors)
        return out

    def vector(self, ids: Tensor) -> Tensor:
        """Int64 (B, L), as the plan makes them, to (B, W)."""
        if not len(ids):  # attention takes no empty batch, and under ZeRO 3 every worker must pass the encoder
            return self.vector(ids.new_full((1, 1), PADDING))[:0]
        if not torch.compiler.is_compiling():
            longest = int((ids != PADDING).sum(dim=1).max())
            ids = ids[:, : max(1, -(-longest // TOGETHER) * TOGETHER)]
        known = ids >= FIRST
        seen = (ids != PADDING) | (torch.arange(ids.shape[1], device=ids.device) == 0)  # attention needs one place to look at
        hidden: Tensor = self.encoder(
            input_ids=torch.where(known, ids - FIRST, self.padding), attention_mask=seen.to(torch.int64)
        ).last_hidden_state
        weights = known.to(hidden.dtype)
        if self.pooling == "first":
            return hidden[:, 0] * weights[:, :1]
        return (hidden * weights[:, :, None]).sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp_min(1)


class ImageEncoderNet(EncoderNet):
    """A convolutional net, pooled by its mean over all places, or a vision transformer, pooled by the vector of its own mark."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: ImageEncoder, shape: NetShape) -> None:
        super().__init__()
        encoder = self.encoder = encoder_of(model.architecture)
        self.blocks, self.transfer = blocks_of(model.architecture), model.transfer
        assert shape.image is not None
        self.register_buffer("mean", torch.tensor(model.pixel_mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(model.pixel_deviation)[:, None, None], persistent=False)
        side = encoder.config.image_size if model.architecture["model_type"] == "vit" else None
        own = (side, side) if isinstance(side, int) else tuple(side or shape.image)
        self.options = {} if own == shape.image else {"interpolate_pos_encoding": True}
        self.is_transformer = side is not None
        was_training = self.training
        self.eval()
        with torch.no_grad():
            width = self.vector(torch.zeros(1, 3, *shape.image, dtype=torch.uint8)).shape[1]
        self.train(was_training)
        self.head = Head(width, model, shape)

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        out: Tensor = self.head([self.vector(tensors["image"])], tensors)
        return out

    def vector(self, image: Tensor) -> Tensor:
        """Uint8 (B, 3, H, V) to (B, W)."""
        if not len(image):
            return self.vector(image.new_zeros((1, *image.shape[1:])))[:0]
        dtype = next(self.encoder.parameters()).dtype
        pixels = ((image.float() / 255 - self.mean.float()) / self.deviation.float()).to(dtype)
        if self.is_transformer:
            out: Tensor = self.encoder(pixel_values=pixels, **self.options).last_hidden_state[:, 0]
            return out
        pooled: Tensor = self.encoder(pixel_values=pixels.contiguous(memory_format=torch.channels_last)).pooler_output
        return pooled.flatten(1)
