"""The process that drives, without a cluster: it answers, dies, and the next one answers; what it cannot reach it tells."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymlp import pipeline
from raymlp.config.rollout import Rollout
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config
from raymlp.core.errors import ServingError
from raymlp.pipeline.exclusive import rollout_folder
from raymlp.serve.rollout.course import Course, Records
from tests.serve.bundles import make_config

DRIVER = """
import json, sys, time
from raymlp.pipeline.driver_actor import RolloutDriver
driver = RolloutDriver(json.loads(sys.argv[1]))
while True:
    time.sleep(60)
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[Config, list[subprocess.Popen[bytes]]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield make_config(Runtime(storage=str(tmp_path))), processes
    for process in processes:
        process.kill()
        process.wait()


def start(config: Config, processes: list[subprocess.Popen[bytes]]) -> None:
    processes.append(subprocess.Popen([sys.executable, "-c", DRIVER, json.dumps(config.model_dump(mode="json"))]))
    until(config, processes[-1].pid)


def until(config: Config, pid: int) -> None:
    deadline = time.monotonic() + 60
    while f"process {pid} " not in pipeline.rollout_status(config).driver:
        assert time.monotonic() < deadline, "the process does not drive"
        time.sleep(0.02)


def test_one_process_after_the_other_answers_and_two_never_drive(started: tuple[Config, list[subprocess.Popen[bytes]]]) -> None:
    config, processes = started
    start(config, processes)
    with pytest.raises(ServingError, match="no rollout of flights is open, there was none so far"):
        pipeline.order_rollout(config, "pause")
    with pytest.raises(ServingError, match=f"process {processes[0].pid} on .* drives the rollouts of flights"):
        pipeline.rollout(config, traffic=iter(()))
    processes[0].kill()
    processes[0].wait()
    course = Course.start("flights", "v1", "v2", salt="s" * 32, settings=Rollout(), now=time.time(), by="ann")
    Records(rollout_folder(config)).save(course)
    start(config, processes)
    assert pipeline.order_rollout(config, "pause", reason="lunch") == "the rollout of v2 is paused; shares: v1 0.99, v2 0.01"
    deadline = time.monotonic() + 60
    while not (troubles := pipeline.rollout_status(config).look.get("troubles")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert any("Ray is not running" in words for words in troubles)
    found = pipeline.rollout_status(config).course
    assert found is not None
    assert [event.what for event in found.history] == ["start", "pause"]
