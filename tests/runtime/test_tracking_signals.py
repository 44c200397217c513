"""Records are whole: a signal waits for a write, and of many processes one makes the tables."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raymlp.runtime.tracking import Run, _ended, whole


class Stopped(SystemExit):
    pass


@contextmanager
def stopping() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_is_delivered_when_the_write_is_whole() -> None:
    done: list[str] = []

    def write() -> None:
        with whole():
            signal.raise_signal(signal.SIGTERM)
            done.append("written")

    with stopping():
        with pytest.raises(Stopped):
            write()
        handler = signal.getsignal(signal.SIGTERM)
        with whole():
            pass
        assert signal.getsignal(signal.SIGTERM) is handler
    assert done == ["written"]


def test_a_run_that_is_stopped_stays_stopped_when_its_record_fails(caplog: pytest.LogCaptureFixture) -> None:
    class Locked:
        def set_terminated(self, *_: Any) -> None:
            raise RuntimeError("database is locked")

    with pytest.raises(Stopped), _ended(Run(Locked(), "r")):
        raise Stopped
    assert "run r was stopped and could not be marked as killed: database is locked" in caplog.text
    with pytest.raises(RuntimeError), _ended(Run(Locked(), "r")):
        pass


def test_processes_that_begin_together_share_a_new_database(tmp_path: Path) -> None:
    code = """
import sys
from raymlp.config.registry import Registry
from raymlp.config.runtime import Runtime
from raymlp.runtime.tracking import client
sys.stdin.readline()
client(Registry(), Runtime(storage=sys.argv[1])).create_experiment(sys.argv[2])
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*words, name], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for name in ("a", "b")]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0)] * 2
