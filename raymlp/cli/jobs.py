"""Verbs on a cluster: submit one, list, read, stop and wait for jobs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymlp.cli.command import TERMINATED, Terminated, app, jobs, terminate
from raymlp.cli.screens import show_columns, show_table

if TYPE_CHECKING:
    from raymlp.jobs.api import Api
    from raymlp.jobs.submission import Ended, Point, Submission
    from raymlp.jobs.work import Decision

AT_HOME = ("init", "plan", "submit", "jobs", "cluster", "keys", "audit")
"""Verbs that stay on the machine where they are given."""
LISTED = 20
Ids = Annotated[list[str], typer.Argument(metavar="ID... [jobs.address=URL]", help="Ids that raymlp jobs list shows.", show_default=False)]
Where = Annotated[list[str] | None, typer.Argument(metavar="[jobs.address=URL]", help="Overrides: where the cluster is.")]


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def submit(
    verb: Annotated[str, typer.Argument(help="What to do: train, tune, run, ...")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORDS]...", help="What the verb takes. model=mlp,tabm makes a job of each.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="A name for the job; without it, the name follows from the work.")] = None,
    image: Annotated[str | None, typer.Option(help="A container image to run in, where the nodes can start one (podman).")] = None,
    again: Annotated[bool, typer.Option("--again", help="Do work once more that a job has done.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Start it, print its id, and leave.")] = False,
) -> None:
    """Run a verb as a job on a cluster; the same work is not done twice. Exit code: the job's, 143 when it was stopped."""
    from raymlp.jobs.submission import prepared

    arguments, overrides = divided(verb, words or [])
    submission = prepared(verb, overrides, arguments=arguments, name=name, image=image, again=again)
    show_table(_console(), f"submit {verb}", [*submission.facts, *(("note", note) for note in submission.notes)])
    if no_wait:
        for point in submission.points:
            _tell(submission.start(point), point)
        return
    raise typer.Exit(_followed(submission) if len(submission.points) == 1 else _swept(submission))


@jobs.command("list")
def list_jobs(overrides: Where = None) -> None:
    """The jobs that the cluster remembers, the last ones last."""
    rows = [
        (
            job.id,
            job.status,
            "" if job.code is None else str(job.code),
            f"{job.seconds:,.0f}",
            f"{datetime.fromtimestamp(job.started):%d %b %H:%M}",
        )
        for job in _api(overrides).jobs()
    ]
    show_columns(("job", "status", "exit code", "seconds", "since"), rows[-LISTED:], whole="job")
    if len(rows) > LISTED:
        _say(f"and {len(rows) - LISTED} before them")


@jobs.command("logs")
def job_logs(
    words: Ids, follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends; Ctrl-C only stops showing.")] = False
) -> None:
    """What a job has written so far."""
    from raymlp.jobs.watch import watch

    ids, overrides = _ids(words)
    api = _api(overrides)
    for name in ids:
        job = api.job(name)
        if follow:
            watch(api, name, _print)
        else:
            _print(api.log(job.id))


@jobs.command("stop")
def stop_jobs(words: Ids) -> None:
    """Stop jobs, and wait until they have: each saves itself first, as long as its jobs.stop_wait_s allows."""
    from raymlp.jobs.watch import watch

    ids, overrides = _ids(words)
    api = _api(overrides)
    running = [job.id for job in map(api.job, ids) if not job.has_ended]
    for name in running:
        api.stop(name)
        _say(f"{name} stops; it may save itself first")
    for name in ids:
        job = watch(api, name)
        _say(f"{name} {'was' if name in running else 'had ended before:'} {job.status.lower()} after {job.seconds:,.0f} s")


@jobs.command("wait")
def wait_for_jobs(words: Ids) -> None:
    """Wait for jobs to end; the exit code is that of the first one that did not succeed."""
    from raymlp.jobs.submission import ended
    from raymlp.jobs.watch import watch

    ids, overrides = _ids(words)
    api = _api(overrides)
    results = [ended(api, watch(api, name)) for name in ids]
    for result in results:
        _say(result.problem or result.last)
    _show_ended(results, [result.id for result in results], "job")
    raise typer.Exit(next((result.code for result in results if result.code), 0))


