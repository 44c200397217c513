"""Verbs of a rollout. They ask the process that drives it, through the storage, and need no Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raymlp.cli.command import Overrides, Terminated, Verbose, config_from, rollouts, running
from raymlp.cli.screens import show_columns, show_table

if TYPE_CHECKING:
    from raymlp.config.schema import Config
    from raymlp.pipeline import RolloutStatus
    from raymlp.serve.rollout.orders import Verb

Reason = Annotated[str, typer.Option(help="Why; kept in the record.")]
Follow = Annotated[bool, typer.Option("--follow", help="Show what happens until it ends; Ctrl-C only stops showing.")]
FOLLOW_S = 1.0
START_S = 60.0


@rollouts.command("start")
def start_rollout(
    overrides: Overrides = None,
    challenger: Annotated[str, typer.Option(help="A version's number in the registry; without it, the alias challenger.")] = "",
    reason: Reason = "",
    follow: Follow = False,
    verbose: Verbose = False,
) -> None:
    """Move traffic from champion to challenger, on evidence; it goes on by itself."""
    from raymlp import pipeline

    config = config_from(overrides, verbose)
    with running(config), driven(config) as must_follow:
        _say(pipeline.order_rollout(config, "start", challenger=challenger.removeprefix("v"), reason=reason))
        for line in pipeline.rollout_outlook(config):
            _say(f"  {line}")
        if follow or must_follow:
            _follow(config)


@rollouts.command("status")
def rollout_status(overrides: Overrides = None, follow: Follow = False) -> None:
    """Where it is, what happened and why."""
    from raymlp import pipeline

    config = config_from(overrides, False)
    _show(pipeline.rollout_status(config))
    if follow:
        _follow(config)


@rollouts.command("pause")
def pause_rollout(overrides: Overrides = None, reason: Reason = "") -> None:
    """Keep the shares as they are; a challenger that is worse is rolled back all the same."""
    _ask(overrides, "pause", reason=reason)


@rollouts.command("resume")
def resume_rollout(
    overrides: Overrides = None,
    reason: Reason = "",
    accept: Annotated[list[str] | None, typer.Option(help="A guard that may not pause it again: ratio, distribution.")] = None,
) -> None:
    """Go on at the share it has."""
    _ask(overrides, "resume", reason=reason, accept=tuple(accept or ()))


@rollouts.command("promote")
def promote_challenger(overrides: Overrides = None, reason: Reason = "") -> None:
    """End it with the challenger, whatever the evidence says."""
    _ask(overrides, "promote", reason=reason)


@rollouts.command("abort")
def abort_rollout(overrides: Overrides = None, reason: Reason = "") -> None:
    """End it with the champion, whatever the evidence says."""
    _ask(overrides, "abort", reason=reason)


@rollouts.command("set")
def set_share(
    share: Annotated[float, typer.Argument(help="The challenger's share, above 0 and up to the plan's last.")],
    overrides: Overrides = None,
    reason: Reason = "",
) -> None:
    """Give the challenger another share; the plan goes on above it."""
    _ask(overrides, "set", share=share, reason=reason)


@contextmanager
def driven(config: Config) -> Iterator[bool]:
    """A process drives inside the block: the one that does already, or one that is started on the cluster. Gives whether it ends with this
    command, which must then follow."""
    from raymlp import pipeline
    from raymlp.runtime.session import ray_session, stays

    if pipeline.rollout_status(config).is_driven:
        yield False
        return
    with ray_session(config.runtime):
        pipeline.start_driver(config)
        deadline = time.monotonic() + START_S
        while not pipeline.rollout_status(config).is_driven and time.monotonic() < deadline:
            time.sleep(0.1)
        if not stays(config.runtime):
            _say("Ray ends with this command, and so would the rollout: it is followed to its end.")
        yield not stays(config.runtime)


def _ask(overrides: list[str] | None, verb: Verb, **what: Any) -> None:
    from raymlp import pipeline

    _say(pipeline.order_rollout(config_from(overrides, False), verb, **what))


def _follow(config: Config) -> None:
    """Show decisions and events until the rollout ends."""
    from raymlp import pipeline

    shown, last = 0, ""
    with suppress(KeyboardInterrupt, Terminated):
        while True:
            status = pipeline.rollout_status(config)
            course = status.course
            if course is None:
                return
            for event in course.history[shown:]:
                _say(f"{_time(event.time)}  {event.what} at {event.weight:.4g} by {event.by}: {event.reason}")
            shown = len(course.history)
            if course.settled:
                return
            news = "; ".join([*status.look.get("troubles", ()), status.look.get("decision", "")])
            if news != last:
                _say(f"{_time(time.time())}  {news}")
                last = news
            time.sleep(FOLLOW_S)


def _show(status: RolloutStatus) -> None:
    from rich.console import Console

    course, look = status.course, status.look
    if course is None:
        _say("There was no rollout so far.")
    else:
        rows = [
            ("rollout", f"{course.challenger} beside {course.champion}: {course.state}"),
            ("shares", ", ".join(f"{label} {share:.4g}" for label, share in course.weights.items())),
            ("plan", ", ".join(f"{share:.4g}" for share in course.settings.weights)),
        ]
        if course.is_open and look:
            rows.append(("last look", f"{_time(look['time'])}: {look['decision']}"))
        rows += [("trouble", words) for words in look.get("troubles", ()) if status.is_driven]
        rows.append(("driven by", status.driver if status.is_driven else "no process; raymlp deploy takes it up"))
        show_table(Console(highlight=False), "rollout", rows)
        titles = ("UTC", "what", "share", "by", "why")
        show_columns(titles, [(_time(e.time), e.what, f"{e.weight:.4g}", e.by, e.reason) for e in course.history])


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _say(words: str) -> None:
    from rich.console import Console

    Console(highlight=False).print(words, markup=False, soft_wrap=True)
