"""How settings are searched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raymlp.config.section import Section

Scalar = bool | int | float | str
Value = Scalar | tuple[int | float | str, ...] | None
When = Annotated[
    dict[str, Scalar | tuple[Scalar, ...]],
    Field(description="Other keys of the space and the value, or values, that each must have for this key to be drawn at all."),
]
CONTINUED = (
    *("train.learning_rate", "train.weight_decay", "train.gradient_clip"),
    *("model.dropout", "model.text_dropout", "model.hidden_dropout", "model.attention_dropout", "model.residual_dropout"),
)
"""Keys that population based training may change while a net is trained: neither the net nor the data change with them."""


class Choice(Section):
    """One of several values."""

    kind: Literal["choice"] = "choice"
    values: tuple[Value, ...] = Field(min_length=1)
    """Values to draw from."""
    when: When = {}
    """As in `{model.kind: mlp}`: only then is the key drawn."""


class Uniform(Section):
    """A number between two bounds, every one as likely."""

    kind: Literal["uniform"] = "uniform"
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    grid: int = Field(default=5, ge=2)
    """Values that a grid takes, evenly spaced (on a logarithmic scale by ratio), both bounds among them."""
    when: When = {}
    """As in `{model.kind: mlp}`: only then is the key drawn."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g}; expected less than high ({self.high:g})")
        return self


class LogUniform(Uniform):
    """A positive number between two bounds, every order of magnitude as likely."""

    kind: Literal["loguniform"] = "loguniform"  # type: ignore[assignment]
    low: float = Field(gt=0)


class Integer(Uniform):
    """A whole number between two bounds, both included."""

    kind: Literal["integer"] = "integer"  # type: ignore[assignment]
    low: int
    high: int
    log: bool = False
    """Every order of magnitude as likely, rather than every number."""

    @model_validator(mode="after")
    def _positive_for_logarithm(self) -> Self:
        if self.log and self.low < 1:
            raise ValueError(f"low is {self.low} with log=true; expected 1 or more")
        return self


Domain = Annotated[Choice | Uniform | LogUniform | Integer, Field(discriminator="kind")]
Space = Mapping[str, Choice | Uniform | LogUniform | Integer]


class RandomSearch(Section):
    """Independent draws (Bergstra and Bengio 2012). Draw number i depends on `seed` and i alone."""

    kind: Literal["random"] = "random"


class GridSearch(Section):
    """Every combination, once."""

    kind: Literal["grid"] = "grid"


class Tpe(Section):
    """Draws near what did well (tree-structured Parzen estimators, Bergstra et al. 2011), by Optuna: needs raymlp[tune]."""

    kind: Literal["tpe"] = "tpe"

    startup: int = Field(default=10, ge=1)
    """Trials drawn at random before the estimators are used."""


class Population(Section):
    """Population based training (Jaderberg et al. 2017): the weak go on from the weights of the strong, with changed settings."""

    kind: Literal["pbt"] = "pbt"

    interval_epochs: int = Field(default=1, ge=1)
    """Epochs between two comparisons."""

    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """Share of the population that counts as strong, and share that counts as weak."""

    resample: float = Field(default=0.25, ge=0, le=1)
    """Probability that a changed setting is drawn anew from its domain, rather than moved by a fifth."""


Searcher = Annotated[RandomSearch | GridSearch | Tpe | Population, Field(discriminator="kind")]


