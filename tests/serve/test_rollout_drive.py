"""A rollout whose endpoint or disk fails under it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from raymlp.config.rollout import Rollout
from raymlp.core.errors import VersionRefused
from raymlp.core.records import Decision
from raymlp.serve.rollout.course import Course
from raymlp.serve.rollout.drive import Drive, World, drive
from raymlp.serve.rollout.facts import Evidence

SETTINGS = Rollout(weights=(0.1, 1.0))
START = Course.start("flights", "v1", "v2", salt="s", settings=SETTINGS, now=time.time(), by="ann")


@dataclass
class Place:
    """Takes what is given and kept; `give_fails` and `save_fails` say of a record whether that is an error."""

    left_out: list[str] = field(default_factory=list)
    give_fails: Callable[[Course], bool] = lambda course: False
    save_fails: Callable[[Course], bool] = lambda course: False
    given: list[Course] = field(default_factory=list)
    saved: list[Course] = field(default_factory=list)

    def world(self) -> World:
        return World(Evidence, lambda: self.left_out.pop(0) if self.left_out else "", lambda _: True, self.give, self.save)

    def give(self, course: Course) -> None:
        self.given.append(course)
        if self.give_fails(course):
            raise VersionRefused("v2 does not load.")

    def save(self, course: Course) -> None:
        self.saved.append(course)
        if self.save_fails(course):
            raise OSError("the disk is full")


def test_a_challenger_that_cannot_be_given_again_is_rolled_back() -> None:
    place = Place(left_out=["a replica died"])
    place.give_fails = lambda course: course.is_open and len(place.given) == 2
    heard: list[Decision] = []
    one = Drive(START, place.world(), heard.append)
    drive(one, iter([None] * 3))
    assert (one.course.state, one.decision.action) == ("rolled back", "rollback")
    assert one.decision.reason == "the endpoint does not take v2: v2 does not load."
    assert [one.action for one in heard] == ["hold", "rollback"]
    assert [one.weights for one in place.given] == [START.weights, START.weights, {"v1": 1.0}]
    assert place.saved[-1].state == "rolled back"


def cut_off() -> Iterator[None]:
    yield
    raise ValueError("the first error")


@pytest.mark.parametrize(("fails", "words"), [("give_fails", "v2 does not load."), ("save_fails", "the disk is full")])
def test_what_fails_while_the_challenger_is_taken_out_does_not_hide_why(fails: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    place = Place()
    setattr(place, fails, lambda course: course.state == "aborted")
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match="the first error"):
        drive(Drive(START, place.world(), lambda _: None), cut_off())
    assert place.given[-1].weights == {"v1": 1.0}
    assert place.saved[-1].history[-1].reason == "cut off by ValueError"
    (logged,) = caplog.messages
    assert logged.startswith("the rollout of v2 was cut off, and it was not possible to ")
    assert logged.endswith(words)
