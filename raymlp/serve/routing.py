"""Which version answers: a pure function of the routing key and the weights."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import Self

from raymlp.core.errors import ServingError


@dataclass(frozen=True, slots=True)
class Routes:
    """The unit interval cut into one stretch a version, the champion's first.

    `bounds` are the inner cuts, ascending. With two versions, more weight for the challenger moves the one cut down, so
    keys only ever go from the champion to the challenger.
    """

    labels: tuple[str, ...]
    bounds: tuple[float, ...]

    @classmethod
    def of(cls, champion: str, weights: Mapping[str, float]) -> Self:
        """Raises ServingError when the weights are not shares that sum to one, or leave the champion out."""
        check_weights(champion, weights)
        labels = (champion, *(label for label in weights if label != champion))
        cuts = list(accumulate(weights[label] for label in labels))
        return cls(labels, tuple(cuts[:-1]))

    def choose(self, key: str) -> str:
        """The version for a key; always the same for the same key and weights."""
        return self.labels[bisect_right(self.bounds, bucket(key))]


def bucket(key: str) -> float:
    """A key's place in [0, 1): the first 53 bits of its BLAKE2b hash, even over keys and the same on every machine."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def check_weights(champion: str, weights: Mapping[str, float]) -> None:
    """Raises ServingError when the weights are not shares in [0, 1] that sum to one, or leave the champion out."""
    if champion not in weights:
        raise ServingError(f"weights name {', '.join(weights) or 'no version'}; expected a share for the champion {champion}.")
    for label, share in weights.items():
        if not (isinstance(share, int | float) and math.isfinite(share) and 0 <= share <= 1):
            raise ServingError(f"the weight of {label} is {share}; expected a share from 0 to 1.")
    total = math.fsum(weights.values())
    if abs(total - 1) > 1e-9:
        raise ServingError(f"the weights sum to {total:g}; expected 1. Set a share for every version.")
