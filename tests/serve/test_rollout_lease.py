"""Two processes that want to drive: one does, and one that slept through its end does nothing more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymlp.core.errors import ServingError
from raymlp.serve.rollout.lease import Lease, Lost

OTHER = """
import sys
from pathlib import Path
from raymlp.serve.rollout.lease import Lease, Lost
folder = Path(sys.argv[1])
lease = Lease(folder, silent_s=float(sys.argv[2]))
print(lease.take(), flush=True)
for line in sys.stdin:
    try:
        with lease.fenced():
            (folder / "record").write_text("the other")
        print("written", flush=True)
    except Lost:
        print("lost", flush=True)
"""


class Other:
    """Another process with the lease."""

    def __init__(self, folder: Path, silent_s: float) -> None:
        words = [sys.executable, "-c", OTHER, str(folder), str(silent_s)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.took = self.says() == "True"

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def writes(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("write\n")
        self.process.stdin.flush()
        return self.says()


@pytest.fixture
def others() -> Iterator[list[Other]]:
    started: list[Other] = []
    yield started
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_a_second_process_does_not_get_it_while_the_first_lives_and_at_once_when_it_is_killed(tmp_path: Path, others: list[Other]) -> None:
    others.append(Other(tmp_path, 600))
    assert others[0].took
    mine = Lease(tmp_path, silent_s=600)
    assert not mine.take()
    assert mine.is_live()
    assert mine.holder().startswith(f"process {others[0].process.pid} on ")
    with pytest.raises(ServingError, match=f"process {others[0].process.pid} on .* drives the rollouts of"), mine.held():
        pass
    assert others[0].writes() == "written"
    others[0].process.kill()
    others[0].process.wait()
    assert mine.take()
    with mine.fenced():
        pass
    mine.release()


def test_one_that_slept_through_its_end_may_not_write_any_more(tmp_path: Path, others: list[Other]) -> None:
    others.append(Other(tmp_path, 600))
    os.kill(others[0].process.pid, signal.SIGSTOP)
    mine = Lease(tmp_path, silent_s=0.2)
    tries = iter(range(10**6))
    while not mine.take():  # the sleeper holds its lock; only its silence tells
        assert next(tries) < 10**5
    assert mine.epoch == 2
    with mine.fenced():
        (tmp_path / "record").write_text("mine")
    os.kill(others[0].process.pid, signal.SIGCONT)
    assert others[0].writes() == "lost"
    assert (tmp_path / "record").read_text() == "mine"
    third = Lease(tmp_path, silent_s=600)
    assert not third.take(), "the new one holds a lock of its own"
    mine.release()


def test_a_process_notices_that_it_was_overtaken_and_one_that_gave_up_does_nothing(tmp_path: Path) -> None:
    first, second = Lease(tmp_path, silent_s=600), Lease(tmp_path, silent_s=0.0)
    assert first.take()
    second.take()
    assert second.take()
    with pytest.raises(Lost, match="another process took over"), first.fenced():
        pass
    second.release()
    with pytest.raises(Lost), second.fenced():
        pass
    assert first.take()
    assert first.epoch > second.epoch
    first.release()


def test_who_gave_it_up_is_seen_as_gone_at_once(tmp_path: Path) -> None:
    lease = Lease(tmp_path, silent_s=600)
    assert not lease.is_live()
    with lease.held():
        assert Lease(tmp_path, silent_s=600).is_live()
    assert not Lease(tmp_path, silent_s=600).is_live()
