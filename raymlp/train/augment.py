"""Random changes to the images of a training batch, by kornia. Legend: B rows, H height, V width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raymlp.config.augment import Augment
from raymlp.core.errors import ConfigError

ERASED = (0.02, 0.33)
"""Share of an image that is erased, between these two."""


class Augmentation(nn.Module):
    """Flip, one warp for shift, zoom and turn, colour, erasing, in this order. Draws from torch's own generator, and has no weights. It
    takes and gives a tensor, as ZeRO 3 expects of every module."""

    def __init__(self, settings: Augment) -> None:
        super().__init__()
        try:
            from kornia import augmentation as changes
        except ImportError:
            raise ConfigError("train.augment changes images, which needs kornia. Run: pip install 'raymlp[vision]'") from None

        steps: list[nn.Module] = []
        if settings.flip:
            steps.append(changes.RandomHorizontalFlip(p=settings.flip))
        if settings.shift or settings.zoom or settings.rotate:
            steps.append(
                changes.RandomAffine(
                    degrees=settings.rotate,
                    translate=(settings.shift, settings.shift) if settings.shift else None,
                    scale=(1 - settings.zoom, 1 + settings.zoom) if settings.zoom else None,
                    padding_mode="border",
                    p=1.0,
                )
            )
        if settings.colour:
            steps.append(changes.ColorJitter(settings.colour, settings.colour, settings.colour, p=1.0))
        if settings.erase:
            steps.append(changes.RandomErasing(p=settings.erase, scale=ERASED))
        self.steps = nn.Sequential(*steps)

    def forward(self, image: Tensor) -> Tensor:
        """Uint8 (B, 3, H, V) to the same with other pixels."""
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            changed: Tensor = self.steps(image.float() / 255)
        return (changed * 255).round().clamp(0, 255).to(torch.uint8)
