"""The driver of an endpoint's rollouts, look by look, with storage that is real: what it survives, obeys, tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raymlp.config.loader import with_overrides
from raymlp.config.runtime import Runtime
from raymlp.core.errors import RegistryError, ServingError, VersionRefused
from raymlp.pipeline.driver import Driver
from raymlp.pipeline.exclusive import rollout_folder
from raymlp.pipeline.rollouts import rollout_status
from raymlp.runtime.audit import audit_file, entries
from raymlp.serve import deploy as serving
from raymlp.serve.rollout import orders
from raymlp.serve.rollout.course import Course, Records
from raymlp.serve.rollout.lease import Lease, Lost, lease_of
from raymlp.serve.rollout.orders import Order
from tests.test_rollout import SETTINGS, Model, Place, place, shares

__all__ = ["place"]
SOON = SETTINGS.model_copy(update={"min_step_s": 0.0, "blind_s": 60.0})


@pytest.fixture
def lease(place: Place) -> Iterator[Lease]:
    lease = Lease(rollout_folder(place.config), silent_s=600)
    assert lease.take()
    yield lease
    lease.release()


def look(driver: Driver) -> Course:
    """A look that is due."""
    driver._next_look = driver._next_poll = 0.0
    driver.look()
    course = driver.records.latest()
    assert course is not None
    return course


def asked(driver: Driver, verb: orders.Verb, **what: Any) -> orders.Answer:
    """An order, and its answer at the next look."""
    if verb == "start":
        what = {"settings": SOON.model_dump(mode="json"), **what}
    order = Order(verb, "ann@laptop", **what)
    orders.place(driver.records.folder, order)
    driver.look()
    answer = orders.answer_to(driver.records.folder, order)
    assert answer is not None
    return answer


def test_it_starts_advances_and_promotes_and_tells_registry_and_audit_log(place: Place, lease: Lease) -> None:
    driver = Driver(place.config, lease)
    assert asked(driver, "start", reason="v2 is new").done
    assert place.changes[-1][0] == {"v1": 0.9, "v2": 0.1}
    for _ in place.traffic():
        course = look(driver)
        if course.settled:
            break
    assert (course.state, course.shares, course.settled) == ("promoted", (0.1, 0.5, 1.0), True)
    assert shares(place) == [0.1, 0.5, 1.0, 1.0]
    assert place.aliases_now == {"champion": "2", "previous": "1"}
    assert place.tags["2"]["raymlp.rollout"] == "promoted"
    assert place.tags["2"]["raymlp.rollout.shares"] == "0.1, 0.5, 1"
    told = [(entry["what"], entry["details"]["reason"]) for entry in entries(audit_file(place.config.runtime))]
    assert [what for what, _ in told] == ["rollout start", "rollout advance", "rollout advance", "promote"]
    assert told[0][1] == "v2 beside v1; v2 is new"


def test_the_next_process_goes_on_and_sets_the_weights_of_the_record(place: Place, lease: Lease) -> None:
    first = Driver(place.config, lease)
    asked(first, "start")
    traffic = place.traffic()
    while look(first).weight < 0.5:
        next(traffic)
    place.changes.append(({"v1": 1.0}, ""))  # a deploy of the champion
    second = Driver(place.config, lease)
    course = look(second)
    assert (course.state, course.weight) == ("running", 0.5)
    assert place.changes[-1] == ({"v1": 0.5, "v2": 0.5}, course.salt)
    for _ in traffic:
        if (course := look(second)).settled:
            break
    assert course.state == "promoted"


@pytest.mark.parametrize("died", ["before the endpoint followed", "before the registry was told"])
def test_an_end_that_was_decided_is_carried_out_by_the_next_process(
    place: Place, lease: Lease, died: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(place.config, lease)
    asked(driver, "start")
    if died == "before the endpoint followed":
        course = driver.records.latest()
        assert course is not None
        driver.records.save(course.promote(now=2e9, by="ann"))
    else:
        with monkeypatch.context() as patch:
            patch.setattr(place, "set_aliases", lambda *_: (_ for _ in ()).throw(RegistryError("the registry is away")))
            assert asked(driver, "promote").done
            assert not look(driver).settled
    assert look(Driver(place.config, lease)).settled
    assert place.changes[-1][0] == {"v2": 1.0}
    assert place.aliases_now == {"champion": "2", "previous": "1"}


def test_verbs_say_what_happened_and_wrong_moments_are_refused(place: Place, lease: Lease) -> None:
    driver = Driver(place.config, lease)
    assert asked(driver, "pause") == (
        False,
        "no rollout of flights is open, there was none so far; expected one. Start it: raymlp rollout start.",
    )
    assert asked(driver, "start", challenger="1") == (
        False,
        "v1 is the champion of flights already; expected another version as challenger.",
    )
    assert asked(driver, "start").told == "the rollout of v2 is started; shares: v1 0.9, v2 0.1"
    assert asked(driver, "set", share=0.3).told == "the rollout of v2 is set to another share; shares: v1 0.7, v2 0.3"
    assert asked(driver, "set", share=2.0).told.startswith("the share is 2.0; expected one above 0")
    assert asked(driver, "pause", reason="lunch").done
    assert asked(driver, "resume", accept=("ratio",)).done
    assert asked(driver, "abort").done
    course = look(driver)
    assert (course.state, course.accepted, course.settled) == ("aborted", ("ratio",), True)
    assert {event.by.rpartition("@")[2] for event in course.history} == {"laptop"}
    assert all(not event.by.startswith("ann") for event in course.history), "the file's owner asked, whatever the file says"
    assert place.changes[-1][0] == {"v1": 1.0}
    assert place.aliases_now == {"champion": "1"}
    assert not asked(driver, "resume").done


def test_an_order_is_carried_out_once_though_its_answer_was_lost(place: Place, lease: Lease) -> None:
    driver = Driver(place.config, lease)
    asked(driver, "start")
    order = Order("set", "ann@laptop", share=0.3)
    orders.place(driver.records.folder, order)
    driver.look()
    orders.place(driver.records.folder, order)
    second = Driver(place.config, lease)
    second.look()
    assert orders.answer_to(driver.records.folder, order) == (True, "the rollout of v2 is set to another share; shares: v1 0.7, v2 0.3")
    course = second.records.latest()
    assert course is not None
    assert [event.what for event in course.history] == ["start", "set"]


def test_what_is_no_order_is_answered_and_taken_away(place: Place, lease: Lease) -> None:
    driver = Driver(place.config, lease)
    folder = driver.records.folder / orders.FOLDER
    folder.mkdir(exist_ok=True)
    (folder / "1-x.json").write_text('{"verb": "explode"}')
    driver.look()
    assert [file.name for file in folder.iterdir()] == ["1-x.answer"]


def test_a_moment_without_evidence_changes_nothing_and_a_long_one_pauses(
    place: Place, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(place.config, lease)
    asked(driver, "start")
    look(driver)
    monkeypatch.setattr(serving, "problems", lambda _: (_ for _ in ()).throw(OSError("the disk is away")))
    assert look(driver).state == "running"
    assert driver._troubles == {"rollout": "OSError: the disk is away"}
    driver._seen -= 61
    course = look(driver)
    assert (course.state, course.history[-1].by) == ("paused", "raymlp rollout")
    assert course.history[-1].reason == "nothing could be looked at for 61 s (OSError: the disk is away)"
    monkeypatch.setattr(serving, "problems", place.problems)
    assert look(driver).state == "paused", "a person resumes it"
    assert driver._troubles == {}


def test_a_registry_that_is_away_does_not_stop_a_rollback(place: Place, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(place.config, lease)
    place.models["v2"] = Model(sees=0.0)
    asked(driver, "start")
    with monkeypatch.context() as patch:
        patch.setattr(place, "set_tags", lambda *_: (_ for _ in ()).throw(RegistryError("away")))
        for _ in place.traffic():
            course = look(driver)
            if not course.is_open:
                break
        assert (course.state, course.settled) == ("rolled back", False)
        assert place.changes[-1][0] == {"v1": 1.0}
        assert place.aliases_now == {"champion": "1", "challenger": "2"}
        assert driver._troubles == {"reports": "RegistryError: away"}
    assert look(driver).settled
    assert place.aliases_now == {"champion": "1"}


def test_a_champion_that_was_deployed_in_its_place_ends_a_rollout_and_stays(place: Place, lease: Lease) -> None:
    driver = Driver(place.config, lease)
    asked(driver, "start")
    place.changes.append(({"v7": 1.0}, ""))
    course = look(driver)
    assert (course.state, course.settled) == ("aborted", True)
    assert course.history[-1].reason == "the endpoint serves v7, which was deployed in place of v1"
    look(driver)
    assert place.changes[-1][0] == {"v7": 1.0}


def test_a_challenger_that_is_refused_ends_at_once_with_the_reason(place: Place, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_c: Any, _n: str, versions: Any, weights: Any, **_: Any) -> None:
        if "v2" in weights:
            raise VersionRefused("v2 does not load.")

    monkeypatch.setattr(serving, "set_versions", refuse)
    answer = asked(Driver(place.config, lease), "start")
    assert answer == (False, "the endpoint does not take v2: v2 does not load.")


def test_one_that_was_overtaken_changes_neither_record_nor_weights(place: Place, lease: Lease) -> None:
    driver = Driver(place.config, lease)
    asked(driver, "start")
    before, changes = driver.records.latest(), len(place.changes)
    other = Lease(rollout_folder(place.config), silent_s=0.0)
    other.take()
    assert other.take()
    orders.place(driver.records.folder, Order("promote", "ann@laptop"))
    with pytest.raises(Lost):
        driver.look()
    assert driver.current is not None
    with pytest.raises(Lost):
        driver.current.world.give(driver.current.course)
    assert driver.records.latest() == before
    assert len(place.changes) == changes
    assert orders.waiting(driver.records.folder, str), "the order waits for who drives now"
    other.release()


def test_aliases_are_followed_and_written_back(place: Place, lease: Lease) -> None:
    place.aliases_now = {"champion": "1"}
    config = with_overrides(place.config, {"serve.rollout.follow_registry_s": 0.1})
    driver = Driver(config, lease)
    driver.look()
    assert driver.records.latest() is None
    place.aliases_now["challenger"] = "2"
    assert look(driver).history[0].by == "the registry"
    assert place.changes[-1][0] == {"v1": 0.9, "v2": 0.1}
    del place.aliases_now["challenger"]
    look(driver)
    course = look(driver)
    assert (course.state, course.settled, course.history[-1].reason) == ("aborted", True, "the alias challenger was removed")
    place.aliases_now["champion"] = "2"
    look(driver)
    assert place.changes[-1][0] == {"v2": 1.0}
    assert place.aliases_now == {"champion": "2", "previous": "1"}
    count = len(place.changes)
    look(driver)
    assert len(place.changes) == count, "what it wrote itself asks for nothing"
    assert place.tags["2"]["raymlp.rollout"] == "serves"


def test_a_message_of_the_registry_has_it_look_before_its_turn(place: Place, lease: Lease) -> None:
    place.aliases_now = {"champion": "1"}
    settings = {"serve.rollout.follow_registry_s": 3_600.0}
    driver = Driver(with_overrides(place.config, settings), lease)
    driver.look()
    place.aliases_now["challenger"] = "2"
    driver.look()
    assert driver.records.latest() is None
    driver.look_at_registry()
    driver.look()
    course = driver.records.latest()
    assert course is not None
    assert (course.challenger, course.state) == ("v2", "running")


def test_records_that_are_none_and_older_forms_are_not_taken_for_one(place: Place, tmp_path: Path) -> None:
    records = Records(tmp_path)
    (tmp_path / "0123abc.json").write_text("{}")
    assert records.latest() is None
    start = Course.start("flights", "v1", "v2", salt="s" * 32, settings=SETTINGS, now=100.0, by="ann")
    records.save(start)
    later = replace(start, started=200.0, salt="t" * 32)
    records.save(later)
    assert records.latest() == later
    records.place(later).write_text("{")
    with pytest.raises(ServingError, match="the record of the rollout cannot be read"):
        records.latest()


def test_beside_a_record_that_cannot_be_read_nothing_is_begun(place: Place, lease: Lease) -> None:
    driver = Driver(with_overrides(place.config, {"serve.rollout.follow_registry_s": 0.1}), lease)
    torn = driver.records.folder / "20260101T000000.000000-torn.json"
    torn.write_text("{")
    answer = asked(driver, "start")
    assert (answer.done, "Move its file away, and start anew" in answer.told) == (False, True)
    assert place.changes == []
    assert list(driver._troubles) == ["record"]
    torn.unlink()
    assert look(driver).state == "running", "the alias challenger is there"


@pytest.fixture
def in_store(bucket: Any, place: Place) -> Iterator[Place]:
    """The endpoint with its results in a bucket."""
    pytest.importorskip("obstore")
    filesystem, query = bucket
    place.config = place.config.model_copy(update={"runtime": Runtime(storage=f"s3://lake/results?{query}")})
    yield place
    filesystem.delete_dir_contents("lake")


def test_with_results_in_a_store_it_goes_the_same_way_until_another_takes_over(in_store: Place) -> None:
    lease = lease_of(rollout_folder(in_store.config))
    assert lease.take()
    driver = Driver(in_store.config, lease)
    assert asked(driver, "start", reason="v2 is new").done
    for _ in in_store.traffic():
        course = look(driver)
        if course.settled:
            break
    assert (course.state, course.shares, course.settled) == ("promoted", (0.1, 0.5, 1.0), True)
    assert course.history[0].by == "ann@laptop"
    assert in_store.aliases_now == {"champion": "2", "previous": "1"}
    told = [entry["what"] for entry in entries(audit_file(in_store.config.runtime))]
    assert told == ["rollout start", "rollout advance", "rollout advance", "promote"]
    status = rollout_status(in_store.config)
    assert (status.course, status.is_driven, status.driver) == (course, True, lease.holder())
    lease.release()
    with lease_of(rollout_folder(in_store.config)).held(), pytest.raises(Lost):
        driver.keep(course)
    assert not rollout_status(in_store.config).is_driven
