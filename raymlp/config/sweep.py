"""Sweeps in Hydra's grammar: `model=mlp,tabm train.seed=1,2` are four points."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from raymlp.core.errors import ConfigError


def points(words: Sequence[str]) -> list[list[str]]:
    """Every point of the overrides' sweeps as plain overrides, the last one moving fastest; one point where nothing is swept.

    `choice(...)` and `range(...)` are Hydra's. Raises ConfigError when a word is no override.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    axes: list[list[str]] = []
    for word in words:
        if word.startswith("overlay="):
            axes.append([word])
            continue
        try:
            override = OverridesParser.create().parse_override(word)
            swept = override.is_sweep_override()
            axes.append([f"{_key(word)}={value}" for value in override.sweep_string_iterator()] if swept else [word])
        except HydraException as error:
            raise ConfigError(f"'{word}' is not an override: {str(error).strip().splitlines()[0]}; expected KEY=VALUE.") from None
    return [list(point) for point in itertools.product(*axes)]


def _key(word: str) -> str:
    return word.partition("=")[0]
