from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raymlp.core.errors import RaymlpError
from raymlp.retrain import lock


def test_one_retrain_at_a_time(tmp_path: Path) -> None:
    assert not lock.is_held(tmp_path)
    with lock.held(tmp_path):
        assert lock.is_held(tmp_path)
        with pytest.raises(RaymlpError, match="running already"), lock.held(tmp_path):
            raise AssertionError
    assert not lock.is_held(tmp_path)
    seconds = lock.seconds_since_last(tmp_path)
    assert seconds is not None
    assert 0 <= seconds < 60


def test_the_lock_of_a_dead_process_does_not_count(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    (tmp_path / "running").write_text(dead.stdout)
    assert not lock.is_held(tmp_path)
    with lock.held(tmp_path):
        assert lock.is_held(tmp_path)


def test_a_failed_retrain_leaves_no_stamp_and_no_lock(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), lock.held(tmp_path):
        raise ValueError("x")
    assert lock.seconds_since_last(tmp_path) is None
    assert not lock.is_held(tmp_path)
