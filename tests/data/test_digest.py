"""Quantiles from a digest: exact while they can be, close and deterministic beyond."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raymlp.data.digest import CLUSTERS, EXACT, Digest


def digest_of(values: object, parts: int = 1) -> Digest:
    """A digest of each part, merged."""
    whole = Digest()
    for part in np.array_split(np.asarray(values, np.float64), parts):
        piece = Digest()
        piece.add(*np.unique(part, return_counts=True))
        whole.merge(piece)
    return whole


def rank_error(digest: Digest, values: NDArray[np.float64]) -> float:
    """Largest distance between a share and the share of values below its quantile."""
    shares = np.linspace(0.001, 0.999, 333)
    found = np.array([digest.quantile(share) for share in shares])
    return float(np.abs(np.searchsorted(np.sort(values), found) / len(values) - shares).max())


@settings(max_examples=100)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=80, unique=True), st.floats(0, 1), st.integers(1, 5))
def test_distinct_values_give_hazens_quantiles_however_they_came(values: list[float], share: float, parts: int) -> None:
    expected = np.quantile(values, share, method="hazen")
    assert digest_of(values, parts).quantile(share) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_value_that_many_rows_share_holds_all_their_ranks() -> None:
    digest = digest_of([0.0] * 6 + [10.0] * 2 + [20.0] * 2)
    assert [digest.quantile(share) for share in (0.0, 0.5, 0.55, 0.6, 0.7, 1.0)] == [0, 0, 0, 5, 10, 20]
    below, up_to = digest.steps()
    assert (below.tolist(), up_to.tolist()) == ([0, 6, 8], [6, 8, 10])


@pytest.mark.parametrize("draw", ["normal", "lognormal", "uniform", "standard_cauchy"])
def test_ranks_are_within_half_a_cluster_after_forty_merges(draw: str) -> None:
    values = getattr(np.random.default_rng(0), draw)(size=200_000)
    digest = digest_of(values, parts=40)
    assert rank_error(digest, values) < np.pi / 4 / CLUSTERS * 1.2
    assert len(digest.means) <= EXACT
    assert digest.rows == len(values)
    assert not digest.is_exact


def test_the_ends_are_single_rows() -> None:
    values = np.random.default_rng(1).normal(size=100_000)
    digest = digest_of(values)
    assert (digest.quantile(0.0), digest.quantile(1.0)) == (values.min(), values.max())
    assert len(digest.means) <= CLUSTERS + 1


def test_a_heavy_value_stays_whole_among_many_others() -> None:
    rng = np.random.default_rng(2)
    values = np.where(rng.random(50_000) < 0.4, 0.0, rng.normal(size=50_000))
    digest = digest_of(values, parts=9)
    place = int(np.searchsorted(digest.means, 0.0))
    assert digest.pure[place]
    assert digest.weights[place] == pytest.approx((values == 0).sum(), rel=0.002)


def test_few_distinct_values_stay_exact_over_any_number_of_rows() -> None:
    values = np.random.default_rng(3).integers(0, EXACT, 100_000).astype(float)
    digest = digest_of(values, parts=11)
    assert digest.is_exact
    assert dict(zip(digest.means, digest.weights, strict=True)) == dict(zip(*np.unique(values, return_counts=True), strict=True))


def test_extremes_do_not_overflow() -> None:
    values = np.r_[np.linspace(-1.7e308, 0, 5_000), np.linspace(0, 1.7e308, 5_000)]
    assert np.isfinite(digest_of(values).means).all()


def test_the_same_rows_give_the_same_bytes_and_json_gives_them_back() -> None:
    values = np.random.default_rng(4).normal(size=30_000)
    plain = digest_of(values).to_dict()
    assert plain == digest_of(values).to_dict()
    assert Digest.from_dict(json.loads(json.dumps(plain))).to_dict() == plain


def test_no_rows_have_no_quantile() -> None:
    assert np.isnan(Digest().quantile(0.5))
    assert Digest().is_exact
