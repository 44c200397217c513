"""Verbs of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raymlp.cli.command import Overrides, Verbose, app, config_from, running
from raymlp.cli.screens import show_broken_rules, show_done, show_table


@app.command()
def init(
    data_file: Annotated[Path, typer.Argument(help="A CSV or Parquet file.")],
    target: Annotated[
        str | None, typer.Option(help="Column to predict. Columns of a file without header are column_0, column_1, ...")
    ] = None,
    task: Annotated[str | None, typer.Option(help="In place of a target: clustering or anomaly, which learn from the rows alone.")] = None,
    name: Annotated[str, typer.Option(help="Name of the experiment; empty takes the file's.")] = "",
    force: Annotated[bool, typer.Option(help="Overwrite an existing experiment.")] = False,
) -> None:
    """Look at a data file and write conf/experiment/NAME.yaml for it."""
    from rich.console import Console

    from raymlp.data.suggest import write_experiment

    written = write_experiment(data_file, target, task=task, name=name, folder=Path.cwd() / "conf" / "experiment", force=force)
    console = Console(highlight=False)
    for line in written.remarks:
        console.print(f"  {line}", markup=False)
    console.print(f"Wrote {written.path}. Next: raymlp {'run' if target else 'train'} experiment={written.path.stem}", markup=False)


@app.command()
def plan(overrides: Overrides = None) -> None:
    """Check everything that can be checked in two seconds, and say what a run would do."""
    from rich.console import Console

    from raymlp.core.errors import ConfigError
    from raymlp.pipeline import plan as preflight

    report = preflight(config_from(overrides, False))
    show_table(Console(highlight=False), "plan", report.facts.items())
    if report.problems:
        raise ConfigError("\n".join(report.problems))


@app.command()
def prepare(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Read, join, check, split and profile the data into a snapshot."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config) as story:
        snapshot = pipeline.prepare(config, story=story)
    show_done({"snapshot": str(snapshot.path), "contract": str(snapshot.path / "contract.yaml")})


@app.command()
def profile(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Show what the data holds: one HTML page, prepared first where needed."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config) as story:
        result = pipeline.profile(config, story=story)
    show_done({"snapshot": str(result.snapshot.path), "page": str(result.report)})


@app.command()
def contract(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Where to write the contract that is inferred.")] = Path("contract.yaml"),
    check: Annotated[Path | None, typer.Option(help="A contract to check the source against, in place of inferring one.")] = None,
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
    verbose: Verbose = False,
) -> None:
    """Write what the columns may hold to a file, or check the source against such a file; exit code 1 when it breaks."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config) as story:
        if check is None:
            written = pipeline.infer_contract(config, out, force=force, story=story)
            return show_done({"contract": str(written), "use it": f"data.contract={written}"})
        broken = pipeline.check_contract(config, check, story=story)
    return show_broken_rules(check, broken)


@app.command()
def forget(
    overrides: Overrides = None,
    key: Annotated[str, typer.Option(help="COLUMN=VALUE: remove the rows whose raw value this is, and keep them out.")] = "",
    expired: Annotated[bool, typer.Option("--expired", help="Remove the rows older than data.privacy.retention_days.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and remove nothing.")] = False,
    verbose: Verbose = False,
) -> None:
    """Remove a person's rows from snapshots, prediction log and labels, and name the models trained on them."""
    from raymlp import pipeline
    from raymlp.core.errors import ConfigError

    config = config_from(overrides, verbose)
    column, sign, value = key.partition("=")
    if key and not (column and sign and value):
        raise ConfigError("--key has no COLUMN=VALUE; expected, for example, --key email=ann@example.org.")
    with running(config) as story:
        result = pipeline.forget(config, (column, value) if key else None, expired=expired, dry_run=dry_run, story=story)
    show_done({"models to retrain": ", ".join(result.models) or "none", "snapshots": ", ".join(result.snapshots) or "none"})
