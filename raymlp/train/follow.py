"""Epochs on their way from the Ray Train controller to the caller: through a file on the disk of their node.

The controller runs on the driver's node; workers may be on others, and see what is in the run's folder. This file is kept small, since
the controller loads it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ray.train import UserCallback

from raymlp.core.errors import RaymlpError
from raymlp.core.files import Place, make_folder, write_text
from raymlp.runtime.copies import own_folder
from raymlp.train.disk import writing
from raymlp.train.ledger import keep

Result = TypeVar("Result")
OnEpoch = Callable[[dict[str, float]], None]
EPOCHS, STOP, CHECKPOINTS = "epochs.jsonl", "stop", "checkpoints"
POLL_S = 0.2
STOP_S = 30.0
"""Seconds that a run gets to be saved and to end when its caller gives up."""


class EpochLog(UserCallback):
    """Runs in the controller: writes each epoch to a file, and ends the run at an error that a new start would meet again."""

    def __init__(self, run_dir: Place) -> None:
        self._checkpoints, self._folder = run_dir / CHECKPOINTS, own_folder(run_dir)

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """`metrics` come one a worker; those without an epoch belong to a checkpoint in the middle of one."""
        with writing(self._folder, "the log of epochs"):
            if "epoch" in metrics[0]:
                with (self._folder / EPOCHS).open("a") as file:
                    file.write(json.dumps(metrics[0]) + "\n")
            if checkpoint is not None and isinstance(self._checkpoints, Path):  # a store has no file that was cut off
                keep(self._checkpoints)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """What raymlp raises on purpose is final; anything else is tried again, up to `train.max_failures`."""
        for error in worker_exceptions.values():
            if isinstance(error, RaymlpError):
                raise error


def follow(run: Callable[[], Result], run_dir: Place, on_epoch: OnEpoch) -> Result:
    """Run in a thread and hand the epochs over in this one, where the caller's state lives.

    Raises what the run raises. What `on_epoch` raises, or a signal, comes back when the workers have saved the run and ended.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(run())
        except BaseException as error:
            errors.append(error)

    (run_dir / STOP).unlink(missing_ok=True)
    epochs = make_folder(own_folder(run_dir)) / EPOCHS
    _mend(epochs)
    thread = threading.Thread(target=target, name="raymlp-train", daemon=True)
    thread.start()
    try:
        for metrics in _epochs(epochs, thread):
            on_epoch(metrics)
    except BaseException:
        (run_dir / STOP).write_text("")
        thread.join(STOP_S)
        raise
    if errors:
        raise errors[0]
    return results[0]


def _mend(path: Path) -> None:
    """Take away a last line that was cut off, as by a full disk, before others are put behind it."""
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        write_text(path, text[: text.rfind("\n") + 1])


def _epochs(path: Path, thread: threading.Thread) -> Iterator[dict[str, float]]:
    """Epochs as they are written, each once: a resumed run repeats those after its checkpoint."""
    seen, last = 0, -1.0
    while True:
        alive = thread.is_alive()
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines[seen:] if line.endswith("\n")]
        seen += len(whole)
        for line in whole:
            metrics = json.loads(line)
            if metrics["epoch"] > last:
                last = metrics["epoch"]
                yield metrics
        if not alive:
            return
        thread.join(POLL_S)
