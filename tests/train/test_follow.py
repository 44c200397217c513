"""Epochs reach the caller once each, in its own thread, and the caller can stop the run."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from raymlp.core.errors import RaymlpError, TrainingError
from raymlp.train.follow import STOP, EpochLog, follow


def written(folder: Path, epochs: list[int], result: str = "done") -> str:
    """A made-up run that reports epochs as the controller does."""
    log = EpochLog(folder)
    for epoch in epochs:
        log.after_report(None, [{"epoch": epoch, "valid_loss": 1.0}, {"epoch": -1}], None)
    return result


def test_each_epoch_is_heard_once_in_the_thread_of_the_caller(tmp_path: Path) -> None:
    heard: list[tuple[float, str]] = []
    result = follow(
        lambda: written(tmp_path, [0, 1, 2, 1, 2, 3]),
        tmp_path,
        lambda epoch: heard.append((epoch["epoch"], threading.current_thread().name)),
    )
    assert result == "done"
    assert heard == [(epoch, threading.current_thread().name) for epoch in range(4)]


def test_an_error_of_the_listener_stops_the_run_and_comes_back(tmp_path: Path) -> None:
    ended: list[str] = []

    def run() -> str:
        written(tmp_path, [0])
        while not (tmp_path / STOP).exists():
            time.sleep(0.01)
        ended.append("saved")
        return "stopped"

    def on_epoch(_: dict[str, float]) -> None:
        raise RaymlpError("the tracking server is gone")

    with pytest.raises(RaymlpError, match="the tracking server is gone"):
        follow(run, tmp_path, on_epoch)
    assert ended == ["saved"]
    assert follow(lambda: "again", tmp_path, lambda _: None) == "again"
    assert not (tmp_path / STOP).exists(), "a stop must not outlive its run"


def test_an_error_made_on_purpose_is_final_and_others_are_tried_again(tmp_path: Path) -> None:
    log = EpochLog(tmp_path)
    log.after_exception(None, {0: OSError("the store does not answer")})
    with pytest.raises(TrainingError, match="no number"):
        log.after_exception(None, {0: RuntimeError("Connection closed by peer"), 1: TrainingError("the loss is no number")})


def test_a_checkpoint_within_an_epoch_is_no_epoch(tmp_path: Path) -> None:
    EpochLog(tmp_path).after_report(None, [{"step": 3.0}], None)
    assert not (tmp_path / "epochs.jsonl").exists()


def test_an_error_of_the_run_comes_back_as_it_is(tmp_path: Path) -> None:
    def run() -> str:
        raise KeyError("carrier")

    with pytest.raises(KeyError, match="carrier"):
        follow(run, tmp_path, lambda _: None)


def test_a_run_that_goes_on_tells_the_epochs_before_it_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "epochs.jsonl").write_text(json.dumps({"epoch": 0}) + "\n")
    heard: list[float] = []
    follow(lambda: written(tmp_path, [1]), tmp_path, lambda epoch: heard.append(epoch["epoch"]))
    assert heard == [0, 1]


def test_a_line_that_a_full_disk_cut_off_is_taken_away_before_the_run_goes_on(tmp_path: Path) -> None:
    written(tmp_path, [0])
    with (tmp_path / "epochs.jsonl").open("a") as file:
        file.write('{"epoch": 1, "valid_lo')
    heard: list[float] = []
    assert follow(lambda: written(tmp_path, [1, 2]), tmp_path, lambda epoch: heard.append(epoch["epoch"])) == "done"
    assert heard == [0, 1, 2]
