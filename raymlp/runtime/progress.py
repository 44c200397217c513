"""What a person sees while a job runs: one line a step with a spinner, its time, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

INDENT = 22


class Step:
    """A running step: `say` shows what it does now, `result` sets the words that stay on its line."""

    def __init__(self, progress: Progress | None, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None, detail="") if progress else None
        self.outcome = ""
        self.notes: list[str] = []

    def say(self, words: str) -> None:
        """Show what the step is doing now."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, detail=words)

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
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description:<9}", style="bold"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[detail]}", style="dim"),
            )
            progress = Progress(*columns, console=self.console, transient=True)
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
