"""Verbs of models that are there: judged, served, watched."""

from __future__ import annotations

from typing import Annotated

import typer

from raymlp.cli.command import Overrides, Verbose, app, config_from, running, until_interrupted
from raymlp.cli.screens import show_done, show_findings, show_run


@app.command()
def evaluate(
    bundle: Annotated[str, typer.Argument(help="A bundle: its folder or address.")], overrides: Overrides = None, verbose: Verbose = False
) -> None:
    """Judge a bundle beside the baselines; exit code 3 when the gate refuses it."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config) as story:
        evaluation = pipeline.evaluate(config, bundle, story=story)
    show_done({"report": str(evaluation.report)})
    pipeline.require(evaluation.gate)


@app.command()
def register(
    bundle: Annotated[str, typer.Argument(help="A bundle: its folder or address.")], overrides: Overrides = None, verbose: Verbose = False
) -> None:
    """Add a bundle to the registry: as the champion where there is none, else as the challenger."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config) as story:
        registration = pipeline.register(config, bundle, story=story)
    show_done({"version": f"{registration.name}/{registration.version}", "bundle": str(registration.bundle)})


@app.command()
def deploy(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Serve the champion (or serve.model) until Ctrl-C; on a cluster it goes on after the command."""
    from raymlp import pipeline
    from raymlp.runtime.session import ray_session, stays

    config = config_from(overrides, verbose)
    with running(config) as story, ray_session(config.runtime):
        endpoint = pipeline.deploy(config, story=story)
        if not stays(config.runtime):
            until_interrupted(endpoint)
            pipeline.undeploy(config)


@app.command()
def doctor(overrides: Overrides = None) -> None:
    """Look at this machine, or the cluster of runtime.address, for what the endpoint needs; exit code 1 when something is missing."""
    from raymlp.doctor import doctor as examined
    from raymlp.doctor import is_well

    found = examined(config_from(overrides, False))
    show_findings(found)
    if not is_well(found):
        raise typer.Exit(1)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A bundle folder, NAME@ALIAS, or NAME/VERSION.")],
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Answer all rows of a source into Parquet files; the same command goes on where it was cut off. Needs no experiment."""
    from raymlp import pipeline

    config = pipeline.config_of(model, [*(overrides or ()), *(["runtime.verbose=true"] if verbose else ())])
    with running(config) as story:
        result = pipeline.predict(config, model, story=story)
    show_done({"answers": result.output, "quarantine": result.quarantine if result.quarantined else "none"})


@app.command()
def monitor(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Compare the champion's prediction log and late labels with training."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config) as story:
        report = pipeline.monitor(config, story=story)
    show_done({"report": str(report.report)})


@app.command()
def retrain(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Ask the retrain policy; train, compare and register a challenger when it says so."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config) as story:
        result = pipeline.retrain(config, story=story)
    show_done({"policy": str(result.decision), **({"gate": str(result.gate)} if result.gate else {})})
    if result.gate:
        pipeline.require(result.gate)


@app.command()
def run(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """The whole life: prepare, train, evaluate, register, deploy, replay, monitor, retrain, roll out."""
    from raymlp import life

    config = config_from(overrides, verbose)
    with running(config) as story:
        summary = life.run(config, story=story, on_ready=until_interrupted)
    show_run(config, summary, story)
