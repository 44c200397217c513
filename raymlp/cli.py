"""The command line: a verb, then Hydra overrides. `jobs/*.py` are the same doors for `ray job submit`.

Exit codes: 0 done, 1 a run failed, 2 wrong configuration, 3 the gate refused, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

import typer

if TYPE_CHECKING:
    from raymlp.config.schema import Config, Site
    from raymlp.core.records import Endpoint, RunSummary, TuneResult
    from raymlp.data.rules import BrokenRule
    from raymlp.runtime.progress import Story

app = typer.Typer(
    help="From raw table to a served, canaried, monitored model that retrains itself, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
SHOWN_TRIALS = 30
keys = typer.Typer(help="API keys of the endpoint: who may ask it what, until when.", no_args_is_help=True)
audit = typer.Typer(help="The log of who did what to which version.", no_args_is_help=True)
app.add_typer(keys, name="keys")
app.add_typer(audit, name="audit")
KeysFile = Annotated[Path, typer.Option("--file", help="The file of keys: serve.keys_file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides: experiment=flights train.epochs=3")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the output of Ray, Lightning, DeepSpeed and MLflow.")]


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

    report = preflight(_config(overrides, False))
    _table(Console(highlight=False), "plan", report.facts.items())
    if report.problems:
        raise ConfigError("\n".join(report.problems))


@app.command()
def prepare(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Read, join, check, split and profile the data into a snapshot."""
    from raymlp import pipeline

    config = _config(overrides, verbose)
    with _running(config) as story:
        snapshot = pipeline.prepare(config, story=story)
    _done({"snapshot": str(snapshot.path), "contract": str(snapshot.path / "contract.yaml")})


