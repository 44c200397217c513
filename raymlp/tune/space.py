"""Search spaces: what is drawn under which condition, and whether the config takes it. No Ray here.

A draw maps keys to plain values; a key whose condition does not hold is not in it.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from raymlp.config.loader import with_overrides
from raymlp.config.schema import Config
from raymlp.config.tune import Choice, Integer, LogUniform, Space, Uniform, any_of, holds
from raymlp.core.errors import ConfigError

Draw = dict[str, Any]
PLAIN_WORD = re.compile(r"[A-Za-z_][\w.-]*")
MOST_CONTEXTS = 2_000
"""Combinations of conditions that are checked; a space with more is refused."""


def is_active(domain: Choice | Uniform, draw: Mapping[str, Any]) -> bool:
    """Whether the conditions of a domain hold in a draw."""
    return all(gate in draw and draw[gate] in any_of(wanted) for gate, wanted in domain.when.items())


def ordered(space: Space) -> list[str]:
    """The keys of a space, each after those that its condition names, otherwise as they were given."""
    done: list[str] = []
    while len(done) < len(space):
        done.append(next(key for key in space if key not in done and all(gate in done for gate in space[key].when)))
    return done


def sampled(space: Space, rng: np.random.Generator, given: Mapping[str, Any] | None = None) -> Draw:
    """One random draw. Values of `given` are taken where their key is active; drawing them leaves the others as they would have been."""
    draw: Draw = {}
    for key in ordered(space):
        value = _sample(space[key], rng)
        if is_active(space[key], draw):
            draw[key] = plain(given[key]) if given and key in given else value
    return draw


def grid(space: Space) -> Iterator[Draw]:
    """Every combination, the last key moving fastest."""
    return _grid(space, ordered(space), {})


def _grid(space: Space, keys: list[str], draw: Draw) -> Iterator[Draw]:
    if not keys:
        yield dict(draw)
        return
    key, rest = keys[0], keys[1:]
    if not is_active(space[key], draw):
        yield from _grid(space, rest, draw)
        return
    for value in spread(space[key]):
        yield from _grid(space, rest, {**draw, key: value})


def spread(domain: Choice | Uniform) -> list[Any]:
    """The values of a domain on a grid."""
    if isinstance(domain, Choice):
        return [plain(value) for value in domain.values]
    places = np.linspace(0, 1, domain.grid)
    if isinstance(domain, Integer):
        values = [round(_at(domain, place)) for place in places]
        return list(dict.fromkeys(min(max(value, domain.low), domain.high) for value in values))
    return [domain.low, *(_at(domain, place) for place in places[1:-1]), domain.high]


def fits(space: Space, draw: Mapping[str, Any]) -> bool:
    """Whether a draw of another study is one of this space, too: the same active keys, with values of their domains."""
    active = {key for key in ordered(space) if is_active(space[key], draw)}
    return active == set(draw) and all(holds(space[key], draw[key]) for key in active)


def contexts(space: Space) -> Iterator[Draw]:
    """Every combination of the keys that decide which others are drawn, or which section of the config there is (`model.kind`)."""
    gates = {gate for domain in space.values() for gate in domain.when} | {key for key in space if key.endswith(".kind")}
    return _grid(space, [key for key in ordered(space) if key in gates], {})


def trial_config(config: Config, draw: Mapping[str, Any]) -> Config:
    """The config of one trial: the drawn values, for `tune.epochs` epochs, in one process on one CPU unless trials have the workers of
    `train`. Raises ConfigError when the drawn values cannot be together."""
    fixed: dict[str, Any] = {"train.epochs": config.tune.epochs}
    if config.tune.workers == "one":
        fixed |= {
            "train.num_workers": 1,
            "train.elastic": None,
            "train.cpus_per_worker": 1,
            "train.gpu": False,
            "train.strategy.kind": "ddp",
        }
        if config.train.precision == "16":
            fixed["train.precision"] = "32"
    if config.tune.searcher.kind == "pbt":
        fixed["train.checkpoint.every_epochs"] = 1
    return with_overrides(config, {**fixed, **draw})


def check(config: Config) -> None:
    """Build the config of a trial at every choice and bound of the space, in every branch of its conditions.

    Raises ConfigError that names the key, and the branch where there is one.
    """
    space = config.tune.space
    branches = list(itertools.islice(contexts(space), MOST_CONTEXTS + 1))
    if len(branches) > MOST_CONTEXTS:
        raise ConfigError(f"the conditions of tune.space have more than {MOST_CONTEXTS:,} combinations; expected fewer. Take some out.")
    for branch in branches:
        for key, domain in space.items():
            if key not in branch and is_active(domain, branch):
                for value in domain.values if isinstance(domain, Choice) else (domain.low, domain.high):
                    _try(config, {**branch, key: plain(value)}, branch)
        _try(config, branch, branch)


def _try(config: Config, draw: Draw, branch: Draw) -> None:
    try:
        trial_config(config, draw)
    except ConfigError as error:
        where = f" (with {', '.join(overrides_of(branch))})" if branch else ""
        raise ConfigError(f"tune.space: {error}{where}") from None


def overrides_of(draw: Mapping[str, Any]) -> list[str]:
    """Drawn values as `key=value` words of the command line; text that reads as something else is quoted."""
    return [f"{key}={_word(value)}" for key, value in draw.items()]


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, tuple):
        return list(value)
    return value.item() if hasattr(value, "item") else value


def _word(value: Any) -> str:
    if isinstance(value, str):
        word = PLAIN_WORD.fullmatch(value) and value.lower() not in ("true", "false", "null", "nan", "inf")
        return value if word else f"'{value}'"
    return json.dumps(value, separators=(",", ":"))


def _sample(domain: Choice | Uniform, rng: np.random.Generator) -> Any:
    if isinstance(domain, Choice):
        return plain(domain.values[int(rng.integers(len(domain.values)))])
    if isinstance(domain, Integer) and not domain.log:
        return int(rng.integers(domain.low, domain.high + 1))
    if isinstance(domain, Integer):
        wide = math.exp(rng.uniform(math.log(domain.low - 0.5), math.log(domain.high + 0.5)))
        return min(max(round(wide), domain.low), domain.high)
    return _at(domain, float(rng.random()))


def _at(domain: Uniform, place: float) -> float:
    """The value at a place in [0, 1] of the domain."""
    if isinstance(domain, LogUniform) or (isinstance(domain, Integer) and domain.log):
        value = math.exp(math.log(domain.low) + place * (math.log(domain.high) - math.log(domain.low)))
    else:
        value = domain.low + place * (domain.high - domain.low)
    return float(min(max(value, domain.low), domain.high))
