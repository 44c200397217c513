"""Which version answers: a pure function of the routing key, the weights and the rollout's salt, which a log can be held against."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from typing import Self

from raymlp.core.errors import ServingError

SMALLEST = 1e-12
"""Stretches below this are rounding, and are left out."""


@dataclass(frozen=True, slots=True)
class Routes:
    """The unit interval cut into stretches, each a version's, the champion's first.

    `bounds` are the inner cuts, ascending. With two versions, more weight for the challenger moves the one cut down, so
    keys only ever go from the champion to the challenger. With more, each has a home of the same size and keeps the lower part of it; what
    it does not need goes to those that need more, so that few keys move when weights do. `salt` is that of the rollout or the experiment:
    another one deals the keys anew.
    """

    labels: tuple[str, ...]
    bounds: tuple[float, ...]
    salt: str = ""

    @classmethod
    def of(cls, champion: str, weights: Mapping[str, float], *, salt: str = "") -> Self:
        """Raises ServingError when the weights are not shares that sum to one, or leave the champion out."""
        check_weights(champion, weights)
        labels = (champion, *(label for label in weights if label != champion))
        pieces = [(label, weights[label]) for label in labels]
        if sum(share > 0 for _, share in pieces) > 2:
            pieces = _at_home([(label, share) for label, share in pieces if share > 0])
        cuts = list(accumulate(share for _, share in pieces))
        return cls(tuple(label for label, _ in pieces), tuple(cuts[:-1]), salt)

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` wrote. Raises ServingError for anything else."""
        try:
            salt, labels, bounds = json.loads(text)
            return cls(tuple(map(str, labels)), tuple(map(float, bounds)), str(salt))
        except (ValueError, TypeError) as error:
            raise ServingError(f"a log row has the routes {text[:80]!r} ({error}); expected salt, labels and bounds as JSON.") from None

    def __str__(self) -> str:
        return json.dumps([self.salt, self.labels, self.bounds])

    def choose(self, key: str) -> str:
        """The version for a key; always the same for the same key, weights and salt."""
        return self.labels[bisect_right(self.bounds, bucket(key, self.salt))]

    def share(self, label: str) -> float:
        """A version's share of the keys, in [0, 1]; 0 for one that is not there."""
        edges = (0.0, *self.bounds, 1.0)
        return math.fsum(edges[place + 1] - edges[place] for place, owner in enumerate(self.labels) if owner == label)


def _at_home(wanted: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Stretches in order: every version keeps the lower part of its home, and the upper parts go to those that want more than a home, in
    order."""
    home, pieces = 1 / len(wanted), list[tuple[str, float]]()
    needs = {label: share - home for label, share in wanted if share > home}
    for label, share in wanted:
        pieces.append((label, min(share, home)))
        free = home - min(share, home)
        for other, need in needs.items():
            if (given := min(free, need)) > SMALLEST:
                pieces.append((other, given))
                free, needs[other] = free - given, need - given
    return pieces


def bucket(key: str, salt: str = "") -> float:
    """A key's place in [0, 1): the first 53 bits of its BLAKE2b hash, even over keys and the same on every machine.

    The hash's own key is the BLAKE2b hash of the salt, so that places under two salts have nothing to do with each other.
    """
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, key=_hash_key(salt)).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


@lru_cache(maxsize=64)
def _hash_key(salt: str) -> bytes:
    return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=32).digest() if salt else b""


def misrouted(keys: Iterable[str], versions: Iterable[str], routes: Iterable[str]) -> list[int]:
    """Recompute a log: the places of rows whose version is not the one that key and routes give. Empty when the split is as it was
    declared. `routes` as the log has them, the text of `Routes`. Raises ServingError for routes that cannot be read."""
    known: dict[str, Routes] = {}
    wrong = []
    for place, (key, version, text) in enumerate(zip(keys, versions, routes, strict=True)):
        found = known.get(text)
        if found is None:
            found = known[text] = Routes.parse(text)
        if found.choose(key) != version:
            wrong.append(place)
    return wrong


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