@app.command()
def profile(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Show what the data holds: one HTML page, prepared first where needed."""
    from raymlp import pipeline

    config = _config(overrides, verbose)
    with _running(config) as story:
        result = pipeline.profile(config, story=story)
    _done({"snapshot": str(result.snapshot.path), "page": str(result.report)})


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

    config = _config(overrides, verbose)
    with _running(config) as story:
        if check is None:
            written = pipeline.infer_contract(config, out, force=force, story=story)
            return _done({"contract": str(written), "use it": f"data.contract={written}"})
        broken = pipeline.check_contract(config, check, story=story)
    return _broken_rules(check, broken)


@app.command()
def train(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Train a model into a bundle."""
    from raymlp import pipeline

    config = _config(overrides, verbose)
    with _running(config) as story:
        model = pipeline.train(config, story=story)
    _done({"bundle": str(model.bundle), "MLflow run": model.run_id})


@app.command()
def crossvalidate(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Train a model for each of data.split.folds; mean, spread and out-of-fold scores."""
    from raymlp import pipeline

    config = _config(overrides, verbose)
    with _running(config) as story:
        result = pipeline.crossvalidate(config, story=story)
    folds = [f"fold {fold + 1}" for fold in range(len(result.models))]
    rows = [
        (name, *(f"{model.metrics[name]:.4f}" for model in result.models), str(spread), f"{result.out_of_fold[name]:.4f}")
        for name, spread in result.metrics.items()
        if name in result.out_of_fold
    ]
    _columns(("", *folds, "mean ± deviation", "out of fold"), rows)
    _done({"predictions": str(result.predictions), "MLflow run": result.run_id})


@app.command()
def find(
    what: Annotated[Literal["learning-rate", "batch-size"], typer.Argument(help="What to look for.")],
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Look for a learning rate or a batch size by real training steps; prints it as an override."""
    from raymlp import pipeline

    config = _config(overrides, verbose)
    with _running(config) as story:
        found = pipeline.find(config, what, story=story)
    _columns(found.titles, found.rows)
    _done({"suggestion": found.best, **{file.suffix.removeprefix("."): str(file) for file in found.files}})


@app.command()
def reproduce(
    model: Annotated[str, typer.Argument(help="A bundle folder, NAME@ALIAS, or a run's id.")],
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Make a recorded run again and compare it bit by bit; exit code 1 when it differs."""
    from raymlp import pipeline
    from raymlp.core.errors import TrainingError

    with _placed(overrides, verbose) as (site, story):
        result = pipeline.reproduce(model, site, story=story)
    rows = [(item.name, item.recorded, item.again, "same" if item.same else "differs") for item in result.facts]
    _columns(("", "recorded", "again", ""), rows)
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

    with _placed(overrides, verbose) as (site, _):
        found = pipeline.trace(model, site)
    _columns(("", "recorded", "", ""), [(item.kind, item.recorded, item.state, item.note) for item in found.stations])


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
    config = _config([*automatic, *(overrides or ())], verbose)
    with _running(config) as story:
        result = pipeline.tune(config, story=story)
    _trials(result, story.console)
    name = config.problem.name
    _done(
        {
            "best settings": " ".join(result.best),
            "train them": f"raymlp train experiment={name} overlay={result.overlay}",
            "page": str(result.report),
            "go on": f"the same command with tune.study={result.study}",
        }
    )


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")], overrides: Overrides = None, verbose: Verbose = False
) -> None:
    """Judge a bundle beside the baselines; exit code 3 when the gate refuses it."""
    from raymlp import pipeline

    config = _config(overrides, verbose)
    with _running(config) as story:
        evaluation = pipeline.evaluate(config, bundle, story=story)
    _done({"report": str(evaluation.report)})
    pipeline.require(evaluation.gate)


@app.command()
def register(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.")], overrides: Overrides = None, verbose: Verbose = False
) -> None:
    """Add a bundle to the registry as the champion."""
    from raymlp import pipeline

    config = _config(overrides, verbose)
    with _running(config) as story:
        registration = pipeline.register(config, bundle, story=story)
    _done({"version": f"{registration.name}/{registration.version}", "bundle": str(registration.bundle)})


@app.command()
def deploy(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Serve the champion (or serve.model) until Ctrl-C; on a cluster it goes on after the command."""
    from raymlp import pipeline
    from raymlp.runtime.session import ray_session, stays

    config = _config(overrides, verbose)
    with _running(config) as story, ray_session(config.runtime):
        endpoint = pipeline.deploy(config, story=story)
        if not stays(config.runtime):
            _until_interrupted(endpoint)
            pipeline.undeploy(config)


@app.command()
def rollout(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Move traffic of a running endpoint from champion to challenger, on evidence."""
    from raymlp import pipeline
    from raymlp.runtime.session import ray_session

    config = _config(overrides, verbose)
    with _running(config) as story, ray_session(config.runtime):
        result = pipeline.rollout(config, story=story)
    _done({"verdict": str(result.decision), "record": str(result.record)})


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A bundle folder, NAME@ALIAS, or NAME/VERSION.")],
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Answer all rows of a source into Parquet files; the same command goes on where it was cut off. Needs no experiment."""
    from raymlp import pipeline

    config = pipeline.config_of(model, [*(overrides or ()), *(["runtime.verbose=true"] if verbose else ())])
    with _running(config) as story:
        result = pipeline.predict(config, model, story=story)
    _done({"answers": result.output, "quarantine": result.quarantine if result.quarantined else "none"})


@app.command()
def monitor(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Compare the champion's prediction log and late labels with training."""
    from raymlp import pipeline

    config = _config(overrides, verbose)
    with _running(config) as story:
        report = pipeline.monitor(config, story=story)
    _done({"report": str(report.report)})


@app.command()
def retrain(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Ask the retrain policy; train, compare and register a challenger when it says so."""
    from raymlp import pipeline

    config = _config(overrides, verbose)
    with _running(config) as story:
        result = pipeline.retrain(config, story=story)
    _done({"policy": str(result.decision), **({"gate": str(result.gate)} if result.gate else {})})
    if result.gate:
        pipeline.require(result.gate)


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

    config = _config(overrides, verbose)
    column, sign, value = key.partition("=")
    if key and not (column and sign and value):
        raise ConfigError("--key has no COLUMN=VALUE; expected, for example, --key email=ann@example.org.")
    with _running(config) as story:
        result = pipeline.forget(config, (column, value) if key else None, expired=expired, dry_run=dry_run, story=story)
    _done({"models to retrain": ", ".join(result.models) or "none", "snapshots": ", ".join(result.snapshots) or "none"})


@app.command()
def run(overrides: Overrides = None, verbose: Verbose = False) -> None:
    """The whole life: prepare, train, evaluate, register, deploy, replay, monitor, retrain, roll out."""
    from raymlp import life

    config = _config(overrides, verbose)
    with _running(config) as story:
        summary = life.run(config, story=story, on_ready=_until_interrupted)
    _tell(config, summary, story)


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    overrides: Overrides = None,
    roles: Annotated[str, typer.Option(help="What it allows, comma separated: predict, feedback, operate.")] = "predict",
    days: Annotated[float | None, typer.Option(min=0, help="Days until it expires; without it, it does not.")] = None,
    file: KeysFile = Path("keys.json"),
) -> None:
    """Make a key and show it once; the file keeps its hash. Endpoints with serve.keys_file know it within seconds."""
    from datetime import UTC, datetime, timedelta

    from raymlp.config.loader import load_site
    from raymlp.runtime.audit import record
    from raymlp.serve.keys import add_key as add

    site, allowed = load_site(overrides or ()), tuple(part.strip() for part in roles.split(","))
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    key = add(file, name, allowed, expires)
    record(site.runtime, "key added", model="", version="", key=name, roles=allowed, expires=expires and expires.isoformat())
    _done({"key": key, "allows": ", ".join(allowed), "until": f"{expires:%Y-%m-%d %H:%M} UTC" if expires else "revoked", "file": str(file)})


@keys.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="Whose key goes.")], overrides: Overrides = None, file: KeysFile = Path("keys.json")
) -> None:
    """Take a key out of the file; endpoints refuse it within seconds."""
    from raymlp.config.loader import load_site
    from raymlp.runtime.audit import record
    from raymlp.serve.keys import revoke_key as revoke

    site = load_site(overrides or ())
    revoke(file, name)
    record(site.runtime, "key revoked", model="", version="", key=name)


@keys.command("list")
def list_keys(file: KeysFile = Path("keys.json")) -> None:
    """Names, roles and ends of the keys in a file."""
    from datetime import UTC, datetime

    from raymlp.serve.keys import read_keys

    now = datetime.now(UTC)
    ends = {
        key.name: "" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M} UTC{', expired' * key.is_expired(now)}"
        for key in read_keys(file).keys
    }
    _columns(("name", "allows", "until"), [(key.name, ", ".join(key.roles), ends[key.name]) for key in read_keys(file).keys])


@audit.command("verify")
def verify_audit(
    overrides: Overrides = None,
    head: Annotated[str, typer.Option(help="A hash noted earlier, which must still be in the log.")] = "",
) -> None:
    """Check the chain of hashes; exit code 1 names the first line that does not hold."""
    from raymlp.config.loader import load_site
    from raymlp.runtime.audit import audit_file, verify

    file = audit_file(load_site(overrides or ()).runtime)
    chain = verify(file, head=head)
    _done({"log": str(file), "entries": f"{chain.entries:,}, each whole and in its place", "head": chain.head})


@audit.command("show")
def show_audit(
    overrides: Overrides = None, last: Annotated[int, typer.Option(min=1, help="Entries, from the last one back.")] = SHOWN_TRIALS
) -> None:
    """The last entries, after the whole chain was checked."""
    from collections import deque

    from raymlp.config.loader import load_site
    from raymlp.runtime.audit import audit_file, entries

    found = deque(entries(audit_file(load_site(overrides or ()).runtime)), maxlen=last)
    told = [" ".join(f"{name}={value}" for name, value in entry["details"].items()) for entry in found]
    rows = [(e["time"][:19], e["who"], e["what"], e["model"], e["version"], words) for e, words in zip(found, told, strict=True)]
    _columns(("UTC", "who", "what", "model", "version", "details"), rows)


INTERRUPTED = 130


def main() -> None:
    """Entry point: errors of ours in one line, root causes of others, and the exit code."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(words: Iterable[str]) -> int:
    """Run one command line and give its exit code."""
    from raymlp.core.errors import RaymlpError

    words = list(words)
    try:
        if app(words, standalone_mode=False) == INTERRUPTED:  # Typer makes an exit code of Ctrl-C
            _complain("Interrupted.")
            return INTERRUPTED
    except RaymlpError as error:
        _complain(f"{type(error).__name__}: {error}")
        return error.exit_code
    except Terminated:
        _complain("Terminated.")
        return 143
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        if isinstance(error, _Usage):
            error.show()
            return 2
        if {"-v", "--verbose"} & set(words):
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        _complain(f"{type(cause).__name__}: {cause}\n(run it again with -v for the whole trace)")
        return 1
    return 0


@runtime_checkable
class _Usage(Protocol):
    """Typer's own errors of usage, which have no public base class."""

    def show(self) -> None: ...

    def format_message(self) -> str: ...


def job(verb: str) -> None:
    """A job script's whole body: the verb with the script's own arguments."""
    sys.exit(run_command([verb, *sys.argv[1:]]))


def _config(overrides: list[str] | None, verbose: bool) -> Config:
    from raymlp.config.loader import load_config

    return load_config(overrides=[*(overrides or ()), *(["runtime.verbose=true"] if verbose else ())])


@contextmanager
def _running(config: Config | Site) -> Iterator[Story]:
    """The steps on the screen, warnings in raymlp.log; SIGTERM ends a command as Ctrl-C does, so that what it started is stopped."""
    from raymlp.core.files import make_folder
    from raymlp.runtime.progress import Story
    from raymlp.runtime.session import storage_root

    place = None if config.runtime.verbose else make_folder(storage_root(config.runtime)) / "raymlp.log"
    logging.basicConfig(filename=place, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield Story()
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _placed(overrides: list[str] | None, verbose: bool) -> Iterator[tuple[Site, Story]]:
    """`_running` for verbs that take a recorded run's config: overrides say where results and records are."""
    from raymlp.config.loader import load_site

    site = load_site([*(overrides or ()), *(["runtime.verbose=true"] if verbose else ())])
    with _running(site) as story:
        yield site, story


class Terminated(SystemExit):
    """SIGTERM: what Ctrl-C is, with an exit code of its own."""


def _terminate(*_: Any) -> None:
    raise Terminated


def _until_interrupted(endpoint: Endpoint) -> None:
    from rich.console import Console

    Console(highlight=False).print(
        f"\n{endpoint.url}/v1/models/{endpoint.name}:predict answers until Ctrl-C. Page: {endpoint.url}/docs", markup=False
    )
    with suppress(KeyboardInterrupt, Terminated):
        signal.pause()


def _done(places: dict[str, str]) -> None:
    from rich.console import Console

    _table(Console(highlight=False), "done", places.items())


def _tell(config: Config, summary: RunSummary, story: Story) -> None:
    """The last screen of `run`."""
    console = story.console
    name = config.problem.name
    total = sum(seconds for _, seconds, _ in summary.steps)
    _table(console, f"what happened ({total:,.0f} s)", [("training", str(summary.gate)), *summary.happened])
    _table(console, "where it is", summary.places.items())
    _table(
        console,
        "next",
        [
            ("try settings", f"raymlp train experiment={name} model.hidden=[512,256]"),
            ("keep serving", f"raymlp run experiment={name} serve.keep=true"),
            ("look inside", f"mlflow ui --backend-store-uri {summary.places['MLflow']}"),
        ],
    )


def _table(console: Any, title: str, rows: Iterable[tuple[str, str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows:
        table.add_row(Text(key), Text(value))
    console.print(table)


def _trials(result: TuneResult, console: Any) -> None:
    """The trials of a study, best first; a mark for those that no other beats in several objectives."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    objectives = list(dict.fromkeys([result.metric, *(name for trial in result.trials for name in trial["values"])]))
    table = Table(title=f"study {result.study}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("trial", *objectives, "interval", "epochs", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("end")
    table.add_column("settings", overflow="fold")
    for trial in result.trials[:SHOWN_TRIALS]:
        mark = " *" if len(objectives) > 1 and trial["number"] in result.pareto else ""
        interval = trial["interval"]
        table.add_row(
            f"{trial['number']}{mark}",
            *(f"{trial['values'][name]:.4f}" if name in trial["values"] else "" for name in objectives),
            f"{interval.low:.4f} to {interval.high:.4f}" if interval else "",
            str(trial["epochs"]),
            f"{trial['seconds']:.1f}",
            Text(trial["error"] or trial["state"], style="red" if trial["error"] else ""),
            Text(" ".join(word.partition(".")[2] for word in trial["shown"])),
        )
    console.print(table)
    if len(result.trials) > SHOWN_TRIALS:
        console.print(f"and {len(result.trials) - SHOWN_TRIALS} more, on the page")


def _columns(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def _broken_rules(file: Path, broken: list[BrokenRule]) -> None:
    """A table of broken rules and a ContractError, or nothing."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from raymlp.core.errors import ContractError

    if not broken:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("rule", "rows", "first example"):
        table.add_column(title, overflow="fold", justify="right" if title == "rows" else "left")
    for item in broken:
        table.add_row(Text(item.rule), f"{item.rows:,}", Text(item.first))
    Console(highlight=False).print(table)
    raise ContractError(f"the source breaks {len(broken)} rules of {file}; expected none. Mend the source, or the contract.")


def _complain(words: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text.assemble(("error ", "bold red"), words), soft_wrap=True)