def divided(verb: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The verb's own arguments, and its overrides, by the verb's own parser, which raises its errors of usage. Raises ConfigError for a
    verb that is no job."""
    from raymlp.core.errors import ConfigError, nearest

    root: Any = typer.main.get_command(app)
    known = [name for name in root.commands if name not in AT_HOME]
    if verb not in known:
        found = "stays on this machine" if verb in root.commands else "is no verb"
        raise ConfigError(f"'{verb}' {found}; expected one of {', '.join(known)}.{nearest(verb, known)}")
    command, path, rest = root.commands[verb], f"raymlp {verb}", list(words)
    while hasattr(command, "commands") and rest and rest[0] in command.commands:
        path, command = f"{path} {rest[0]}", command.commands[rest.pop(0)]
    overrides = list(command.make_context(path, rest).params.get("overrides") or ())
    arguments, left = [], list(overrides)
    for word in words:
        if word in left:
            left.remove(word)
        else:
            arguments.append(word)
    return arguments, overrides


def _followed(submission: Submission) -> int:
    """Start one job and show its log. Gives the exit code."""
    point = submission.points[0]
    decision = submission.start(point)
    _tell(decision, point)
    with _told_when_left(submission.api, [decision.id]) as stop:
        result = submission.wait(decision.id, _print, stop)
    _say(result.problem)
    metric = f", {result.metric[0]} {result.metric[1]:.4f}" if result.metric else ""
    _say(f"{result.id} {result.status.lower()} after {result.seconds:,.0f} s, exit code {result.code}{metric}")
    return result.code


def _swept(submission: Submission) -> int:
    """Start a job a point and show a table at the end. Gives the exit code of the first one that did not succeed."""
    started: list[str] = []

    def on_start(point: Point, decision: Decision) -> None:
        started.append(decision.id)
        _tell(decision, point)

    results: dict[tuple[str, ...], Ended] = {}
    with _told_when_left(submission.api, started) as stop:
        for point, result in submission.race(on_start, stop):
            results[point.swept] = result
            _say(f"{len(results)} of {len(submission.points)}: {result.id} {result.status.lower()} after {result.seconds:,.0f} s")
            _say(result.problem or result.last)
    rows = [point.swept for point in submission.points if point.swept in results]
    _show_ended([results[swept] for swept in rows], [" ".join(swept) for swept in rows], "point")
    if missing := len(submission.points) - len(rows):
        _say(f"{missing} more were not started; the same command goes on with them")
        return TERMINATED
    return next((results[swept].code for swept in rows if results[swept].code), 0)


@contextmanager
def _told_when_left(api: Api, ids: list[str]) -> Iterator[Callable[[], bool]]:
    """Gives what answers Ctrl-C: whether the jobs were asked to stop. Who leaves is told how to come back; SIGTERM leaves."""
    before = signal.signal(signal.SIGTERM, terminate)

    def stop() -> bool:
        if not _wants_stop():
            return False
        for name in _going(api, ids):
            api.stop(name)
            _say(f"{name} stops; it may save itself first")
        return True

    try:
        yield stop
    except (KeyboardInterrupt, Terminated):
        for name in _going(api, ids):
            _say(f"{name} goes on. See it: raymlp jobs logs --follow {name}. Stop it: raymlp jobs stop {name}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _going(api: Api, ids: Sequence[str]) -> list[str]:
    """Jobs that have not ended; all of them when the cluster does not answer."""
    from raymlp.core.errors import JobError

    try:
        return [job.id for job in api.jobs() if job.id in ids and not job.has_ended]
    except JobError:
        return list(ids)


def _at_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _wants_stop() -> bool:
    """Ask at a terminal; elsewhere nobody is there, and jobs go on."""
    if not _at_a_terminal():
        return False
    try:
        answer = typer.prompt("\nLeave it running, or stop it? [leave/stop]", default="leave", show_default=False, err=True)
        return str(answer).strip().lower().startswith("s")
    except (KeyboardInterrupt, EOFError, typer.Abort):
        return False


def _tell(decision: Decision, point: Point) -> None:
    """The id on stdout, where scripts read it; what is new about it beside that."""
    _say("  ".join(words for words in (" ".join(point.swept), decision.reason) if words))
    typer.echo(decision.id)


def _ids(words: Sequence[str]) -> tuple[list[str], list[str]]:
    from raymlp.core.errors import ConfigError

    ids = [word for word in words if "=" not in word]
    if not ids:
        raise ConfigError("no job is named; expected an id. See raymlp jobs list.")
    return ids, [word for word in words if "=" in word]


def _api(overrides: Sequence[str] | None) -> Api:
    from raymlp.config.loader import load_jobs
    from raymlp.jobs.access import opened
    from raymlp.jobs.api import Api

    return Api(opened(load_jobs(overrides or ()).address))


def _show_ended(results: Sequence[Ended], names: Sequence[str], title: str) -> None:
    metric = next((result.metric[0] for result in results if result.metric), None)
    rows = [
        (
            name,
            *([result.id] if title != "job" else []),
            result.status,
            str(result.code),
            *([f"{result.metric[1]:.4f}" if result.metric else ""] if metric else []),
            f"{result.seconds:,.0f}",
        )
        for name, result in zip(names, results, strict=True)
    ]
    show_columns(
        (title, *(["job"] if title != "job" else []), "status", "exit code", *([metric] if metric else []), "seconds"), rows, whole="job"
    )


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _say(words: str) -> None:
    if words:
        _console().print(words, markup=False, soft_wrap=True)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
