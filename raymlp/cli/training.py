"""Verbs that make models."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from raymlp.cli.command import Overrides, Verbose, app, config_from, placed, running
from raymlp.cli.screens import show_columns, show_done, show_result, show_trials


@app.command()
def train(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Train a model into a bundle."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config) as story:
        model = pipeline.train(config, story=story)
    show_done({"bundle": str(model.bundle), "MLflow run": model.run_id})
    show_result(config.problem.main_metric, model.metrics[config.problem.main_metric])


@app.command()
def crossvalidate(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Train a model for each of data.split.folds; mean, spread and out-of-fold scores."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config) as story:
        result = pipeline.crossvalidate(config, story=story)
    folds = [f"fold {fold + 1}" for fold in range(len(result.models))]
    rows = [
        (name, *(f"{model.metrics[name]:.4f}" for model in result.models), str(spread), f"{result.out_of_fold[name]:.4f}")
        for name, spread in result.metrics.items()
        if name in result.out_of_fold
    ]
    show_columns(("", *folds, "mean ± deviation", "out of fold"), rows)
    show_done({"predictions": str(result.predictions), "MLflow run": result.run_id})
    show_result(config.problem.main_metric, result.metrics[config.problem.main_metric].mean)


@app.command()
def find(
    what: Annotated[Literal["learning-rate", "batch-size"], typer.Argument(help="What to look for.")],
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Look for a learning rate or a batch size by real training steps; prints it as an override."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config) as story:
        found = pipeline.find(config, what, story=story)
    show_columns(found.titles, found.rows)
    show_done({"suggestion": found.best, **{file.name.rpartition(".")[2]: str(file) for file in found.files}})


@app.command()
def reproduce(
    model: Annotated[str, typer.Argument(help="A bundle folder, NAME@ALIAS, or a run's id.")],
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Make a recorded run again and compare it bit by bit; exit code 1 when it differs."""
    from raymlp import pipeline
    from raymlp.core.errors import TrainingError

    with placed(overrides, verbose) as (site, story):
        result = pipeline.reproduce(model, site, story=story)
    rows = [(item.name, item.recorded, item.again, "same" if item.same else "differs") for item in result.facts]
    show_columns(("", "recorded", "again", ""), rows)
    if result.differences:
        if result.unrepeatable:
            raise TrainingError(
                f"{len(result.differences)} of {len(result.facts)} facts differ from run {result.run_id}, as they must: "
                f"{'; '.join(result.unrepeatable)}."
            )
        moved = [f"{item.name} was {item.recorded} and is {item.again}" for item in result.environment if not item.same]
        told = "; ".join(moved) or ("the environment is the same" if result.environment else "the bundle does not say where it was made")
        raise TrainingError(f"{len(result.differences)} of {len(result.facts)} facts differ from run {result.run_id}: {told}.")


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="A bundle folder, NAME@ALIAS, or a run's id.")],
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Walk from a model back to run, code, config, snapshot and source files, and say what is missing or has changed since."""
    from raymlp import pipeline

    with placed(overrides, verbose) as (site, _):
        found = pipeline.trace(model, site)
    show_columns(("", "recorded", "", ""), [(item.kind, item.recorded, item.state, item.note) for item in found.stations])


@app.command()
def tune(
    overrides: Overrides = None,
    minutes: Annotated[
        float | None, typer.Option(help="Try the model families that suit the data, for so many minutes: tune=auto tune.minutes=N.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Search settings: a study with a page, and its best settings as an overlay for `raymlp train`."""
    from raymlp import pipeline

    automatic = [] if minutes is None else ["tune=auto", f"tune.minutes={minutes:g}"]
    config = config_from([*automatic, *(overrides or ())], verbose)
    with running(config) as story:
        result = pipeline.tune(config, story=story)
    show_trials(result, story.console)
    name = config.problem.name
    show_done(
        {
            "best settings": " ".join(result.best),
            "train them": f"raymlp train experiment={name} overlay={result.overlay}",
            "page": str(result.report),
            "go on": f"the same command with tune.study={result.study}",
        }
    )
    show_result(result.metric, result.score)
