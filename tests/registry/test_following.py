"""What moved aliases ask of an endpoint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.registry.following import follow
from raymlp.registry.promotion import decide


@pytest.mark.parametrize(
    ("aliases", "champion", "challenger", "action"),
    [
        ({"champion": "1"}, "1", None, "keep"),
        ({"champion": "1", "challenger": "2"}, "1", "2", "keep"),
        ({"champion": "1", "challenger": "2"}, "1", None, "start"),
        ({"champion": "1", "challenger": "1"}, "1", None, "keep"),
        ({"champion": "1"}, "1", "2", "abort"),
        ({"champion": "1", "challenger": "3"}, "1", "2", "abort"),
        ({"champion": "2", "challenger": "2"}, "1", "2", "promote"),
        ({"champion": "3", "challenger": "2"}, "1", "2", "abort"),
        ({"champion": "3"}, "1", None, "serve"),
        ({}, "1", None, "keep"),
        ({}, "1", "2", "abort"),
    ],
)
def test_what_each_move_asks_for(aliases: dict[str, str], champion: str, challenger: str | None, action: str) -> None:
    found = follow(aliases, champion=champion, challenger=challenger)
    assert found.action == action
    assert found.reason


VERSION = st.sampled_from(["1", "2", "3"])


@given(st.dictionaries(st.sampled_from(["champion", "challenger"]), VERSION), VERSION, st.none() | VERSION)
def test_carried_out_and_written_back_it_comes_to_rest(aliases: dict[str, str], champion: str, challenger: str | None) -> None:
    """Whatever the aliases are moved to, the endpoint is where they want it after a few looks, and asks no more of itself."""
    if challenger == champion:
        return
    for _ in range(6):
        move = follow(aliases, champion=champion, challenger=challenger)
        match move.action:
            case "keep":
                break
            case "start":
                challenger = move.facts["version"]
            case "serve":
                champion = move.facts["version"]
            case "abort":
                if aliases.get("challenger") == challenger:
                    aliases = {name: version for name, version in aliases.items() if name != "challenger"}
                challenger = None
            case "promote":
                assert challenger is not None
                champion = challenger
                changes = decide("promote", champion, {**aliases, "challenger": champion})[1]
                aliases = {name: str(version) for name, version in {**aliases, **changes}.items() if version is not None}
                challenger = None
    else:
        pytest.fail(f"no rest: {aliases}, {champion}, {challenger}")
    assert champion == aliases.get("champion", champion)
