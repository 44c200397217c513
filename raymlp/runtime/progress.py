"""What a person sees while a job runs: one line a step with a spinner, its time, and what came of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from raymlp.core.metrics import readable

INDENT = 22
ROWS = 8
"""Rows of a step's table that are shown, the last ones."""


class Live(Progress):
    """The spinner of a step and, below it, a table of what it has done lately."""

    def __init__(self, console: Console) -> None:
        self.rows: deque[Mapping[str, str]] = deque(maxlen=ROWS)
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description:<9}", style="bold"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=console,
            transient=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.rows:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
            for title in self.rows[-1]:
                table.add_column(title, justify="right", no_wrap=True)
            for row in self.rows:
                table.add_row(*(row.get(title, "") for title in self.rows[-1]))
            yield Padding(table, (0, 0, 0, 2))


def epoch_row(metrics: Mapping[str, float], metric: str) -> dict[str, str]:
    """An epoch of training as a row for people; `metric` is the key of the problem's metric on validation."""
    row = {
        "epoch": f"{metrics['epoch'] + 1:.0f}",
        "loss": f"{metrics['train_loss']:.4f}",
        "valid": f"{metrics['valid_loss']:.4f}",
        metric.removeprefix("valid_"): readable(metrics[metric]),
        **({"tokens/s": f"{metrics['tokens_per_s']:,.0f}"} if "tokens_per_s" in metrics else {"rows/s": f"{metrics['rows_per_s']:,.0f}"}),
        "waits": f"{metrics['data_wait_share']:.1%}",
        "step p50": _milliseconds(metrics["step_ms_p50"]),
        "p99": _milliseconds(metrics["step_ms_p99"]),
        "memory": _memory(metrics["memory_mb"]),
    }
    if "gpu_memory_mb" in metrics:
        row["GPU"] = _memory(metrics["gpu_memory_mb"])
    if "mfu" in metrics:
        row["MFU"] = f"{metrics['mfu']:.1%}"
    return row | ({"workers": f"{metrics['workers']:.0f}"} if metrics["workers"] > 1 else {})


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 100 else f"{value / 1e3:.2f} s"


def _memory(mebibytes: float) -> str:
    return f"{mebibytes:.0f} MiB" if mebibytes < 1_000 else f"{mebibytes / 1024:.1f} GiB"


class Step:
    """A running step: `say` shows what it does now, `row` what it has done, `result` sets the words that stay on its line."""

    def __init__(self, progress: Live | None, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None, detail="") if progress else None
        self.outcome = ""
        self.notes: list[str] = []

    def say(self, words: str) -> None:
        """Show what the step is doing now."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, detail=words)

    def row(self, values: Mapping[str, str]) -> None:
        """Add a row to the table below the spinner, by column; the last ones are shown while the step runs, on a terminal."""
        if self._progress is not None:
            self._progress.rows.append(values)

    def result(self, words: str) -> None:
        """The words that stay on the step's line."""
        self.outcome = words

    def note(self, words: str) -> None:
        """A line below the step's own when it has ended: a decision, an alert."""
        self.notes.append(words)


class Story:
    """Steps, one after the other. `steps` keeps title, seconds and outcome of each finished one."""

    def __init__(self, *, console: Console | None = None) -> None:
        self.console = console or Console(stderr=False, highlight=False)
        self.steps: list[tuple[str, float, str]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Time a step; its line stays on the screen, with a cross when the body raises."""
        started = time.perf_counter()
        progress = None
        if self.console.is_terminal:
            progress = Live(self.console)
            progress.start()
        step = Step(progress, title)
        try:
            yield step
        except BaseException:
            self._close(progress, "x", "red", title, started, "failed", step.notes)
            raise
        seconds = self._close(progress, "ok", "green", title, started, step.outcome, step.notes)
        self.steps.append((title, seconds, step.outcome))

    def _close(
        self, progress: Progress | None, mark: str, colour: str, title: str, started: float, outcome: str, notes: list[str]
    ) -> float:
        if progress is not None:
            progress.stop()
        seconds = time.perf_counter() - started
        self._print(Text.assemble((f"{mark:>2} ", colour), (f"{title:<9}", "bold"), (f"{seconds:6.1f} s  ", "dim")), Text(outcome))
        for note in notes:
            self._print(Text(" " * INDENT), Text(note, style="dim"))
        return seconds

    def _print(self, head: Text, body: Text) -> None:
        """A head of INDENT columns and a body that wraps beside it on a terminal; elsewhere one unbroken line."""
        if not self.console.is_terminal:
            self.console.print(Text.assemble(head, body), soft_wrap=True)
            return
        grid = Table.grid()
        grid.add_column(width=INDENT)
        grid.add_column()
        grid.add_row(head, body)
        self.console.print(grid)


class SilentStory(Story):
    """Times steps and shows nothing: for the SDK, where the caller decides what is printed."""

    def __init__(self) -> None:
        super().__init__(console=Console(quiet=True))
