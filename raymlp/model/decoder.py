"""A decoder-only language model, and what it makes of texts. Legend: B rows, L ids of a text, T places that are looked at, W width,
V tokens.

Tokens: 0 stands before a text and behind it, and the pieces of the plan's tokenizer follow from 1. So the first piece of a text is
predicted as well as the end of one that was not cut off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from raymlp.config.model import Decoder
from raymlp.core.errors import ConfigError
from raymlp.features.ids import FIRST, MISSING
from raymlp.features.text import PADDING

if TYPE_CHECKING:
    from raymlp.model.nets import NetShape

MARK = 0
"""The token before and behind every text."""
DEVIATION = 0.02
"""Of fresh weights (Radford et al. 2018)."""
UNCOUNTED = -100
"""The target at a place where nothing is predicted."""
TOGETHER = 8
"""On a CPU a batch is cut to its longest text, rounded up to this many places. On a GPU to look at the lengths would be to wait."""


class Block(nn.Module):
    """Causal self-attention and a feed-forward part, each behind a normalisation and added to what comes in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, T, W) to the same."""
        rows, places, width = x.shape
        parts = self.qkv(self.before_attention(x)).view(rows, places, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)
        x = x + self._dropped(self.attended(mixed.transpose(1, 2).reshape(rows, places, width)))
        return x + self._dropped(self.narrow(functional.gelu(self.widen(self.before_forward(x)))))

    def _dropped(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class DecoderNet(nn.Module):
    """The transformer of GPT-2 (Radford et al. 2019): normalisation before each part and behind the last, learned places, and an output
    layer whose weights are the embedding of the tokens (Press and Wolf 2017).

    Weights begin with a deviation of .02, those that add to the residual stream with .02 / sqrt(2 layers).
    """

    def __init__(self, model: Decoder, shape: NetShape) -> None:
        super().__init__()
        if len(shape.texts) != 1 or shape.texts[0][1] > model.context:
            found = f"{len(shape.texts)} texts" if len(shape.texts) != 1 else f"a text of {shape.texts[0][1]} pieces"
            raise ConfigError(
                f"model.kind is decoder with model.context={model.context}, and the features hold {found}; expected one text within it. "
                "Set features.text, features.text_length or model.context."
            )
        size = shape.texts[0][0]
        self.dropout = model.dropout
        self.tokens = nn.Embedding(num_tokens(size), model.width)
        self.places = nn.Embedding(model.context, model.width)
        self.blocks = nn.ModuleList(Block(model.width, model.heads, model.dropout) for _ in range(model.layers))
        self.norm = nn.LayerNorm(model.width)
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                nn.init.normal_(module.weight, std=DEVIATION)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():
            if name.endswith(("attended.weight", "narrow.weight")):
                nn.init.normal_(weight, std=DEVIATION / math.sqrt(2 * model.layers))

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Float32 (B, 3) of each text: the sum of the log-likelihoods (in nats) of its tokens, how many of them are predicted, and how many
        were thought most likely. The last is 0 in training, where nobody asks for it. A missing text has no tokens."""
        ids = tensors["text"]
        if not len(ids):  # attention takes no empty batch, and under ZeRO 3 every worker must pass the net
            return self.forward({"text": ids.new_full((1, 1), MISSING)})[:0]
        if ids.device.type == "cpu" and not torch.compiler.is_compiling():
            longest = int((ids != PADDING).sum(dim=1).max()) + 1
            ids = ids[:, : -(-longest // TOGETHER) * TOGETHER]
        given, wanted = shifted(ids)
        logits = self.logits(given).float()
        lost = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=UNCOUNTED, reduction="none").view_as(wanted)
        right = torch.zeros_like(wanted) if self.training else logits.argmax(dim=2) == wanted
        return torch.stack([-lost.sum(dim=1), (wanted != UNCOUNTED).sum(dim=1), right.sum(dim=1)], dim=1)

    def logits(self, tokens: Tensor) -> Tensor:
        """Int64 (B, T), each text behind its mark, to float (B, T, V): of each place, what comes next."""
        x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        x = functional.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)


def num_tokens(size: int) -> int:
    """V, of a text step with so many ids: its pieces and the mark."""
    return size - FIRST + 1


def shifted(ids: Tensor) -> tuple[Tensor, Tensor]:
    """From the plan's ids, int64 (B, L), the tokens that go in and those that are wanted at each place, int64 (B, L) each; `UNCOUNTED`
    where there is none: behind the end of a text, and all along a missing one."""
    tokens = (ids - FIRST + 1).clamp_min(MARK)
    known = ids >= FIRST
    begun = functional.pad(known[:, :-1], (1, 0), value=True)
    counted = known | (begun & (ids == PADDING))
    return functional.pad(tokens[:, :-1], (1, 0), value=MARK), tokens.masked_fill(~counted, UNCOUNTED)
