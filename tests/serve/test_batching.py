"""Rows of several requests predicted together: the same answers, errors where they belong, and no wait for nobody."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

import pytest

from raymlp.config.model import Mlp
from raymlp.data.contract_row import Row
from raymlp.model.predictor import Prediction, Predictor
from raymlp.serve.batching import (
    HANDOVER_S,
    MOST_ROWS,
    QUICK_S,
    TRIED_ROWS,
    TRIED_S,
    WAIT_SHARE,
    Batcher,
    Pace,
    Turn,
    outcomes,
    pace_of,
)
from tests.serve.bundles import json_rows, make_bundle

SLOW, QUICK = Pace(alone_s=1e-2, together_s=1e-3), Pace(alone_s=1e-3, together_s=1e-4)


class Watched(Predictor):
    """Keeps the sizes of its batches."""

    sizes: list[int]

    def predict_together(self, rows: Any) -> Prediction:
        self.sizes.append(len(rows))
        return super().predict_together(rows)

    def predict_typed(self, row: Row) -> Prediction:
        self.sizes.append(1)
        return super().predict_typed(row)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    return Watched.load(make_bundle(tmp_path_factory.mktemp("b") / "bundle", seed=1, model=Mlp(hidden=(8,))))


@pytest.fixture
def predictor(loaded: Watched) -> Watched:
    loaded.sizes = []
    return loaded


def typed_rows(predictor: Predictor, count: int) -> list[Row]:
    return [predictor.check(row, "row") for row in json_rows(count)]


def score(answer: Prediction) -> float:
    assert len(answer) == 1
    return float(answer.scores[0])


@pytest.mark.parametrize("pace", [SLOW, QUICK])
def test_rows_that_come_together_are_one_batch_and_answered_as_alone(predictor: Watched, pace: Pace) -> None:
    rows = typed_rows(predictor, 10)
    expected = [score(Predictor.predict_typed(predictor, row)) for row in rows]

    async def ask() -> list[Prediction]:
        batcher = Batcher(predictor, pace)
        return list(await asyncio.gather(*(batcher.predict(row) for row in rows)))

    answers = asyncio.run(ask())
    assert predictor.sizes == [10]
    assert [score(answer) for answer in answers] == pytest.approx(expected, abs=1e-6)


def test_rows_that_come_during_a_batch_are_the_next_one(predictor: Watched) -> None:
    rows = typed_rows(predictor, 7)

    async def ask() -> None:
        batcher = Batcher(predictor, SLOW)
        first = asyncio.create_task(batcher.predict(rows[0]))
        for _ in range(2):
            await asyncio.sleep(0)  # the first row's batch has begun
        await asyncio.gather(first, *(batcher.predict(row) for row in rows[1:]))

    asyncio.run(ask())
    assert predictor.sizes == [1, 6]


def test_a_batch_is_no_longer_than_a_tenth_of_a_second(predictor: Watched) -> None:
    rows = typed_rows(predictor, 7)

    async def ask() -> None:
        batcher = Batcher(predictor, Pace(alone_s=1.0, together_s=0.04))
        await asyncio.gather(*(batcher.predict(row) for row in rows))

    asyncio.run(ask())
    assert predictor.sizes == [2, 2, 2, 1]


def test_a_quick_model_predicts_in_the_event_loop_what_came_in_one_turn(predictor: Watched) -> None:
    rows, threads = typed_rows(predictor, 5), set[str]()
    together = predictor.predict_together

    def seen(rows: Any) -> Prediction:
        threads.add(threading.current_thread().name)
        return together(rows)

    async def ask() -> None:
        batcher = Batcher(predictor, Pace(alone_s=1e-2, together_s=QUICK_S / TRIED_ROWS))
        await asyncio.gather(*(batcher.predict(row) for row in rows[:3]))
        first = asyncio.create_task(batcher.predict(rows[0]))
        for _ in range(2):
            await asyncio.sleep(0)
        await asyncio.gather(first, *(batcher.predict(row) for row in rows[1:]))
        await asyncio.gather(*(batcher.predict(rows[0]) for _ in range(TRIED_ROWS + 3)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "predict_together", seen)
        asyncio.run(ask())
    assert predictor.sizes == [3, 1, 4, TRIED_ROWS, 3], "the one that came a turn before the four has not waited for them"
    assert threads == {threading.current_thread().name}


@pytest.mark.parametrize("pace", [SLOW, QUICK])
def test_an_error_stays_with_the_row_that_has_it(predictor: Watched, pace: Pace) -> None:
    good, bad = typed_rows(predictor, 3), {"delay": 1.0}

    async def ask() -> list[Prediction | BaseException]:
        batcher = Batcher(predictor, pace)
        return list(await asyncio.gather(*(batcher.predict(row) for row in (good[0], bad, *good[1:])), return_exceptions=True))

    answers = asyncio.run(ask())
    assert isinstance(answers[1], KeyError)
    scores = [score(answer) for answer in answers if isinstance(answer, Prediction)]
    assert scores == [score(Predictor.predict_typed(predictor, row)) for row in good]


def test_a_request_that_goes_away_leaves_the_others_their_answers(predictor: Watched) -> None:
    rows = typed_rows(predictor, 3)

    async def ask() -> list[Prediction | BaseException]:
        batcher = Batcher(predictor, SLOW)
        tasks = [asyncio.create_task(batcher.predict(row)) for row in rows]
        await asyncio.sleep(0)
        tasks[1].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        return [*answers, await batcher.predict(rows[1])]

    answers = asyncio.run(ask())
    assert isinstance(answers[1], asyncio.CancelledError)
    assert all(isinstance(answer, Prediction) for answer in (answers[0], answers[2], answers[3]))


def waits(predictor: Watched, *bursts: int, apart_s: float = 0) -> list[float]:
    """Seconds of every wait while bursts of requests follow one another, so many seconds apart, for rows of a minute each."""
    rows, found = typed_rows(predictor, max(bursts)), list[float]()

    async def ask() -> None:
        loop, batcher = asyncio.get_running_loop(), Batcher(predictor, Pace(alone_s=60, together_s=1e-3))
        later = loop.call_later

        def watched(delay: float, *args: Any, **more: Any) -> asyncio.TimerHandle:
            found.append(delay)
            return later(0, *args, **more)

        loop.call_later = watched  # type: ignore[method-assign]
        clock, later_by = loop.time, 0.0
        loop.time = lambda: clock() + later_by  # type: ignore[method-assign]
        for burst in bursts:
            later_by += apart_s
            await asyncio.gather(*(batcher.predict(row) for row in rows[:burst]))

    asyncio.run(ask())
    return found


def test_nobody_waits_who_is_alone_and_others_are_waited_for_a_part_of_a_rows_time(predictor: Watched) -> None:
    assert waits(predictor, 1, 1, 1) == []
    assert waits(predictor, 4, 4, 4) == [], "as many came as were answered"
    assert waits(predictor, 4, 1, 1) == [60 * WAIT_SHARE], "once; the batch of one says that nobody else comes"
    assert waits(predictor, 4, 1, apart_s=61) == [], "the last batch is long gone"


def test_a_wait_ends_when_as_many_have_come_as_before(predictor: Watched) -> None:
    rows = typed_rows(predictor, 4)

    async def ask() -> None:
        batcher = Batcher(predictor, Pace(alone_s=600, together_s=1e-3))
        await asyncio.gather(*(batcher.predict(row) for row in rows))
        first = asyncio.create_task(batcher.predict(rows[0]))
        for _ in range(3):
            await asyncio.sleep(0)  # it waits for three others, 150 s
        await asyncio.gather(first, *(batcher.predict(row) for row in rows[1:]))

    asyncio.run(asyncio.wait_for(ask(), 60))
    assert predictor.sizes == [4, 4]


def test_a_model_gains_when_a_row_saves_more_than_it_costs_to_be_in_a_batch() -> None:
    slow = 2 * QUICK_S / TRIED_ROWS
    assert Pace(slow + 1.01 * HANDOVER_S, slow).gains
    assert not Pace(slow + 0.99 * HANDOVER_S, slow).gains
    assert not Pace(10 * slow, 10 * slow).gains, "costly, and no cheaper together"
    assert Pace(1.01e-4, 1e-4).gains, "in the event loop nothing is passed on"
    assert not Pace(0.99e-4, 1e-4).gains
    assert Pace(1, 1e-6).most_rows == MOST_ROWS
    assert Pace(1, QUICK_S / TRIED_ROWS).most_rows == TRIED_ROWS
    assert Pace(1, 0.03).most_rows == 3
    assert Pace(9, 9).most_rows == 1
    assert Pace(1e-3, 1e-3).most_rows == 1, "one a turn"


def test_what_is_quick_is_predicted_in_the_event_loop() -> None:
    assert Pace(1, QUICK_S / TRIED_ROWS).is_quick
    assert not Pace(1, 1.01 * QUICK_S / TRIED_ROWS).is_quick
    assert Pace(QUICK_S, QUICK_S).is_quick, "no batches: a row counts"
    assert not Pace(1.01 * QUICK_S, 1.01 * QUICK_S).is_quick


@pytest.mark.parametrize("seconds", [1e-3, 1.0])
def test_a_model_without_gain_predicts_row_by_row_and_lets_others_be_read_between(
    predictor: Watched, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    rows, read = typed_rows(predictor, 4), list[int]()

    async def ask() -> None:
        batcher = Batcher(predictor, Pace(seconds, seconds))
        monkeypatch.setattr("raymlp.serve.batching.QUICK_S", 0.0)  # a row takes longer than a turn of the event loop may

        async def answered(row: Row) -> None:
            await batcher.predict(row)
            read.append(len(predictor.sizes))

        await asyncio.gather(*map(answered, rows))

    asyncio.run(ask())
    assert predictor.sizes == [1, 1, 1, 1]
    assert len(read) == 4
    assert read[0] < 4, "the first was answered before the last was predicted"


def test_versions_answer_in_the_order_in_which_their_rows_came(predictor: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a challenger with few requests neither wait for the champion's answers nor overtake them."""
    rows, order = typed_rows(predictor, 6), list[int]()

    async def ask(*paces: Pace) -> None:
        turn, versions = Turn(), [Batcher(predictor, pace) for pace in paces]
        for version in versions:
            version.turn = turn

        async def answered(place: int) -> None:
            await versions[place == 2].predict(rows[place])
            order.append(place)

        await asyncio.gather(*map(answered, range(6)))

    asyncio.run(ask(QUICK, QUICK))
    assert (predictor.sizes, order) == ([5, 1], [0, 1, 2, 3, 4, 5])
    predictor.sizes, order = [], []
    one_by_one = Pace(1e-3, 1e-3)
    asyncio.run(ask(one_by_one, QUICK))
    assert (predictor.sizes, order) == ([1] * 6, [0, 1, 2, 3, 4, 5])
    predictor.sizes, order = [], []
    monkeypatch.setattr("raymlp.serve.batching.QUICK_S", 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pace, "is_quick", True)
        asyncio.run(ask(one_by_one, one_by_one))
    assert (predictor.sizes, order) == ([1] * 6, [0, 1, 2, 3, 4, 5])


def test_the_pace_is_the_quickest_of_several_trials(predictor: Watched) -> None:
    times = iter([0, 5, 5, 7, 7, 20, 20, 36, 36, 68, 68, 100])  # 5, 2, 13 s alone; 16, 32, 32 s together
    assert pace_of(predictor, typed_rows(predictor, 1)[0], clock=lambda: next(times)) == Pace(2, 16 / TRIED_ROWS)


def test_a_quick_model_is_measured_often(predictor: Watched) -> None:
    """So that two versions with nets alike are not served in two ways by chance."""
    ticks = itertools.count()
    pace = pace_of(predictor, typed_rows(predictor, 1)[0], clock=lambda: next(ticks) * TRIED_S / 20)
    assert pace == (pytest.approx(TRIED_S / 20), pytest.approx(TRIED_S / 20 / TRIED_ROWS))
    assert 20 <= predictor.sizes.count(1) <= 21, "the sum of floats"
    assert 20 <= predictor.sizes.count(TRIED_ROWS) <= 21
    assert pace_of(predictor, typed_rows(predictor, 1)[0], together=False).gains is False


def test_outcomes_of_no_rows_are_none(predictor: Watched) -> None:
    assert outcomes(predictor, []) == []
