"""Sweeps in Hydra's grammar: `model=mlp,tabm train.seed=1,2` are four points."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from raymlp.core.errors import ConfigError

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"{}\[\](),]*=[^\s'\"{}\[\](),]*")


def quoted(word: str) -> str:
    """An override whose value is an address with `=` in it, as in `s3://lake/a?region=b`, in the quotes that Hydra's grammar asks for."""
    key, _, value = word.partition("=")
    return f'{key}="{value}"' if ADDRESS.fullmatch(value) else word


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
            override = OverridesParser.create().parse_override(quoted(word))
            swept = override.is_sweep_override()
            axes.append([f"{_key(word)}={value}" for value in override.sweep_string_iterator()] if swept else [word])
        except HydraException as error:
            raise ConfigError(f"'{word}' is not an override: {str(error).strip().splitlines()[0]}; expected KEY=VALUE.") from None
    return [list(point) for point in itertools.product(*axes)]


def _key(word: str) -> str:
    return word.partition("=")[0]
