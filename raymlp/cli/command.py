"""A command: its words, what runs around it, its exit code."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import typer

from raymlp.cli.screens import complain

if TYPE_CHECKING:
    from raymlp.config.schema import Config, Site
    from raymlp.core.records import Endpoint
    from raymlp.runtime.progress import Story

app = typer.Typer(
    help="From raw table to a served, canaried, monitored model that retrains itself, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys = typer.Typer(help="API keys of the endpoint: who may ask it what, until when.", no_args_is_help=True)
audit = typer.Typer(help="The log of who did what to which version.", no_args_is_help=True)
rollouts = typer.Typer(help="Move traffic of a running endpoint from champion to challenger, on evidence.", no_args_is_help=True)
app.add_typer(rollouts, name="rollout")
app.add_typer(keys, name="keys")
app.add_typer(audit, name="audit")
experiment = typer.Typer(help="Versions compared on a running endpoint: A/B, A/B/n, bandit.", no_args_is_help=True)
shadow = typer.Typer(help="A version that answers copies of requests, unseen.", no_args_is_help=True)
app.add_typer(experiment, name="experiment")
app.add_typer(shadow, name="shadow")
jobs = typer.Typer(help="Jobs on a cluster: what runs there, logs, stop, wait.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")
cluster = typer.Typer(help="A Ray cluster on this machine, with folder, ports and token of its own.", no_args_is_help=True)
app.add_typer(cluster, name="cluster")
KeysFile = Annotated[Path, typer.Option("--file", help="The file of keys: serve.keys_file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides: experiment=flights train.epochs=3")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the output of Ray, Lightning, DeepSpeed and MLflow.")]
INTERRUPTED, TERMINATED = 130, 143


def main() -> None:
    """Entry point: errors of ours in one line, root causes of others, and the exit code."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(words: Iterable[str]) -> int:
    """Run one command line and give its exit code."""
    from raymlp.core.errors import RaymlpError

    words = list(words)
    try:
        code = app(words, standalone_mode=False)  # what `typer.Exit` holds, too
        if code == INTERRUPTED:  # Typer makes an exit code of Ctrl-C
            complain("Interrupted.")
        return code if isinstance(code, int) else 0
    except RaymlpError as error:
        complain(f"{type(error).__name__}: {error}")
        return error.exit_code
    except Terminated:
        complain("Terminated.")
        return TERMINATED
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
        complain(f"{type(cause).__name__}: {cause}\n(run it again with -v for the whole trace)")
        return 1


@runtime_checkable
class _Usage(Protocol):
    """Typer's own errors of usage, which have no public base class."""

    def show(self) -> None: ...

    def format_message(self) -> str: ...


def job(verb: str) -> None:
    """A job script's whole body: the verb with the script's own arguments."""
    sys.exit(run_command([verb, *sys.argv[1:]]))


def config_from(overrides: list[str] | None, verbose: bool) -> Config:
    from raymlp.config.loader import load_config

    return load_config(overrides=[*(overrides or ()), *(["runtime.verbose=true"] if verbose else ())])


@contextmanager
def running(config: Config | Site) -> Iterator[Story]:
    """The steps on the screen, warnings in raymlp.log; SIGTERM ends a command as Ctrl-C does, so that what it started is stopped."""
    from raymlp.core.files import make_folder
    from raymlp.runtime.copies import own_folder
    from raymlp.runtime.job import require_job_can_run
    from raymlp.runtime.progress import Story
    from raymlp.runtime.session import storage_root

    require_job_can_run(config.runtime)
    place = None if config.runtime.verbose else make_folder(own_folder(storage_root(config.runtime))) / "raymlp.log"
    logging.basicConfig(filename=place, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield Story()
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def placed(overrides: list[str] | None, verbose: bool) -> Iterator[tuple[Site, Story]]:
    """`running` for verbs that take a recorded run's config: overrides say where results and records are."""
    from raymlp.config.loader import load_site

    site = load_site([*(overrides or ()), *(["runtime.verbose=true"] if verbose else ())])
    with running(site) as story:
        yield site, story


class Terminated(SystemExit):
    """SIGTERM: what Ctrl-C is, with an exit code of its own."""


def terminate(*_: Any) -> None:
    raise Terminated


def until_interrupted(endpoint: Endpoint) -> None:
    from rich.console import Console

    Console(highlight=False).print(
        f"\n{endpoint.url}/v1/models/{endpoint.name}:predict answers until Ctrl-C. Page: {endpoint.url}/", markup=False
    )
    with suppress(KeyboardInterrupt, Terminated):
        signal.pause()
