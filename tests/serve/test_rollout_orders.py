"""Orders that nobody answers, or that are answered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raymlp.core.errors import ServingError
from raymlp.serve.rollout import orders
from raymlp.serve.rollout.orders import Answer, Order


def owner(number: int) -> str:
    return f"user {number}"


def test_an_order_nobody_lives_to_answer_is_taken_back(tmp_path: Path) -> None:
    for limit_s, live in ((600.0, False), (0.0, True)):
        with pytest.raises(ServingError, match="nobody answered 'pause', so it was taken back"):
            orders.asked(tmp_path, Order("pause", "ann@laptop"), limit_s=limit_s, is_live=lambda live=live: live)  # type: ignore[misc]
    assert orders.waiting(tmp_path, owner) == []


def test_orders_come_oldest_first_from_the_owner_of_their_files(tmp_path: Path) -> None:
    first, second = Order("set", "ann@laptop", share=0.1), Order("resume", "bob@desk", accept=("ratio",))
    orders.place(tmp_path, second)
    orders.place(tmp_path, first)
    found = orders.waiting(tmp_path, owner)
    assert [(order.verb, order.share, order.accept) for order in found] == [("set", 0.1, ()), ("resume", None, ("ratio",))]
    assert [order.by for order in found] == [f"user {os.getuid()}@laptop", f"user {os.getuid()}@desk"]


def test_an_answer_is_fetched_once_and_old_ones_go(tmp_path: Path) -> None:
    one, other = Order("pause", "ann@laptop"), Order("abort", "ann@laptop")
    for order in (one, other):
        orders.place(tmp_path, order)
    orders.answer(tmp_path, one.id, Answer(True, "done"))
    old = tmp_path / orders.FOLDER / f"{one.id}.answer"
    os.utime(old, (1e9, 1e9))
    orders.answer(tmp_path, other.id, Answer(False, "no"))
    assert not old.exists()
    assert orders.answer_to(tmp_path, other) == (False, "no")
    assert orders.answer_to(tmp_path, other) is None
    assert not orders.withdraw(tmp_path, other)
