"""Distinct rows of a caller in an hour, over all replicas."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest

from raymlp.config.access import Access
from raymlp.serve import extraction
from raymlp.serve.admission import ANYONE, Admission
from raymlp.serve.extraction import HOUR_S, DistinctRows, mark
from raymlp.serve.keys import KeyRing, Refusal

NOON = 12.0 * HOUR_S


def rows(start: int, end: int) -> list[dict[str, Any]]:
    return [{"hours": number, "carrier": "x", "at": datetime(2026, 1, 1, tzinfo=UTC), "shot": b"\xff"} for number in range(start, end)]


def test_equal_rows_count_once_and_small_numbers_are_exact() -> None:
    seen = DistinctRows()
    seen.add("shop", rows(0, 100), NOON)
    seen.add("shop", rows(50, 120), NOON)
    assert round(seen.count("shop", NOON)) == 120
    assert seen.count("desk", NOON) == 0


def test_the_error_at_many_rows_is_what_is_said() -> None:
    seen = DistinctRows()
    seen.add("shop", rows(0, 50_000), NOON)
    assert abs(seen.count("shop", NOON) / 50_000 - 1) < 4 * 0.016


def test_replicas_count_together_and_rows_that_both_saw_once() -> None:
    one, other, all_of_them = DistinctRows(), DistinctRows(), DistinctRows()
    one.add("shop", rows(0, 300), NOON)
    other.add("shop", rows(200, 400), NOON)
    all_of_them.merge(one.changes())
    united = all_of_them.merge(other.changes())
    other.merge(united)
    assert abs(other.count("shop", NOON) - 400) <= 4
    assert other.changes() == {}
    other.tell_again(united)
    assert set(other.changes()) == {"shop"}
    assert abs(one.count("shop", NOON) - 300) <= 3, "not told yet"


def test_an_hour_begins_at_nothing_and_late_words_of_the_last_one_change_nothing() -> None:
    late, seen = DistinctRows(), DistinctRows()
    late.add("shop", rows(0, 10), NOON + 3_599)
    seen.add("shop", rows(0, 5), NOON)
    assert seen.count("shop", NOON + 3_600) == 0
    seen.add("shop", rows(0, 3), NOON + 3_600)
    assert seen.merge(late.changes()) == {}
    assert round(seen.count("shop", NOON + 3_600)) == 3


def test_memory_is_bounded_by_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "MAX_CALLERS", 2)
    seen = DistinctRows()
    for caller in "abc":
        seen.add(caller, rows(0, 2), NOON)
    assert [round(seen.count(caller, NOON)) for caller in "abc"] == [0, 2, 2]


def test_a_row_has_the_same_mark_in_another_process() -> None:
    code = "from raymlp.serve.extraction import mark; from tests.serve.test_extraction import rows; print(mark(rows(7, 8)[0]))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "5"})
    assert int(other.stdout) == mark(rows(7, 8)[0])


def test_who_asked_for_too_many_rows_waits_for_the_hour_to_end() -> None:
    door = Admission(KeyRing(()), needs_key=False, access=Access(extraction_limit=50))
    door.count_rows(ANYONE, rows(0, 49))
    door.count_rows(ANYONE, rows(0, 60))
    with pytest.raises(Refusal) as found:
        door.count_rows(ANYONE, rows(0, 1))
    assert (found.value.status, found.value.found) == (429, "over 50 distinct rows in this hour")
    assert 0 < found.value.wait_s <= HOUR_S
