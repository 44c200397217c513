"""Aliases through the life of a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.registry.promotion import Event, decide


def after(aliases: dict[str, str], event: Event, version: str, *, passed: bool = True) -> dict[str, str]:
    changed = {**aliases, **decide(event, version, aliases, passed=passed)[1]}
    return {alias: held for alias, held in changed.items() if held is not None}


def test_the_life_of_three_versions() -> None:
    aliases = after({}, "register", "1")
    assert aliases == {"champion": "1"}
    aliases = after(aliases, "register", "2")
    assert aliases == {"champion": "1", "challenger": "2"}
    aliases = after(aliases, "promote", "2")
    assert aliases == {"champion": "2", "previous": "1"}
    aliases = after(aliases, "register", "3")
    aliases = after(aliases, "rollback", "3")
    assert aliases == {"champion": "2", "previous": "1"}
    aliases = after(aliases, "rollback", "2")
    assert aliases == {"champion": "1"}


@pytest.mark.parametrize(
    ("event", "version", "aliases", "passed", "reason"),
    [
        ("register", "2", {"champion": "1"}, False, "version 2 did not pass the gate; the champion stays version 1"),
        ("register", "1", {"champion": "1"}, True, "version 1 is the champion already"),
        ("promote", "1", {"champion": "1"}, True, "version 1 is the champion already"),
        (
            "promote",
            "3",
            {"champion": "1", "challenger": "2"},
            True,
            "version 3 is not the challenger (version 2); only the challenger is promoted",
        ),
        ("rollback", "1", {"champion": "1"}, True, "version 1 is the champion and no earlier one is remembered"),
        ("rollback", "9", {"champion": "1"}, True, "version 9 is neither champion nor challenger"),
    ],
)
def test_nothing_changes_and_the_reason_is_given(event: Event, version: str, aliases: dict[str, str], passed: bool, reason: str) -> None:
    decision, changes = decide(event, version, aliases, passed=passed)
    assert (decision.action, decision.reason, changes) == ("keep", reason, {})


@given(st.lists(st.tuples(st.sampled_from(["register", "promote", "rollback"]), st.sampled_from("123"), st.booleans()), max_size=12))
def test_a_champion_is_never_lost_and_no_version_is_champion_and_challenger(events: list[tuple[Event, str, bool]]) -> None:
    aliases: dict[str, str] = {}
    for event, version, passed in events:
        had_champion = "champion" in aliases
        aliases = after(aliases, event, version, passed=passed)
        assert not had_champion or "champion" in aliases
        assert "champion" not in aliases or aliases.get("challenger") != aliases["champion"]
