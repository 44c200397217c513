"""What a command prints: tables, last screens, complaints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymlp.config.schema import Config
    from raymlp.core.records import RunSummary, TuneResult
    from raymlp.data.rules import BrokenRule
    from raymlp.runtime.findings import Finding
    from raymlp.runtime.progress import Story

SHOWN_TRIALS = 30


def show_done(places: dict[str, str], *, title: str = "done") -> None:
    from rich.console import Console

    show_places(Console(highlight=False), title, places)


def show_result(metric: str, value: float) -> None:
    """In a job, a line by which whoever submitted it finds the result in its log (`raymlp.jobs.watch.result_of`)."""
    from rich.console import Console

    from raymlp.runtime.job import ray_job

    if ray_job() is not None:
        Console(highlight=False).print(f"result: {metric} {float(value)!r}", markup=False, soft_wrap=True)


def show_run(config: Config, summary: RunSummary, story: Story) -> None:
    """The last screen of `run`."""
    console = story.console
    name = config.problem.name
    total = sum(seconds for _, seconds, _ in summary.steps)
    show_table(console, f"what happened ({total:,.0f} s)", [("training", str(summary.gate)), *summary.happened])
    show_places(console, "where it is", summary.places)
    show_table(
        console,
        "next",
        [
            ("try settings", f"raymlp train experiment={name} model.hidden=[512,256]"),
            ("keep serving", f"raymlp run experiment={name} serve.keep=true"),
            ("look inside", f"mlflow ui --backend-store-uri {summary.places['MLflow']}"),
        ],
    )


def show_places(console: Any, title: str, places: Mapping[str, str]) -> None:
    """Each place on a line of its own, which only the terminal breaks, so that it can be copied."""
    from rich.text import Text

    console.print(Text(title, "bold"))
    console.print()
    width = max(map(len, places), default=0)
    for key, place in places.items():
        console.print(Text(f" {key:<{width}}   ", "bold").append(place, "not bold"), soft_wrap=True)
    console.print()


def show_table(console: Any, title: str, rows: Iterable[tuple[str, str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows:
        table.add_row(Text(key), Text(value))
    console.print(table)


def show_trials(result: TuneResult, console: Any) -> None:
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


def show_columns(titles: Iterable[str], rows: Iterable[Iterable[str]], *, whole: str = "") -> None:
    """A table; the column of the title `whole` is not broken into lines, so that it can be copied."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold", no_wrap=title == whole)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def show_broken_rules(file: Path, broken: list[BrokenRule]) -> None:
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


def show_findings(found: Sequence[Finding]) -> None:
    """What the doctor found, the worst first; what to do stands under it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "what", "found", "expected"):
        table.add_column(title, overflow="fold", style="bold" if title == "what" else "")
    for one in found:
        table.add_row(Text(one.level, colours[one.level]), Text(one.what), Text(one.found), Text(one.expected))
        if one.do:
            table.add_row("", "", Text(f"-> {one.do}", colours[one.level]))
    Console(highlight=False).print(table)


def complain(words: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text.assemble(("error ", "bold red"), words), soft_wrap=True)
