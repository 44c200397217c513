"""The root cause of a failed training run, in one line: what happened, to which worker, on which node."""

from __future__ import annotations

import re

from raymlp.core.errors import RaymlpError, TrainingError
from raymlp.core.files import Place
from raymlp.train.disk import full_disk, is_full

ECHOES = ("connection closed", "connection reset", "gloo", "nccl", "barrier", "timed out")
"""What a worker says that only noticed that another one was gone."""
MEMORY = ("out of memory", "running low on memory", "oom")


def explained(error: BaseException, run_dir: Place) -> RaymlpError:
    """The root cause first: that of the worker that raised, rather than of those that lost touch with it. `run_dir` is the folder that
    the controller writes to."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    if not failures:
        cause = root(error)
        if is_full(cause):
            return full_disk(run_dir, "the list of checkpoints", cause)
        return cause if isinstance(cause, RaymlpError) else TrainingError(_words(cause))
    rank, failure = min(failures.items(), key=lambda item: (_is_echo(item[1]), item[0]))
    cause = root(failure)
    node = _node(cause)
    where = f"worker {rank} on node {node}" if node else f"worker {rank}"
    return TrainingError(f"{_words(cause)} ({where}). Ray's log of the worker has the traceback.")


def root(error: BaseException) -> BaseException:
    """What Ray's own exceptions are wrapped around."""
    while True:
        inner = getattr(error, "controller_failure", None) or getattr(error, "health_check_failure", None) or getattr(error, "cause", None)
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _words(error: BaseException) -> str:
    text = str(error)
    if type(error).__name__ == "ActorDiedError":
        return _death(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else "no message"
    return first if isinstance(error, RaymlpError) else f"{type(error).__name__}: {first}"


def _death(text: str) -> str:
    """What killed a worker's process, from Ray's report of it, which begins with a line that is always the same."""
    low = text.lower()
    if "node has died" in low or "node was" in low or "node is dead" in low:
        return "the node of a worker was lost"
    if any(word in low for word in MEMORY) and "potential root causes" not in low:
        return "a worker was killed because its node ran out of memory: lower train.batch_size or train.num_workers"
    if "connection error code 2" in low or "sigkill" in low:
        return (
            "a worker's process was killed from outside, most often by the system because memory ran out: look at the kernel's log, "
            "and lower train.batch_size"
        )
    detail = re.search(r"exit detail:\s*(.+)", text, re.IGNORECASE)
    return f"a worker's process died: {detail.group(1).strip()}" if detail else "a worker's process died"


def _node(error: BaseException) -> str:
    """The address of the node, from the note that the worker left or from Ray's report of its death; empty when neither says."""
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("node ")]
    found = re.search(r"^\s*ip: (\S+)", str(error), re.MULTILINE)
    return notes[0].removeprefix("node ") if notes else found.group(1) if found else ""


def _is_echo(error: BaseException) -> bool:
    """Whether a worker only noticed that another one was gone."""
    text = str(error).lower()
    return any(word in text for word in ECHOES)
