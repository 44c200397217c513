"""Which version answers."""

from __future__ import annotations

import hashlib
import itertools
import math
from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymlp.core.errors import ServingError
from raymlp.serve.routing import Routes, bucket, misrouted

SHARES = st.floats(0, 1)


def routes(challenger: float) -> Routes:
    return Routes.of("old", {"old": 1 - challenger, "new": challenger})


def test_bucket_is_the_first_53_bits_of_blake2b() -> None:
    # A change would move every user to another version.
    word = int(hashlib.blake2b(b"flight-7", digest_size=8).hexdigest(), 16)
    assert bucket("flight-7") == (word >> 11) / 2**53


@given(st.text())
def test_every_key_has_a_place_in_the_unit_interval(key: str) -> None:
    assert 0 <= bucket(key) < 1


def test_a_tenth_of_two_thousand_keys_goes_to_a_challenger_with_weight_a_tenth() -> None:
    split = routes(0.1)
    hits = sum(split.choose(f"key-{i}") == "new" for i in range(2_000))
    sigma = math.sqrt(2_000 * 0.1 * 0.9)
    assert abs(hits - 200) < 4 * sigma


@given(st.text(), SHARES, SHARES)
def test_growing_the_challenger_moves_keys_only_from_champion_to_challenger(key: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    before, after = routes(small).choose(key), routes(large).choose(key)
    assert before == after or (before, after) == ("old", "new")


@given(st.text())
def test_all_or_nothing_weights_send_every_key_one_way(key: str) -> None:
    assert routes(0).choose(key) == "old"
    assert routes(1).choose(key) == "new"


def test_the_order_of_the_weights_does_not_matter() -> None:
    one = Routes.of("old", {"old": 0.7, "new": 0.3})
    other = Routes.of("old", {"new": 0.3, "old": 0.7})
    assert one == other


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"old": 0.5, "new": 0.4}, "sum to 0.9"),
        ({"old": 1.2, "new": -0.2}, "weight of old is 1.2"),
        ({"old": math.nan}, "weight of old is nan"),
        ({"new": 1.0}, "a share for the champion old"),
        ({}, "no version"),
    ],
)
def test_weights_that_are_no_shares_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ServingError, match=message):
        Routes.of("old", weights)


def test_another_salt_deals_the_keys_anew_and_the_same_one_does_not() -> None:
    one, other = (Routes.of("old", {"old": 0.5, "new": 0.5}, salt=salt) for salt in ("monday", "tuesday"))
    keys = [f"key-{i}" for i in range(2_000)]
    both = sum(one.choose(key) == other.choose(key) for key in keys)
    assert abs(both - 1_000) < 4 * math.sqrt(500)
    assert one == Routes.of("old", {"old": 0.5, "new": 0.5}, salt="monday")


def test_a_salted_bucket_is_a_keyed_blake2b() -> None:
    key = hashlib.blake2b(b"monday", digest_size=32).digest()
    word = int(hashlib.blake2b(b"flight-7", digest_size=8, key=key).hexdigest(), 16)
    assert bucket("flight-7", "monday") == (word >> 11) / 2**53


@given(st.text(max_size=20), SHARES)
def test_routes_go_through_text_and_back(salt: str, share: float) -> None:
    before = Routes.of("old", {"old": 1 - share, "new": share}, salt=salt)
    assert Routes.parse(str(before)) == before
    assert before.share("new") == pytest.approx(share, abs=1e-12)
    assert before.share("old") + before.share("new") == pytest.approx(1)
    assert before.share("other") == 0.0


@pytest.mark.parametrize("text", ["", "{}", '["s", ["old"]]', '["s", 5, []]', "null"])
def test_routes_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(ServingError, match="expected salt, labels and bounds"):
        Routes.parse(text)


def test_a_log_is_recomputed_row_by_row() -> None:
    early, late = (Routes.of("old", {"old": 1 - share, "new": share}, salt="s") for share in (0.1, 0.5))
    keys = [f"key-{i}" for i in range(300)]
    routes = [str(early if i < 150 else late) for i in range(300)]
    versions = [(early if i < 150 else late).choose(key) for i, key in enumerate(keys)]
    assert misrouted(keys, versions, routes) == []
    versions[7] = "new" if versions[7] == "old" else "old"
    assert misrouted(keys, versions, routes) == [7]
    assert misrouted(keys[:8], versions[:8], [str(late)] * 8) != []


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=5), st.lists(st.floats(0.01, 1), min_size=5, max_size=5))
def test_with_several_versions_few_keys_move_when_weights_do(before: list[float], after: list[float]) -> None:
    names = [f"v{number}" for number in range(len(before))]
    old, new = ({name: part / sum(parts) for name, part in zip(names, parts, strict=True)} for parts in (before, after[: len(before)]))
    one, other = Routes.of("v0", old), Routes.of("v0", new)
    for name in names:
        assert one.share(name) == pytest.approx(old[name], abs=1e-9)
    least = sum(max(0.0, new[name] - old[name]) for name in names)
    edges = sorted({0.0, *one.bounds, *other.bounds, 1.0})
    moved = 0.0
    for low, high in itertools.pairwise(edges):
        middle = (low + high) / 2
        pick = [routes.labels[bisect_right(routes.bounds, middle)] for routes in (one, other)]
        moved += (high - low) * (pick[0] != pick[1])
    assert moved <= 2 * least + 1e-9
