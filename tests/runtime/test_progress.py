from __future__ import annotations

import io

import pytest
from rich.console import Console

from raymlp.runtime.progress import SilentStory, Story


def test_a_finished_step_leaves_one_line_and_its_time() -> None:
    out = io.StringIO()
    story = Story(console=Console(file=out, width=100))
    with story.step("prepare") as step:
        step.say("reading")
        step.result("3 rows")
        step.note("gate pass: good")
    assert [(title, outcome) for title, _, outcome in story.steps] == [("prepare", "3 rows")]
    first, second = out.getvalue().splitlines()
    assert first.startswith("ok prepare")
    assert first.endswith("3 rows")
    assert second.strip() == "gate pass: good"


def test_a_failed_step_is_marked_and_not_kept() -> None:
    out = io.StringIO()
    story = Story(console=Console(file=out, width=100))
    with pytest.raises(ValueError, match="broken"), story.step("train"):
        raise ValueError("broken")
    assert story.steps == []
    assert " x train" in out.getvalue()


def test_a_silent_story_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with SilentStory().step("train") as step:
        step.result("done")
    assert capsys.readouterr().out == ""
