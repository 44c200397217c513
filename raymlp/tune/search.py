"""Search the settings of `tune.space` with Ray Tune: random draws, and ASHA stops trials that fall behind (Li et al. 2020).

What a trial does comes from the caller, so this room knows nothing of training.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from raymlp.config.loader import with_overrides
from raymlp.config.schema import Config
from raymlp.config.tune import Choice, Domain, Integer, LogUniform, Tune
from raymlp.core.errors import TrainingError
from raymlp.core.files import make_folder
from raymlp.core.records import TuneResult

METRIC = "valid_loss"
PLAIN_WORD = re.compile(r"[A-Za-z_][\w.-]*")
Report = Callable[[dict[str, float]], None]
Objective = Callable[[Config, Report], dict[str, float]]
"""Trains by a config, reports each epoch's metrics (`valid_loss` among them), and gives the final ones."""
OnTrial = Callable[[dict[str, Any]], None]


def search(config: Config, objective: Objective, *, storage: Path, on_trial: OnTrial | None = None) -> TuneResult:
    """Try `tune.num_samples` settings and keep those with the lowest validation loss of any epoch. Needs Ray.

    `best` holds overrides for the command line. A trial is a dict of its `overrides`, `valid_loss` (the lowest), `epochs`,
    `finished` (false when ASHA stopped it) and final `metrics`, or its `error`; `on_trial` hears it when the trial ends.
    The draws depend on `tune.seed` alone; which trials ASHA stops also depends on which are quicker.

    Raises ConfigError before any trial when a key or a bound of the space is wrong, TrainingError when every trial fails.
    """
    check(config)
    make_folder(storage)
    with _no_loggers():
        results = _tuner(config, objective, storage, on_trial or (lambda _: None)).fit()
    trials = [_record(result.config or {}, result.metrics or {}, result.error) for result in results]
    scored = sorted((trial for trial in trials if METRIC in trial), key=lambda trial: float(trial[METRIC]))
    if not scored:
        error = next((result.error for result in results if result.error), None)
        raise TrainingError(f"all {len(trials)} trials failed; the first: {trials[0].get('error', 'no epoch was reported')}") from error
    return TuneResult(tuple(scored[0]["overrides"]), METRIC, scored[0][METRIC], tuple(trials))


def check(config: Config) -> None:
    """Build the config at every choice and bound of the space. Raises ConfigError that names the key."""
    for key, domain in config.tune.space.items():
        for value in domain.values if isinstance(domain, Choice) else (domain.low, domain.high):
            with_overrides(config, {key: _plain(value)})


def trial_config(config: Config, draw: Mapping[str, Any]) -> Config:
    """The config of one trial: the drawn values, for `tune.epochs` epochs on one CPU."""
    fixed: dict[str, Any] = {"train.epochs": config.tune.epochs, "train.num_workers": 1, "train.cpus_per_worker": 1, "train.gpu": False}
    if config.train.precision == "16":
        fixed["train.precision"] = "32"
    return with_overrides(config, {**fixed, **draw})


def overrides_of(draw: Mapping[str, Any]) -> list[str]:
    """Drawn values as `key=value` words of the command line; text that reads as something else is quoted."""
    return [f"{key}={_word(value)}" for key, value in draw.items()]


def _word(value: Any) -> str:
    if isinstance(value, str):
        plain = PLAIN_WORD.fullmatch(value) and value.lower() not in ("true", "false", "null", "nan", "inf")
        return value if plain else f"'{value}'"
    return json.dumps(value, separators=(",", ":"))


def _tuner(config: Config, objective: Objective, storage: Path, on_trial: OnTrial) -> tune.Tuner:
    settings = config.tune

    def trial(draw: dict[str, Any]) -> None:
        best = epochs = 0.0
        last: dict[str, Any] = {}

        def report(metrics: dict[str, float]) -> None:
            nonlocal best, epochs, last
            epochs += 1
            best = min(best, metrics[METRIC]) if epochs > 1 else metrics[METRIC]
            last = {METRIC: metrics[METRIC], "lowest": best, "epochs": epochs}
            tune.report(last)

        final = objective(trial_config(config, draw), report)
        tune.report({**last, "final": final})

    return tune.Tuner(
        tune.with_resources(trial, {"CPU": 1}),
        param_space={key: _domain(domain) for key, domain in settings.space.items()},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="min",
            num_samples=settings.num_samples,
            max_concurrent_trials=None,
            search_alg=BasicVariantGenerator(max_concurrent=settings.max_concurrent, random_state=settings.seed),
            scheduler=_scheduler(settings),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=f"{config.problem.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}",
            storage_path=str(storage.resolve()),
            verbose=1 if config.runtime.verbose else 0,
            callbacks=[_Listener(on_trial)],
        ),
    )


class _Listener(tune.Callback):  # type: ignore[misc]
    """Tells the caller of every trial that ends."""

    def __init__(self, on_trial: OnTrial) -> None:
        self._on_trial = on_trial

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._on_trial(_record(trial.config, trial.last_result or {}, None))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._on_trial(_record(trial.config, trial.last_result or {}, trial.get_error()))


def _scheduler(settings: Tune) -> Any:
    """ASHA over epochs. A trial that comes to its last epoch is left to end by itself, so that its final metrics arrive."""
    if settings.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="epochs", max_t=settings.epochs + 1, grace_period=min(settings.grace_epochs, settings.epochs), reduction_factor=3
    )


def _domain(domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return tune.choice([_plain(value) for value in domain.values])
    if isinstance(domain, Integer):
        return tune.randint(domain.low, domain.high + 1)
    return tune.loguniform(domain.low, domain.high) if isinstance(domain, LogUniform) else tune.uniform(domain.low, domain.high)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _record(draw: Mapping[str, Any], result: Mapping[str, Any], error: Exception | None) -> dict[str, Any]:
    record: dict[str, Any] = {"overrides": overrides_of({key: _number(value) for key, value in draw.items()})}
    if "lowest" in result:
        record |= {METRIC: float(result["lowest"]), "epochs": int(result["epochs"]), "finished": "final" in result}
    if "final" in result:
        record["metrics"] = dict(result["final"])
    if error is not None:
        cause = getattr(error, "cause", None) or error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        record["error"] = f"{type(cause).__name__}: {lines[-1] if lines else 'no message'}"
    return record


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


@contextmanager
def _no_loggers() -> Iterator[None]:
    """Ray Tune writes CSV, JSON and TensorBoard logs of its own accord; the trials are in the result."""
    name = "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"
    given = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if given is None:
            del os.environ[name]
        else:
            os.environ[name] = given
