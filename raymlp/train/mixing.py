"""Training images mixed in pairs. Legend: B rows, H height, W width."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raymlp.config.mix import Mix, Mixup, NoMix
from raymlp.train.batches import Batch

Answers = list[tuple[Tensor, float]]
"""Targets (B,) and the share of each in the loss; shares add up to 1."""


def mixed(batch: Batch, mix: Mix) -> tuple[Batch, Answers]:
    """The batch with its images (B, 3, H, W) mixed with those of the batch in another order, and the answers of both.

    Cross entropy with both answers in their shares is that with the soft answer between them. Draws from torch's own generator.
    """
    if isinstance(mix, NoMix):
        return batch, [(batch.target, 1.0)]
    image = batch.tensors["image"]
    kept = float(torch.distributions.Beta(mix.alpha, mix.alpha).sample())
    order = torch.randperm(len(batch)).to(image.device)
    if isinstance(mix, Mixup):
        image = (kept * image + (1 - kept) * image[order]).round().to(image.dtype)
    else:
        image, kept = _cut(image, image[order], kept)
    answers = [(batch.target, kept), (batch.target[order], 1 - kept)]
    return Batch({**batch.tensors, "image": image}, batch.target), answers


def _cut(image: Tensor, other: Tensor, kept: float) -> tuple[Tensor, float]:
    """Images with one rectangle from others, at a place drawn evenly and cut at the border, and the share of the area left alone."""
    height, width = image.shape[-2:]
    rows, columns = (round(side * math.sqrt(1 - kept)) for side in (height, width))
    top, left = (int(torch.randint(side, ())) - size // 2 for side, size in ((height, rows), (width, columns)))
    inside = (..., slice(max(top, 0), top + rows), slice(max(left, 0), left + columns))
    image = image.clone()
    image[inside] = other[inside]
    area = image[0, 0][inside[1:]].numel()
    return image, 1 - area / (height * width)
