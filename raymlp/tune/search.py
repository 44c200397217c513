"""Run the trials of a study with Ray Tune.

What a trial does comes from the caller, so this room knows nothing of training. Which settings are tried is `draws.py`'s, what is
kept is `study.py`'s: of Ray Tune's own state files none is ever read, and they are removed when a study ends.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, PopulationBasedTraining
from ray.tune.search.search_algorithm import SearchAlgorithm

from raymlp.config.schema import Config
from raymlp.config.tune import CONTINUED, Choice, Integer, Population, Tune
from raymlp.core.errors import TrainingError
from raymlp.core.files import Place
from raymlp.core.records import Interval
from raymlp.runtime.store import ray_storage, remove
from raymlp.tune.checks import at_a_time, check, resources
from raymlp.tune.draws import Draws, beginning, draws_of
from raymlp.tune.space import Draw, plain, sampled, trial_config
from raymlp.tune.study import Study, earlier
from raymlp.tune.trials import LOSS, Trial

Save = Callable[[Path], None]
Report = Callable[[dict[str, float], Save | None], bool]
"""Hears an epoch's metrics (`valid_loss` among them) and, where a checkpoint can be had, what writes it. True: end with this epoch."""
Objective = Callable[[Config, Report, Path | None], Mapping[str, float]]
"""Trains by a config, reports each epoch, and gives the final metrics; from a checkpoint where one is given. `interval_low` and
`interval_high` among the metrics are those of the main metric."""
OnTrial = Callable[[Trial], None]
OVERTIME_S = 20.0
"""Seconds after the time of a study is over in which a running epoch may end by itself, or a tenth of that time where it is more."""
STATE = "trial.json"


@dataclass(frozen=True)
class Found:
    """What a study gave: its folder, its config with the space that was searched, and its trials by number."""

    folder: Place
    config: Config
    trials: tuple[Trial, ...]
    resumed: bool
    notes: tuple[str, ...] = ()


def search(config: Config, objective: Objective, *, root: Place, snapshot: str, on_trial: OnTrial | None = None) -> Found:
    """Run the trials of the study that `config.tune` describes, or those that are left of it. Needs Ray.

    The study is a folder of `root`; `snapshot` is the digest of the data. `on_trial` hears each trial when it has ended. Random and
    grid draws depend on `tune.seed` alone; which trials a scheduler stops also depends on which are quicker, and so do the draws of
    `tpe` and the changes of `pbt`.

    Raises ConfigError before any trial when a key or a bound of the space is wrong, when the study was made with other settings,
    or when no trial can ever run; TrainingError when every trial failed.
    """
    check(config)
    at_once, _ = at_a_time(config, ray.cluster_resources())
    told, points = earlier(config, root=root, snapshot=snapshot)
    with Study.open(config, root=root, snapshot=snapshot) as study:
        settings = beginning(config.tune, points)
        draws = draws_of(settings, seen=[*told, *study.trials])
        heard = _Listener(config, study, draws, on_trial or (lambda _: None))
        supply = _Supply(settings, draws, {trial.number for trial in study.trials}, at_once)
        if not supply.is_finished():
            scratch = study.folder / ".ray"
            _clear(scratch)
            try:
                with _ray_tune_settings():
                    _tuner(config, objective, supply, heard, scratch, at_once).fit()
            finally:
                _clear(scratch)
        trials = sorted(study.trials, key=lambda trial: trial.number)
        if trials and all(trial.error for trial in trials):
            raise TrainingError(f"all {len(trials)} trials failed; the first: {trials[0].error}")
        if not any(trial.values for trial in trials):
            raise TrainingError(f"no trial came to the end of an epoch in {config.tune.minutes:g} minutes. Set tune.minutes.")
        notes = [f"{len(told)} trials of {', '.join(config.tune.warm_start)} were learned from"] if told else []
        notes += [f"{len(points)} settings of {', '.join(config.tune.warm_start)} were tried first"] if points else []
        return Found(study.folder, config, tuple(trials), study.resumed, tuple(notes))


def _clear(scratch: Place) -> None:
    with suppress(OSError):  # what still writes there leaves something
        remove(scratch)


