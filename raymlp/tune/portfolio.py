"""Good settings of every model family, and what of each is worth searching: the one place that knows families by name.

Learning rates and sizes are those that the authors' experiments favour (Gorishniy et al. 2021, 2024; Chen and Guestrin 2016),
brought to the sizes that a CPU trains in minutes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, get_args

from pydantic import BaseModel

from raymlp.config.loader import with_overrides
from raymlp.config.model import tasks_of
from raymlp.config.schema import Config
from raymlp.config.tune import Choice, Integer, LogUniform, Space, Tune, Uniform
from raymlp.core.errors import ConfigError
from raymlp.core.records import Task

LOSS_ALONE = Tune.model_fields["objectives"].default
GROWING_LOSS: tuple[Task, ...] = ("clustering",)
"""Tasks whose loss says nothing about settings: a study without objectives takes the problem's metric."""


@dataclass(frozen=True)
class Family:
    """A kind of model: settings to try first, the space around them, and what it needs.

    `takes` are the inputs beside numbers and categories that it has a use for, `modules` what must be installed, by `extra`.
    """

    points: tuple[Mapping[str, Any], ...] = ({},)
    space: Space = field(default_factory=dict)
    takes: frozenset[str] = frozenset()
    modules: tuple[str, ...] = ()
    extra: str = ""


RATE = "train.learning_rate"
DECAY = "train.weight_decay"
SHARED: Space = {RATE: LogUniform(low=3e-4, high=1e-2), DECAY: LogUniform(low=1e-6, high=1e-2)}
"""What all nets search; a family of the portfolio whose points set it searches it."""

ALL = frozenset({"text", "image"})
TREES: Space = {
    "model.learning_rate": LogUniform(low=0.02, high=0.2),
    "model.subsample": Uniform(low=0.5, high=1.0),
    "model.feature_share": Uniform(low=0.4, high=1.0),
    "model.l2": LogUniform(low=0.01, high=10.0),
}

PORTFOLIO: Mapping[str, Family] = {
    "linear": Family(points=({RATE: 5e-3},), takes=ALL),
    "mlp": Family(
        points=(
            {RATE: 2e-3, DECAY: 1e-4, "model.hidden": [256, 128], "model.dropout": 0.1},
            {RATE: 1e-3, DECAY: 1e-5, "model.hidden": [512, 256], "model.dropout": 0.25},
        ),
        space={"model.dropout": Uniform(low=0.0, high=0.4), "model.hidden": Choice(values=((128,), (256, 128), (512, 256)))},
        takes=ALL,
    ),
    "xgboost": Family(
        points=({"model.max_depth": 6, "model.learning_rate": 0.1}, {"model.max_depth": 9, "model.learning_rate": 0.05}),
        space={**TREES, "model.max_depth": Integer(low=3, high=10)},
        modules=("xgboost",),
        extra="gbdt",
    ),
    "lightgbm": Family(
        points=({"model.num_leaves": 31, "model.learning_rate": 0.1}, {"model.num_leaves": 127, "model.learning_rate": 0.05}),
        space={**TREES, "model.num_leaves": Integer(low=15, high=255, log=True)},
        modules=("lightgbm",),
        extra="gbdt",
    ),
    "tabm": Family(
        points=({RATE: 2e-3, DECAY: 3e-4, "model.width": 256},),
        space={"model.width": Choice(values=(128, 256, 512)), "model.dropout": Uniform(low=0.0, high=0.4)},
        takes=ALL,
        modules=("tabm", "rtdl_num_embeddings"),
        extra="tabular",
    ),
    "resnet": Family(
        points=({RATE: 1e-3, DECAY: 1e-5, "model.width": 192, "model.blocks": 2},),
        space={
            "model.width": Choice(values=(96, 192, 256)),
            "model.blocks": Integer(low=1, high=4),
            "model.hidden_dropout": Uniform(low=0.0, high=0.5),
        },
        takes=ALL,
        modules=("rtdl_revisiting_models",),
        extra="tabular",
    ),
    "ft_transformer": Family(
        points=({RATE: 5e-4, DECAY: 1e-5, "model.width": 96, "model.blocks": 2},),
        space={
            "model.width": Choice(values=(64, 96, 192)),
            "model.blocks": Integer(low=1, high=3),
            "model.attention_dropout": Uniform(low=0.0, high=0.4),
        },
        takes=ALL,
        modules=("rtdl_revisiting_models",),
        extra="tabular",
    ),
    "kmeans": Family(points=({"model.clusters": 8},), space={"model.clusters": Integer(low=2, high=20)}),
    "isolation_forest": Family(
        points=({"model.trees": 100, "model.tree_rows": 256},),
        space={"model.trees": Integer(low=50, high=400, log=True), "model.tree_rows": Integer(low=64, high=4096, log=True)},
    ),
}


