"""The record of an experiment."""

from __future__ import annotations

import json

import pytest

from raymlp.config.experiment import Bandit, Business, ErrorRate, Experiment
from raymlp.core.errors import ServingError
from raymlp.serve.experiment.record import Record

SETTINGS = Experiment(versions=("2", "3"), weights=(0.1, 0.2), primary=Business(column="paid"))


def begun() -> Record:
    return Record.start("flights", ("v1", "v2", "v3"), salt="s", settings=SETTINGS, now=10.0, by="me")


def test_it_begins_with_the_weights_of_its_settings_and_ends_with_the_control_alone() -> None:
    record = begun()
    assert record.weights == pytest.approx({"v1": 0.7, "v2": 0.1, "v3": 0.2})
    moved = record.reweighted((0.5, 0.25, 0.25), now=11.0, by="me", reason="seen")
    assert moved.weights == {"v1": 0.5, "v2": 0.25, "v3": 0.25}
    ended = moved.stopped(now=12.0, by="me", reason="enough")
    assert (ended.is_open, ended.weights) == (False, {"v1": 1.0})
    assert [event.what for event in ended.history] == ["start", "weights", "stop"]


def test_it_goes_through_json() -> None:
    record = begun().reweighted((0.5, 0.25, 0.25), now=11.0, by="me", reason="seen")
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize("change", [{"format": 2}, {"arms": ["v1"]}, {"state": "gone"}, {"settings": {"alpha": 3}}, {"history": []}])
def test_a_broken_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ServingError, match="cannot be read"):
        Record.from_json(json.dumps({**json.loads(begun().to_json()), **change}))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ServingError, match="no arm beside v1"):
        Record.start("flights", ("v1",), salt="s", settings=SETTINGS, now=0.0, by="me")
    with pytest.raises(ServingError, match="each version once"):
        Record.start("flights", ("v1", "v1"), salt="s", settings=SETTINGS, now=0.0, by="me")
    with pytest.raises(ServingError, match="1 in total"):
        begun().reweighted((0.5, 0.5, 0.5), now=0.0, by="me", reason="")
    with pytest.raises(ServingError, match="is stopped"):
        begun().stopped(now=0.0, by="me", reason="").stopped(now=0.0, by="me", reason="")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"versions": ("2", "2")}, "each once"),
        ({"versions": ("2",), "weights": (0.5, 0.1)}, "one a version"),
        ({"versions": ("2",), "weights": (1.0,)}, "leave something for the control"),
        ({"guard_rails": (ErrorRate(), ErrorRate(margin=0.2))}, "each metric once"),
        ({"bandit": Bandit()}, "needs fixed weights"),
        ({"bandit": Bandit(floor=0.4), "versions": ("2", "3"), "guard_rails": ()}, "less than 1 in total"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment.model_validate(wrong)


def test_even_weights_are_the_default() -> None:
    assert Experiment(versions=("2", "3")).shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))