def _tuner(config: Config, objective: Objective, supply: _Supply, heard: _Listener, scratch: Place, at_once: int) -> tune.Tuner:
    settings = config.tune
    deadline = time.time() + 60 * settings.minutes if settings.minutes else None
    supply.deadline = deadline
    population = isinstance(settings.searcher, Population)

    def trial(draw: dict[str, Any]) -> None:
        ends = [deadline] if deadline else []
        ends += [time.time() + 60 * settings.trial_minutes] if settings.trial_minutes else []
        _run(config, draw, objective, deadline=min(ends, default=None), population=population)

    needs = resources(config)
    if settings.workers == "as_train":  # its workers take their own CPUs, the trial only waits for them; Ray wants some request
        needs = {"memory": float(1 << 20)}
    elif population:  # Ray Tune starts as many as fit, whatever `max_concurrent` says
        needs = {"CPU": max(1.0, ray.cluster_resources()["CPU"] // at_once)}
    return tune.Tuner(
        tune.with_resources(trial, needs),
        tune_config=tune.TuneConfig(
            metric=LOSS,
            mode="min",
            search_alg=supply,
            scheduler=_scheduler(settings),
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="trials",
            **ray_storage(scratch),
            stop=_TimeIsOver(deadline, settings.minutes) if deadline and settings.minutes else None,
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            verbose=1 if config.runtime.verbose else 0,
            callbacks=[heard],
        ),
    )


def _run(config: Config, draw: Draw, objective: Objective, *, deadline: float | None, population: bool) -> None:
    """One trial, in its process. An error of training, or settings that cannot be together, are told as the trial's result: only the
    death of the process is tried again."""
    last: dict[str, Any] = {}
    main = config.problem.main_metric
    checkpoint = tune.get_checkpoint() if population else None

    def report(metrics: dict[str, float], save: Save | None = None) -> bool:
        nonlocal last
        lower = "lowest" not in last or metrics[LOSS] < last["lowest"]
        last = {
            LOSS: metrics[LOSS],
            "lowest": metrics[LOSS] if lower else last["lowest"],
            "main": metrics.get(f"valid_{main}") if lower else last["main"],
            "epochs": last.get("epochs", 0) + 1,
        }
        with _checkpoint(save if population else None, last) as made:
            tune.report(last, checkpoint=made)
        return deadline is not None and time.time() > deadline

    try:
        settings = trial_config(config, draw)
        if checkpoint is None:
            final = objective(settings, report, None)
        else:
            with checkpoint.as_directory() as folder:
                last = json.loads((Path(folder) / STATE).read_text())
                final = objective(settings, report, Path(folder))
    except Exception as error:
        tune.report({**last, "error": _root_cause(error)})
        return
    cut = deadline is not None and time.time() > deadline and last.get("epochs", 0) < config.tune.epochs
    tune.report({**last, "final": dict(final), "cut": cut})


@contextmanager
def _checkpoint(save: Save | None, state: Mapping[str, Any]) -> Iterator[Any]:
    if save is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="raymlp-trial-") as name:
        save(Path(name))
        (Path(name) / STATE).write_text(json.dumps(state))
        yield tune.Checkpoint.from_directory(name)


def _root_cause(error: BaseException) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no message'}"


class _Supply(SearchAlgorithm):  # type: ignore[misc]
    """Gives Ray Tune its trials, at most so many at a time, by the numbers that the study has not seen."""

    def __init__(self, settings: Tune, draws: Draws, ended: set[int], at_once: int) -> None:
        self._limit, self._draws, self._ended = settings.limit, draws, ended
        self._at_once = settings.limit if settings.searcher.kind == "pbt" and settings.limit else at_once
        self._live: set[str] = set()
        self._next = 0
        self._spec: dict[str, Any] = {}
        self._parser = _make_parser()
        self.deadline: float | None = None
        self._skip()

    def add_configurations(self, experiments: Sequence[Any]) -> None:
        self._spec = experiments[0].spec

    def next_trial(self) -> Any:
        if self.is_finished() or len(self._live) >= self._at_once:
            return None
        if self.deadline is not None and time.time() > self.deadline:
            return self.set_finished()
        number = self._next
        draw = self._draws.draw(number)
        if draw is None:
            return self.set_finished()
        self._next += 1
        self._skip()
        trial = _create_trial_from_spec(
            {**self._spec, "config": draw}, self._parser, evaluated_params=draw, trial_id=_name(number), experiment_tag=str(number)
        )
        self._live.add(trial.trial_id)
        return trial

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._live.discard(trial_id)

    def _skip(self) -> None:
        while self._next in self._ended:
            self._next += 1
        if self._limit is not None and self._next >= self._limit:
            self.set_finished()


class _Listener(tune.Callback):  # type: ignore[misc]
    """Keeps every trial that ends, and tells the draws and the caller of it."""

    def __init__(self, config: Config, study: Study, draws: Draws, on_trial: OnTrial) -> None:
        self._config, self._study, self._draws, self._on_trial = config, study, draws, on_trial
        self._started: dict[str, float] = {}
        self._told: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._started.setdefault(trial.trial_id, time.monotonic())

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._keep(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        times = trial.run_metadata.num_failures
        self._keep(trial, f"the trial's process died{f' {times} times' if times > 1 else ''}: {_death(trial)}")
        trial.run_metadata.pickled_error_filename = None  # else Ray Tune unpickles it from the study's folder

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Trials that were stopped when the time was over."""
        for trial in trials:
            if trial.status == trial.TERMINATED:
                self._keep(trial, None)

    def _keep(self, trial: Any, death: str | None) -> None:
        if trial.trial_id in self._told:
            return
        self._told.add(trial.trial_id)
        seconds = time.monotonic() - self._started.get(trial.trial_id, time.monotonic())
        ended = as_trial(self._config, _number(trial.trial_id), trial.config, trial.last_result or {}, seconds=seconds, death=death)
        self._study.add(ended)
        self._draws.tell(ended)
        self._on_trial(ended)


def as_trial(
    config: Config, number: int, draw: Mapping[str, Any], result: Mapping[str, Any], *, seconds: float = 0.0, death: str | None = None
) -> Trial:
    """A trial from what it last reported."""
    final = dict(result.get("final") or {})
    bounds = [final.pop(name, None) for name in ("interval_low", "interval_high")]
    main = config.problem.main_metric
    known = {main: result.get("main"), **final} | ({LOSS: result["lowest"]} if "lowest" in result else {})
    error = death or result.get("error")
    if not error and not result.get("epochs") and not final:
        error = "the time was over before the first epoch ended"
    return Trial(
        number=number,
        draw={key: plain(value) for key, value in draw.items()},
        state="failed" if error else "finished" if final and not result.get("cut") else "stopped",
        values={} if error else {name: float(known[name]) for name in config.tune.objectives if known.get(name) is not None},
        epochs=int(result.get("epochs", 0)),
        seconds=seconds,
        metrics={name: float(value) for name, value in final.items()},
        interval=Interval(final[main], *map(float, bounds)) if final and None not in bounds else None,
        error=error,
    )


def _name(number: int) -> str:
    return f"t{number:05d}"


def _number(trial_id: str) -> int:
    return int(trial_id.removeprefix("t"))


def _death(trial: Any) -> str:
    """The words of Ray about a process that is gone."""
    lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
    told = [line for line in lines if "Worker unexpectedly exits" in line or "exit type" in line.lower() or "OutOfMemory" in line]
    return (told or lines or ["no message"])[-1]


class _TimeIsOver(tune.Stopper):  # type: ignore[misc]
    """Ends what still runs when the time is over and an epoch has not ended by itself since."""

    def __init__(self, deadline: float, minutes: float) -> None:
        self._end = deadline + max(OVERTIME_S, 6 * minutes)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return time.time() > self._end


def _scheduler(settings: Tune) -> Any:
    """By epochs. A trial that comes to its last epoch is left to end by itself, so that its final metrics arrive."""
    if isinstance(settings.searcher, Population):
        return _population(settings, settings.searcher)
    grace = min(settings.grace_epochs, settings.epochs)
    if settings.scheduler == "none":
        return FIFOScheduler()
    if settings.scheduler == "median":
        return MedianStoppingRule(time_attr="epochs", grace_period=grace, min_samples_required=3)
    return ASHAScheduler(time_attr="epochs", max_t=settings.epochs + 1, grace_period=grace, reduction_factor=3)


def _population(settings: Tune, searcher: Population) -> Any:
    import numpy as np

    changing = {key: settings.space[key] for key in CONTINUED if key in settings.space}
    rng = np.random.default_rng([settings.seed, 1])

    def anew(key: str) -> Callable[[], Any]:
        return lambda: sampled({key: changing[key].model_copy(update={"when": {}})}, rng)[key]

    def inside(draw: Draw) -> Draw:
        """Ray moves a number by a fifth, whatever the bounds."""
        for key, domain in changing.items():
            if key in draw and not isinstance(domain, Choice | Integer):
                draw[key] = min(max(float(draw[key]), domain.low), domain.high)
        return draw

    return PopulationBasedTraining(
        time_attr="epochs",
        perturbation_interval=searcher.interval_epochs,
        quantile_fraction=searcher.quantile,
        resample_probability=searcher.resample,
        hyperparam_mutations={
            key: [plain(value) for value in domain.values] if isinstance(domain, Choice) else anew(key) for key, domain in changing.items()
        },
        custom_explore_fn=inside,
        log_config=False,
        require_attrs=False,
    )


@contextmanager
def _ray_tune_settings() -> Iterator[None]:
    """Ray Tune writes CSV, JSON and TensorBoard logs of its own accord; the trials are in the study. A trial's error comes without a loss.
    A process that does not end its epoch when the time is over is killed. Ctrl-C is the caller's."""
    wanted = {
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
    }
    given = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in given.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