def resolved(config: Config) -> tuple[Config, tuple[str, ...]]:
    """The config with the space that is searched written out, and notes on families that were left out.

    An empty space becomes that of the model's family; `tune.auto` the spaces of all families that suit the data. Raises ConfigError
    when a family has no space.
    """
    settings = config.tune
    if settings.auto:
        return _automatic(config)
    if config.problem.task in GROWING_LOSS and settings.objectives == LOSS_ALONE:
        metric = config.problem.main_metric
        chosen = config.model_copy(update={"tune": settings.model_copy(update={"objectives": (metric,)})})
        return resolved(chosen)[0], (f"the objective is {metric}: the loss falls with every further cluster",)
    if settings.space:
        return config, ()
    kind = config.model.kind
    space = _space_of(PORTFOLIO.get(kind, Family()))
    if not space:
        raise ConfigError(f"tune.space is empty, and the portfolio has none for model.kind={kind}; expected a space. Set tune.space.")
    return _with(config, space=space), ()


def kinds() -> list[str]:
    """The kinds of model that the config knows, in the order of the portfolio."""
    known = [
        kind for section in _variants(Config.model_fields["model"].annotation) for kind in get_args(section.model_fields["kind"].annotation)
    ]
    return [kind for kind in PORTFOLIO if kind in known]


def left_out(kind: str, config: Config) -> str | None:
    """Why a family is not tried on this data; None where it is."""
    family = PORTFOLIO[kind]
    for module in family.modules:
        if importlib.util.find_spec(module) is None:
            return f"{kind} needs pip install 'raymlp[{family.extra}]'"
    inputs = [name for name, given in (("text", config.features.text), ("image", config.features.image)) if given]
    for name in inputs:
        if name not in family.takes:
            return f"{kind} takes no {name}"
    try:
        with_overrides(config, {"model.kind": kind})
    except ConfigError as error:
        return f"{kind}: {error}"
    return None


def _automatic(config: Config) -> tuple[Config, tuple[str, ...]]:
    reasons = {kind: left_out(kind, config) for kind in kinds() if config.problem.task in tasks_of(kind)}
    chosen = [kind for kind, reason in reasons.items() if reason is None]
    if not chosen:
        raise ConfigError(f"no model family suits the data: {'; '.join(filter(None, reasons.values()))}. Set tune.auto=false.")
    space: dict[str, Any] = {"model.kind": Choice(values=tuple(chosen))}
    for kind in chosen:
        for key, domain in _space_of(PORTFOLIO[kind]).items():
            others = space[key].when["model.kind"] if key in space else ()
            space[key] = _both(space.get(key), domain).model_copy(update={"when": {"model.kind": (*others, kind)}})
    rounds = zip_longest(*([{"model.kind": kind, **point} for point in PORTFOLIO[kind].points] for kind in chosen))
    points = tuple(point for turn in rounds for point in turn if point is not None)
    notes = tuple(f"not tried: {reason}" for reason in reasons.values() if reason)
    settings = config.tune
    changes: dict[str, Any] = {}
    if settings.objectives == LOSS_ALONE:
        changes["objectives"] = (config.problem.main_metric,)
    if settings.num_samples is None and settings.minutes is None:
        changes["num_samples"] = len(points)
    if settings.trial_minutes is None and settings.minutes is not None:
        changes["trial_minutes"] = settings.minutes / 3
    return _with(config, auto=False, space=space, points=tuple(_inside(point, space) for point in points), **changes), notes


def _both(one: Any, other: Any) -> Any:
    """A domain that has the values of two of a kind: a key has one domain in a space, whichever family it is drawn for."""
    if one is None:
        return other
    if isinstance(other, Choice):
        return Choice(values=tuple(dict.fromkeys((*one.values, *other.values))))
    return other.model_copy(update={"low": min(one.low, other.low), "high": max(one.high, other.high)})


def _space_of(family: Family) -> dict[str, Any]:
    """The family's own space, and of the shared one what its points set."""
    used = {key for point in family.points for key in point}
    return {key: domain for key, domain in SHARED.items() if key in used} | dict(family.space)


def _inside(point: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """A point as the config has it."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in point.items() if key in space}


def _with(config: Config, **changes: Any) -> Config:
    plain = config.tune.model_dump() | {key: value for key, value in changes.items() if key != "space"}
    plain["space"] = {key: domain.model_dump() for key, domain in changes["space"].items()}
    return config.model_copy(update={"tune": Tune.model_validate(plain)})


def _variants(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _variants(inner)]