class Tune(Section):
    """One study: what is tried, in which order, and when a trial or the study ends."""

    study: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    """Name of the study. One that was cut off goes on when it is started again under its name; null makes a new name of the time."""

    space: dict[str, Domain] = {}
    """Setting to domain, by full key: `train.learning_rate`, `model.hidden`, `features.scaling`. Empty takes what the portfolio
    (raymlp/tune/portfolio.py) has for `model.kind`."""

    points: tuple[dict[str, Value], ...] = ()
    """Settings to try first, each a value for some keys of the space; the others are drawn."""

    auto: bool = False
    """Try the model families that suit the data, with the settings and spaces of the portfolio, in place of `space` and `points`. The
    portfolio's settings come first, a family after the other, then draws. The problem's metric is the objective where none is given."""

    searcher: Searcher = RandomSearch()
    """How settings are chosen."""

    num_samples: int | None = Field(default=None, ge=1)
    """Trials. Null takes the whole grid for `grid`, goes on until the time is over where `minutes` is set, and is 8 otherwise."""

    minutes: float | None = Field(default=None, gt=0)
    """Time for the trials. When it is over no trial starts, and those that run end with their epoch."""

    trial_minutes: float | None = Field(default=None, gt=0)
    """Time of one trial, which then ends with its epoch and counts by what it has. Null is a third of `minutes` with `auto`, and no end
    otherwise."""

    max_concurrent: int = Field(default=2, ge=1)
    """Trials at the same time."""

    workers: Literal["one", "as_train"] = "one"
    """`one` trains a trial in one process on one CPU, which the next trial uses again; `as_train` gives each trial the workers, the CPUs
    and the GPUs of `train`."""

    objectives: tuple[str, ...] = Field(default=("valid_loss",), min_length=1)
    """What counts: `valid_loss` (the lowest of any epoch), a metric of the task on the validation split, or `latency_ms` (one row through
    the predictor). With several the trials that no other beats in all are marked, and the first decides which is best."""

    scheduler: Literal["asha", "median", "none"] = "asha"
    """By validation loss, `asha` stops trials that fall behind (Li et al. 2020) and `median` those worse than the median of the earlier
    ones at the same epoch (Golovin et al. 2017); `none` lets every trial finish. `pbt` takes its own place here."""

    grace_epochs: int = Field(default=2, ge=1)
    """Epochs before a trial may be stopped."""

    epochs: int = Field(default=10, ge=1)
    """Most epochs of a trial."""

    max_failures: int = Field(default=1, ge=0)
    """Deaths of a trial's process after which it starts again. An error that training raises is told at once: it would come again."""

    warm_start: tuple[str, ...] = ()
    """Earlier studies of the same problem. `tpe` learns from their trials where snapshot and objectives are the same; otherwise their
    best three settings are tried first."""

    seed: int = 0
    """Seed of the draws."""

    @property
    def limit(self) -> int | None:
        """Most trials; None is as many as the grid has, or as the time allows."""
        return self.num_samples or (None if self.minutes or self.searcher.kind == "grid" else 8)

    @model_validator(mode="after")
    def _conditions_hold(self) -> Self:
        for key, domain in self.space.items():
            for gate, wanted in domain.when.items():
                _check_gate(key, gate, wanted, self.space)
            _refuse_circle(key, self.space)
        return self

    @model_validator(mode="after")
    def _points_lie_inside(self) -> Self:
        for place, point in enumerate(self.points):
            for key, value in point.items():
                if key not in self.space:
                    raise ValueError(f"points.{place} has {key}, which is not in the space ({', '.join(self.space)})")
                if not holds(self.space[key], value):
                    raise ValueError(f"points.{place} has {key}={value!r}; expected a value of its domain")
        return self

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        kind = self.searcher.kind
        if kind == "pbt" and self.space and not set(CONTINUED) & set(self.space):
            raise ValueError(
                f"searcher.kind is pbt, which changes settings while a net is trained; expected in the space one of {CONTINUED}"
            )
        if kind == "pbt" and self.workers == "as_train":
            raise ValueError("searcher.kind is pbt with workers=as_train; expected workers=one, since weights pass between processes")
        if kind == "pbt" and self.limit is None:
            raise ValueError("searcher.kind is pbt without num_samples; expected the size of the population. Set num_samples")
        if kind == "grid" and (self.auto or self.warm_start or self.points):
            raise ValueError("searcher.kind is grid, which tries everything; expected neither auto nor warm_start nor points with it")
        if self.auto and (self.space or self.points):
            raise ValueError("auto is set beside a space or points; expected one of them. Set auto=false, or leave the others out")
        return self


def holds(domain: Choice | Uniform, value: Any) -> bool:
    """Whether a domain has this value."""
    if isinstance(domain, Choice):
        return any(_same(value, item) for item in domain.values)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return domain.low <= value <= domain.high and (not isinstance(domain, Integer) or value == int(value))


def _same(one: Any, other: Any) -> bool:
    one, other = (tuple(item) if isinstance(item, list) else item for item in (one, other))
    return bool(one == other and isinstance(one, bool) == isinstance(other, bool))


def any_of(wanted: Scalar | tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    """The values of a condition."""
    return wanted if isinstance(wanted, tuple) else (wanted,)


def _check_gate(key: str, gate: str, wanted: Scalar | tuple[Scalar, ...], space: Space) -> None:
    if gate not in space:
        raise ValueError(f"{key} is drawn when {gate} has a value, and {gate} is not in the space; expected another key of it")
    domain = space[gate]
    if not isinstance(domain, Choice):
        raise ValueError(f"{key} is drawn when {gate} has a value, and {gate} is {domain.kind}; expected a choice")
    for value in any_of(wanted):
        if not holds(domain, value):
            raise ValueError(f"{key} is drawn when {gate} is {value!r}, which {gate} never is; expected one of {list(domain.values)}")


def _refuse_circle(key: str, space: Space) -> None:
    waiting, seen = list(space[key].when), set()
    while waiting:
        gate = waiting.pop()
        if gate == key:
            raise ValueError(f"{key} is drawn only when {key} has a value, through {', '.join(space[key].when)}; expected no circle")
        if gate not in seen and gate in space:
            seen.add(gate)
            waiting.extend(space[gate].when)
