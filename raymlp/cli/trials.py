"""Verbs of versions that are tried on live traffic: experiments and the shadow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from raymlp.cli.command import Overrides, Verbose, config_from, experiment, running, shadow
from raymlp.cli.screens import show_columns, show_done

if TYPE_CHECKING:
    from raymlp.serve.experiment.report import Analysis


@experiment.command("start")
def start_experiment(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Give the versions of serve.experiment shares of the endpoint's traffic; tells first what can be found, and when."""
    from raymlp import pipeline
    from raymlp.runtime.session import ray_session

    config = config_from(overrides, verbose)
    with running(config) as story, ray_session(config.runtime):
        record = pipeline.start_experiment(config, story=story)
    show_done({"experiment": record.salt, "arms": ", ".join(f"{arm} {share:.1%}" for arm, share in record.weights.items())})


@experiment.command("status")
def experiment_status(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """What the running experiment, or the newest, shows now; looking costs nothing."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config):
        analysis = pipeline.experiment(config)
    show_analysis(analysis)


@experiment.command("watch")
def watch_experiment(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Look until there is a verdict or the time is over; a bandit's weights move meanwhile."""
    from raymlp import pipeline
    from raymlp.runtime.session import ray_session

    config = config_from(overrides, verbose)
    with running(config) as story, ray_session(config.runtime):
        analysis = pipeline.watch_experiment(config, story=story)
    show_analysis(analysis)


@experiment.command("stop")
def stop_experiment(
    overrides: Overrides = None, reason: Annotated[str, typer.Option(help="Why, for the record.")] = "", verbose: Verbose = False
) -> None:
    """End the running experiment: the control serves alone."""
    from raymlp import pipeline
    from raymlp.runtime.session import ray_session

    config = config_from(overrides, verbose)
    with running(config), ray_session(config.runtime):
        record = pipeline.stop_experiment(config, reason=reason)
    show_done({"stopped": record.salt, "serves": record.arms[0]})


@experiment.command("report")
def report_experiment(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Write the page of the running experiment, or of the newest."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config):
        page = pipeline.report_experiment(config)
    show_done({"report": str(page)})


@shadow.command("set")
def set_shadow(
    share: Annotated[float, typer.Argument(help="Share of the champion's requests that are copied, above 0 and up to 1.")],
    overrides: Overrides = None,
    model: Annotated[str, typer.Option(help="NAME@ALIAS, NAME/VERSION or a bundle folder; serve.shadow.model by default.")] = "",
    verbose: Verbose = False,
) -> None:
    """Let a version answer copies of requests to the running endpoint, unseen."""
    from raymlp import pipeline
    from raymlp.runtime.session import ray_session

    config = config_from(overrides, verbose)
    with running(config), ray_session(config.runtime):
        label = pipeline.set_shadow(config, model, share)
    show_done({"shadow": label, "share": f"{share:.1%}"})


@shadow.command("off")
def end_shadow(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Take the shadow away."""
    from raymlp import pipeline
    from raymlp.runtime.session import ray_session

    config = config_from(overrides, verbose)
    with running(config), ray_session(config.runtime):
        pipeline.end_shadow(config)


@shadow.command("report")
def shadow_report(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """The shadow's answers beside the champion's for the same rows."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config):
        reports = pipeline.shadow_report(config)
    rows = []
    for one in reports:
        rows += [
            ("versions", f"{one.shadow} beside {one.champion}"),
            ("rows", f"{one.rows:,}; {one.failed:,} failed, {one.refused:,} refused"),
            ("labels changed", f"{one.changed:.2%}"),
            ("difference, mean", f"{one.mean:+.4g}"),
            *((f"difference, p{100 * q:g}", f"{value:+.4g}") for q, value in one.quantiles.items()),
            *((f"latency ms, p{100 * q:g}", f"{one.shadow_ms[q]:.2f} beside {one.champion_ms[q]:.2f}") for q in (0.5, 0.95, 0.99)),
        ]
    show_columns(("", "shadow minus champion"), rows or [("rows", "0: no shadow has answered yet")])


def show_analysis(analysis: Analysis) -> None:
    """The verdict with its reasons, and a row for each metric and arm."""
    record = analysis.record
    rows = []
    for reading in (reading for row in analysis.readings for reading in row):
        effect = reading.effect
        interval = f"{effect.low:+.4g} to {effect.high:+.4g}" if effect.is_known else reading.why
        rows.append(
            (
                reading.metric,
                record.arms[reading.arm],
                f"{effect.control:.4g}",
                f"{effect.difference:+.4g}",
                interval,
                f"{effect.rows:,}",
                reading.finding,
            )
        )
    show_columns(("metric", "arm", f"control {record.arms[0]}", "difference", "interval", "rows", "finding"), rows)
    keys = zip(record.arms, record.history[-1].weights, analysis.seen.keys, strict=True)
    traffic = ", ".join(f"{arm} {share:.1%} ({number:,} keys)" for arm, share, number in keys)
    verdicts = {record.arms[verdict.arm]: f"{verdict.call}: {'; '.join(verdict.reasons)}" for verdict in analysis.outcome.verdicts}
    show_done({"experiment": f"{record.salt[:8]}, {record.state}", "traffic": traffic, **verdicts, "verdict": analysis.outcome.reason})
