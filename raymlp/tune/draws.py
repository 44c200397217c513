"""Which settings a trial gets: one after the other, by number from 0. No Ray here, and nothing that is kept between runs.

What a study has seen is in its own record (`study.py`); whatever goes on from it is told its trials again.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from raymlp.config.tune import Choice, Integer, LogUniform, Tpe, Tune, Uniform
from raymlp.core.errors import ConfigError
from raymlp.tune.space import Draw, grid, is_active, ordered, plain, sampled
from raymlp.tune.trials import Trial, lower_is_better


class Draws(Protocol):
    """Gives draws and hears how they did."""

    def draw(self, number: int) -> Draw | None:
        """The settings of a trial; None when there are no more."""

    def tell(self, trial: Trial) -> None:
        """How a trial of this study ended."""


class RandomDraws:
    """Draw number i depends on seed and i alone, so that a study which goes on draws what it would have drawn."""

    def __init__(self, settings: Tune) -> None:
        self._settings = settings

    def draw(self, number: int) -> Draw | None:
        points = self._settings.points
        given = points[number] if number < len(points) else None
        return sampled(self._settings.space, np.random.default_rng([self._settings.seed, number]), given)

    def tell(self, trial: Trial) -> None:
        """Nothing is learned."""


class GridDraws:
    """The combinations in order."""

    def __init__(self, settings: Tune) -> None:
        self._space = settings.space

    def draw(self, number: int) -> Draw | None:
        return next(itertools.islice(grid(self._space), number, None), None)

    def tell(self, trial: Trial) -> None:
        """Nothing is learned."""


class TpeDraws:
    """Optuna's estimators, asked and told. Conditions need nothing of their own: it learns of each key where it was drawn."""

    def __init__(self, settings: Tune, searcher: Tpe, *, seen: Sequence[Trial] = ()) -> None:
        """`seen` are ended trials: those of this study when it goes on, and those of earlier ones. Raises ConfigError without Optuna."""
        require_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._points = settings.space, settings.points
        self._objectives = settings.objectives
        self._sampler = optuna.samplers.TPESampler(seed=settings.seed + len(seen), n_startup_trials=searcher.startup, constant_liar=True)
        directions = ["minimize" if lower_is_better(name) else "maximize" for name in settings.objectives]
        self._study = optuna.create_study(directions=directions, sampler=self._sampler)
        self._asked: dict[int, Any] = {}
        for trial in seen:
            self._add(trial)

    def draw(self, number: int) -> Draw | None:
        given = dict(self._points[number]) if number < len(self._points) else {}
        if given:
            self._study.enqueue_trial({key: _coded(self._space[key], value) for key, value in given.items()})
        asked = self._study.ask()
        self._asked[number] = asked
        draw: Draw = {}
        for key in ordered(self._space):
            if is_active(self._space[key], draw):
                draw[key] = _suggested(asked, key, self._space[key])
        return draw

    def tell(self, trial: Trial) -> None:
        import optuna

        asked = self._asked.pop(trial.number)
        state, values = self._verdict(trial)
        if state == optuna.trial.TrialState.PRUNED:
            asked.report(values[0], trial.epochs)
            self._study.tell(asked, state=state)
        else:
            self._study.tell(asked, values or None, state=state)

    def _add(self, trial: Trial) -> None:
        import optuna

        state, values = self._verdict(trial)
        pruned = state == optuna.trial.TrialState.PRUNED
        self._study.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=values if values and not pruned else None,
                intermediate_values={trial.epochs: values[0]} if pruned else {},
                params={key: _coded(self._space[key], value) for key, value in trial.draw.items()},
                distributions={key: _distribution(self._space[key]) for key in trial.draw},
            )
        )

    def _verdict(self, trial: Trial) -> tuple[Any, list[float]]:
        """Optuna's word for how a trial ended, and its values. One that was stopped counts by the epochs it had."""
        import optuna

        values = [trial.values[name] for name in self._objectives if name in trial.values]
        if len(values) < len(self._objectives):
            return optuna.trial.TrialState.FAIL, []
        if not trial.finished and len(values) == 1:
            return optuna.trial.TrialState.PRUNED, values
        return optuna.trial.TrialState.COMPLETE, values


def draws_of(settings: Tune, *, seen: Sequence[Trial] = ()) -> Draws:
    """What draws by the settings; `seen` as in TpeDraws."""
    searcher = settings.searcher
    if isinstance(searcher, Tpe):
        return TpeDraws(settings, searcher, seen=seen)
    return GridDraws(settings) if searcher.kind == "grid" else RandomDraws(settings)


def require_optuna() -> None:
    """Raise ConfigError when Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("tune.searcher.kind is tpe, which needs Optuna. Run: pip install 'raymlp[tune]'.")


def _coded(domain: Choice | Uniform, value: Any) -> Any:
    """A value as Optuna knows it: choices by their JSON, since it takes no lists."""
    return json.dumps(plain(value)) if isinstance(domain, Choice) else value


def _suggested(asked: Any, key: str, domain: Choice | Uniform) -> Any:
    if isinstance(domain, Choice):
        return json.loads(asked.suggest_categorical(key, _texts(domain)))
    if isinstance(domain, Integer):
        return asked.suggest_int(key, domain.low, domain.high, log=domain.log)
    return asked.suggest_float(key, domain.low, domain.high, log=isinstance(domain, LogUniform))


def _distribution(domain: Choice | Uniform) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        return CategoricalDistribution(_texts(domain))
    if isinstance(domain, Integer):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))


def _texts(domain: Choice) -> list[str]:
    return list(dict.fromkeys(_coded(domain, value) for value in domain.values))


def beginning(settings: Tune, points: Sequence[Mapping[str, Any]]) -> Tune:
    """The settings with these points tried before the others."""
    return settings.model_copy(update={"points": (*(dict(point) for point in points), *settings.points)})
