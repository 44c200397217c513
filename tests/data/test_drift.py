"""Drift: the arithmetic against hand-worked values and SciPy, silence where nothing moved, alarm where something did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raymlp.config.monitor import Monitor
from raymlp.core.records import Finding
from raymlp.data.drift import chi_square_test, compare, drift, holm, ks_test, psi
from raymlp.data.profile import Profile

CHANGE_POINT = 17_424


def profile(**columns: object) -> Profile:
    return Profile().update(pa.table(columns))


def one(before: object, now: object, config: Monitor | None = None) -> Finding:
    (found,) = drift(profile(x=before), profile(x=now), config or Monitor(min_rows=1))
    return found


def test_psi_by_hand() -> None:
    expected, found = np.array([5_000_000.0, 5_000_000]), np.array([8_000_000.0, 2_000_000])
    assert psi(expected, found) == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4), abs=1e-5)


def test_psi_of_equal_shares_is_zero_and_empty_bins_stay_finite() -> None:
    assert psi(np.array([10.0, 30]), np.array([100.0, 300])) == 0
    assert np.isfinite(psi(np.array([0.0, 100]), np.array([100.0, 0])))
    assert psi(np.array([5.0]), np.array([7.0])) == 0
    assert psi(np.zeros(3), np.zeros(3)) == 0


def test_what_psi_subtracts_is_what_chance_gives() -> None:
    rng = np.random.default_rng(0)
    share = np.full(10, 0.1)
    raw = []
    for _ in range(400):
        p, q = rng.multinomial(5_000, share) / 5_000, rng.multinomial(1_000, share) / 1_000
        raw.append(np.sum((q - p) * np.log(q / p)))
    assert np.mean(raw) == pytest.approx(9 * (1 / 5_000 + 1 / 1_000), rel=0.1)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5])
def test_kolmogorov_smirnov_is_scipys(shift: float) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=150), rng.normal(shift, 1, 120)
    before, now = (profile(x=values).columns["x"].distribution() for values in (a, b))
    assert before
    assert now
    distance, p_value = ks_test(before, now, n=150, m=120)
    expected = stats.ks_2samp(a, b, method="asymp")
    assert distance == pytest.approx(expected.statistic, abs=0.012)
    assert p_value == pytest.approx(stats.kstwobign.sf(distance * np.sqrt(150 * 120 / 270)))
    assert p_value == pytest.approx(expected.pvalue, abs=0.15)


def test_kolmogorov_smirnov_on_whole_numbers_is_exact() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 20, 5_000), rng.integers(0, 21, 3_000)
    before, now = (profile(x=values).columns["x"].distribution() for values in (a, b))
    assert before
    assert now
    assert ks_test(before, now, n=5_000, m=3_000)[0] == pytest.approx(stats.ks_2samp(a, b).statistic)


def test_chi_square_is_scipys() -> None:
    expected, found = np.array([500.0, 300, 200]), np.array([40.0, 50, 30])
    reference = stats.chi2_contingency(np.array([expected, found]), correction=False)
    assert chi_square_test(expected, found) == pytest.approx((reference.statistic, reference.pvalue))


def test_chi_square_pools_small_bins_and_survives_none() -> None:
    statistic, _ = chi_square_test(np.array([500.0, 300, 2, 1]), np.array([50.0, 30, 1, 2]))
    pooled = stats.chi2_contingency([[500, 300, 3], [50, 30, 3]], correction=False)
    assert statistic == pytest.approx(pooled.statistic)
    assert chi_square_test(np.zeros(3), np.ones(3)) == (0.0, 1.0)
    assert chi_square_test(np.array([10.0, 0]), np.array([7.0, 0])) == (0.0, 1.0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_keeps_the_order_and_never_lowers_a_p_value(values: list[float]) -> None:
    corrected = holm(values)
    assert all(after >= before for before, after in zip(values, corrected, strict=True))
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


@settings(max_examples=40)
@given(
    st.lists(st.none() | st.floats(-5, 5), min_size=1, max_size=200),
    st.lists(st.none() | st.floats(-5, 5), min_size=1, max_size=200),
)
def test_two_columns_give_finite_numbers_and_none_drifts_from_itself(a: list[float | None], b: list[float | None]) -> None:
    before, now = (profile(x=pa.array(values, pa.float64())).columns["x"] for values in (a, b))
    change, same = compare(before, now), compare(before, before)
    assert np.isfinite(change.psi)
    assert change.psi >= 0
    assert 0 <= change.p_value <= 1
    assert same.psi == 0
    assert same.p_value == pytest.approx(1)


def test_no_false_alarm_in_200_draws_without_drift() -> None:
    rng = np.random.default_rng(0)

    def draw(rows: int) -> Profile:
        return profile(
            normal=rng.normal(size=rows), heavy=rng.lognormal(size=rows),
            spike=np.where(rng.random(rows) < 0.8, 0.0, rng.normal(size=rows)),
            count=rng.poisson(3, rows), kind=rng.choice(list("abcdefgh"), rows), many=rng.integers(0, 300, rows).astype(str),
            holes=pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.3), flag=rng.random(rows) < 0.1,
        )  # fmt: skip

    alarms = 0
    for index in range(200):
        rows = (50, 500, 2_000)[index % 3]
        found = drift(draw(3_000), draw(rows), Monitor(min_rows=1))
        alarms += any(finding.alert for finding in found)
    assert alarms <= 2


def test_small_samples_do_not_alarm_by_size_alone_nor_large_ones_by_significance_alone() -> None:
    rng = np.random.default_rng(3)
    tiny = one(rng.normal(size=5_000), rng.normal(0.6, 1, 12))
    assert not tiny.alert
    large = one(rng.normal(size=200_000), rng.normal(0.05, 1, 200_000))
    assert not large.alert
    assert "p < 1e-12" in large.note


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (np.random.default_rng(0).normal(size=5_000), np.random.default_rng(1).normal(1, 1, 800)),
        (np.random.default_rng(0).normal(size=5_000), np.random.default_rng(1).normal(0, 3, 800)),
        (np.full(5_000, 0.25), np.random.default_rng(1).normal(0.25, 0.1, 800)),
        (np.full(5_000, 0.25), np.random.default_rng(1).uniform(0, 0.2, 800)),
        (np.random.default_rng(0).poisson(3, 5_000), np.random.default_rng(1).poisson(6, 800)),
        (["a"] * 4_000 + ["b"] * 1_000, ["a"] * 300 + ["b"] * 500),
        (["a"] * 4_000 + ["b"] * 1_000, ["a"] * 500 + ["new"] * 300),
        ([True] * 4_000 + [False] * 1_000, [True] * 300 + [False] * 500),
        (np.random.default_rng(0).normal(size=5_000), pa.nulls(800, pa.float64())),
        (pa.nulls(5_000, pa.float64()), np.random.default_rng(0).normal(size=800)),
        (np.random.default_rng(0).normal(size=5_000), pa.array([None if i % 2 else i / 400 - 1 for i in range(800)])),
    ],
    ids=[
        "mean",
        "spread",
        "constant wakes",
        "constant falls",
        "counts",
        "shares",
        "unseen",
        "flag",
        "goes missing",
        "appears",
        "half missing",
    ],
)
def test_a_planted_change_is_found(before: object, now: object) -> None:
    assert one(before, now).alert


def test_values_and_their_absence_are_two_tests_of_one_column() -> None:
    rng = np.random.default_rng(4)
    before = profile(x=pa.array(rng.normal(size=1_000), mask=rng.random(1_000) < 0.3)).columns["x"]
    now = profile(x=pa.array(rng.normal(0.1, 1, 600), mask=rng.random(600) < 0.34)).columns["x"]
    values, live = before.distribution(), now.distribution()
    assert values
    assert live
    moved = ks_test(values, live, n=before.values, m=now.values)[1]
    went = chi_square_test(np.array([before.values, before.nulls], float), np.array([now.values, now.nulls], float))[1]
    assert compare(before, now).p_value == pytest.approx(2 * min(moved, went))
    assert 2 * min(moved, went) < 1


def test_unseen_categories_and_missing_values_are_named() -> None:
    found = one(pa.array(["a"] * 90 + [None] * 10), pa.array(["a"] * 50 + ["new"] * 25 + [None] * 25))
    assert "missing 10.0% to 25.0%" in found.note
    assert "25.0% of rows have a value unseen in training" in found.note


def test_too_few_rows_are_reported_and_not_judged() -> None:
    found = one(np.zeros(1_000), np.ones(100), Monitor(min_rows=500))
    assert not found.alert
    assert found.value > 1
    assert found.note.endswith("not judged: fewer than 500 rows")


def test_a_clock_and_ignored_columns_do_not_alarm() -> None:
    def table(start: int) -> Profile:
        return profile(
            t=pa.array(np.arange(start, start + 1_000) * 1_000_000, pa.timestamp("us", tz="UTC")), n=np.arange(start, start + 1_000.0)
        )

    found = drift(table(0), table(5_000), Monitor(ignore=("n",)))
    assert [(finding.name, finding.alert) for finding in found] == [("t", False)]
    assert "a clock" in found[0].note


def test_no_live_rows_and_columns_of_one_side_are_no_findings_that_alarm() -> None:
    assert drift(profile(x=[1.0]), profile(y=[1.0]), Monitor()) == ()
    empty = profile(x=pa.array([], pa.float64()))
    (found,) = drift(profile(x=[1.0, 2.0]), empty, Monitor())
    assert (found.value, found.alert, found.rows) == (0.0, False, 0)


def test_numbers_and_text_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="a column of type string cannot be compared with one of type float"):
        drift(profile(x=[1.0]), profile(x=["a"]), Monitor())


def test_the_largest_change_comes_first_and_carries_its_kind() -> None:
    rng = np.random.default_rng(0)
    before = profile(still=rng.normal(size=2_000), little=rng.normal(size=2_000), much=rng.normal(size=2_000))
    now = profile(still=rng.normal(size=2_000), little=rng.normal(0.8, 1, 2_000), much=rng.normal(3, 1, 2_000))
    found = drift(before, now, Monitor(), kind="prediction drift")
    assert [finding.name for finding in found] == ["much", "little", "still"]
    assert {finding.kind for finding in found} == {"prediction drift"}


def test_the_change_point_of_the_electricity_data_is_found_and_not_before(real_data: Path) -> None:
    # feat_2 and feat_3 (price and demand) move with the season all along and are left out
    table = pcsv.read_csv(real_data / "drift_streams" / "elec.csv").select(["feat_1", "feat_4", "feat_5", "feat_6"])
    baseline = Profile().update(table.slice(0, 10_000))

    def alarms(start: int) -> set[str]:
        return {finding.name for finding in drift(baseline, Profile().update(table.slice(start, 1_000)), Monitor()) if finding.alert}

    starts = range(10_000, CHANGE_POINT - 1_000, 1_000)
    assert all(alarms(start) == set() for start in starts)
    assert alarms(CHANGE_POINT) == {"feat_4", "feat_5", "feat_6"}


@pytest.mark.parametrize("name", ["sea_big", "sea_stream"])
def test_data_without_drift_never_alarms(name: str, real_data: Path) -> None:
    table = pcsv.read_csv(real_data / "drift_streams" / f"{name}.csv")
    baseline = Profile().update(table.slice(0, 10_000))
    starts = range(10_000, table.num_rows, 1_000)
    found = [finding for start in starts for finding in drift(baseline, Profile().update(table.slice(start, 1_000)), Monitor())]
    assert len(found) >= 100
    assert not [finding for finding in found if finding.alert]
