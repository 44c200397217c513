"""What a study leaves: the best settings as an overlay, one HTML page, and the record that the caller gets."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from raymlp.config.schema import Config
from raymlp.core.files import write_text
from raymlp.core.records import Interval, TuneResult
from raymlp.runtime.page import render
from raymlp.tune.importance import importance
from raymlp.tune.search import Found
from raymlp.tune.space import overrides_of
from raymlp.tune.study_svg import importance_bars, parallel_coordinates, trade_off
from raymlp.tune.trials import Trial, pareto, ranked

TEMPLATE = Path(__file__).with_name("study.html.j2")
OVERLAY, PAGE = "best.yaml", "study.html"


def conclude(found: Found) -> TuneResult:
    """Write `best.yaml` and `study.html` into the study's folder; the result that names them."""
    config, objectives = found.config, found.config.tune.objectives
    order = ranked(found.trials, objectives[0])
    best = order[0]
    overlay = write_text(found.folder / OVERLAY, overlay_of(config, best, study=found.folder.name))
    page = write_text(found.folder / PAGE, page_of(found))
    last = sorted((trial for trial in found.trials if trial not in order), key=lambda trial: trial.number)
    return TuneResult(
        best=tuple(overrides_of(best.draw)),
        metric=objectives[0],
        score=best.values[objectives[0]],
        trials=tuple(_row(trial) for trial in [*order, *last]),
        pareto=tuple(trial.number for trial in pareto(found.trials, objectives)),
        study=found.folder.name,
        overlay=overlay,
        report=page,
    )


def _row(trial: Trial) -> dict[str, Any]:
    """A trial in plain values: its `overrides`, and the same with numbers of three digits as `shown`."""
    shown = overrides_of({key: _short(value) for key, value in trial.draw.items()})
    return {**asdict(trial), "overrides": overrides_of(trial.draw), "shown": shown, "interval": trial.interval}


def overlay_of(config: Config, best: Trial, *, study: str) -> str:
    """YAML that `overlay=PATH` lays over a config: the trial's settings, its epochs, and its kind of model."""
    values: dict[str, Any] = {}
    for key, value in {"model.kind": config.model.kind, "train.epochs": config.tune.epochs, **best.draw}.items():
        *parents, last = key.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    objective = config.tune.objectives[0]
    head = f"# Trial {best.number} of the study {study}: {objective} {best.values[objective]:.6g} on validation.\n"
    if config.tune.searcher.kind == "pbt":
        head += "# These are its last settings: population based training changed them on the way.\n"
    return head + f"# raymlp train experiment={config.problem.name} overlay=THIS_FILE\n" + yaml.safe_dump(values, sort_keys=False)


def leaders(trials: tuple[Trial, ...], objective: str) -> dict[str, Trial]:
    """The best trial of each model family, best first; empty where the study has one family."""
    best: dict[str, Trial] = {}
    for trial in ranked(trials, objective):
        best.setdefault(str(trial.draw.get("model.kind", "")), trial)
    return best if len(best) > 1 else {}


def page_of(found: Found) -> str:
    """The page of a study."""
    config, objectives = found.config, found.config.tune.objectives
    order = ranked(found.trials, objectives[0])
    shares = importance(found.trials, config.tune.space, objectives[0])
    families = leaders(found.trials, objectives[0])
    states = Counter(trial.state for trial in found.trials)
    rest = sorted((trial for trial in found.trials if trial not in order), key=lambda trial: trial.number)
    bounds = [trial.interval for trial in families.values() if trial.interval]
    front = {trial.number for trial in pareto(found.trials, objectives)}
    return render(
        TEMPLATE,
        study=found.folder.name,
        problem=config.problem,
        objective=objectives[0],
        objectives=objectives,
        main_shown=config.problem.main_metric in objectives,
        several=len(objectives) > 1,
        pareto=front,
        trade_off=trade_off(found.trials, objectives, front) if len(objectives) > 1 and front else "",
        best=order[0],
        best_settings=[word.split("=", 1) for word in overrides_of(order[0].draw)],
        overlay=found.folder / OVERLAY,
        counts={state: states[state] for state in ("finished", "stopped", "failed")},
        epochs=sum(trial.epochs for trial in found.trials),
        most_epochs=len(found.trials) * config.tune.epochs,
        seconds=statistics.median(trial.seconds for trial in found.trials),
        at_once=config.tune.max_concurrent,
        families=[{"family": name, "trial": trial, "places": _places(trial.interval, bounds)} for name, trial in families.items()],
        mark=_places(next((trial.interval for trial in families.values() if trial.interval), None), bounds)[:1],
        coordinates=parallel_coordinates(found.trials, config.tune.space, objectives[0]),
        unplaced=len(rest),
        importance=importance_bars(shares) if shares else "",
        rows=[*order, *rest],
        words={trial.number: _row(trial)["shown"] for trial in found.trials},
        facts=_facts(found),
    )


def _places(interval: Interval | None, bounds: list[Interval]) -> tuple[float, float, float]:
    """Estimate, low and high as shares of the width that all intervals take; none without an interval."""
    if interval is None:
        return ()  # type: ignore[return-value]
    low = min(item.low for item in bounds)
    width = (max(item.high for item in bounds) - low) or 1.0
    return (interval.value - low) / width, (interval.low - low) / width, (interval.high - low) / width


def _short(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _facts(found: Found) -> Mapping[str, str]:
    settings = found.config.tune
    return {
        "searcher": settings.searcher.kind,
        "scheduler": "of the population" if settings.searcher.kind == "pbt" else settings.scheduler,
        "epochs of a trial": f"at most {settings.epochs}",
        "workers of a trial": "one process" if settings.workers == "one" else f"{found.config.train.num_workers}, as in train",
        "seed": str(settings.seed),
        "latency": "one row through feature plan and model: the lowest of several medians, beside other trials",
        "went on": "yes, from the trials that an earlier start left" if found.resumed else "no",
        "notes": "; ".join(found.notes) or "none",
    }
