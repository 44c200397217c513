"""Ranks, the Pareto set, importance, the record, the page and the overlay of a study; what draws by Optuna learn."""

from __future__ import annotations

import io
import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from raymlp.cli.screens import show_trials
from raymlp.config.loader import load_config, with_overrides
from raymlp.config.tune import Choice, LogUniform, Uniform
from raymlp.core.errors import ConfigError, RaymlpError
from raymlp.core.records import Interval
from raymlp.tune import portfolio
from raymlp.tune.checks import check
from raymlp.tune.conclusion import conclude, leaders
from raymlp.tune.draws import TpeDraws, beginning, draws_of
from raymlp.tune.importance import importance
from raymlp.tune.search import Found, as_trial
from raymlp.tune.study import Study, earlier
from raymlp.tune.study_svg import parallel_coordinates, trade_off
from raymlp.tune.trials import Trial, pareto, ranked
from tests.train.planted import config_of
from tests.tune.studies import ended, tuned

SPACE: dict[str, Any] = {"train.learning_rate": LogUniform(low=1e-4, high=1.0), "model.dropout": Uniform(low=0.0, high=0.5)}


def test_a_trial_that_no_other_beats_is_in_the_pareto_set() -> None:
    pairs = [(0.9, 5.0), (0.8, 1.0), (0.8, 2.0), (0.95, 9.0), (0.9, 5.0), (0.7, 1.0)]
    trials = [ended(i, {}, 1.0, auc=auc, latency_ms=ms) for i, (auc, ms) in enumerate(pairs)] + [ended(6, {}, None)]
    assert [trial.number for trial in pareto(trials, ("auc", "latency_ms"))] == [0, 1, 3, 4]
    assert [trial.number for trial in ranked(trials, "auc")] == [3, 0, 4, 1, 2, 5]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_every_trial_outside_the_pareto_set_is_beaten_by_one_inside(pairs: list[tuple[int, int]]) -> None:
    trials = [ended(i, {}, float(a), latency_ms=float(b)) for i, (a, b) in enumerate(pairs)]
    inside = {trial.number for trial in pareto(trials, ("valid_loss", "latency_ms"))}
    for number, (a, b) in enumerate(pairs):
        beaten = any(pairs[i][0] <= a and pairs[i][1] <= b and pairs[i] != (a, b) for i in inside)
        assert beaten == (number not in inside)


def test_the_setting_that_decides_is_the_important_one() -> None:
    grid = list(product((0.1, 0.2, 0.3, 0.4), (1e-3, 1e-2, 1e-1)))
    trials = [ended(i, {"model.dropout": a, "train.learning_rate": b}, a + 0.001 * b) for i, (a, b) in enumerate(grid)]
    shares = importance(trials, SPACE, "valid_loss")
    assert next(iter(shares)) == "model.dropout"
    assert shares["model.dropout"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert importance(trials[:5], SPACE, "valid_loss") == {}
    assert importance([ended(i, {"model.dropout": 0.1, "train.learning_rate": 0.1}, 1.0) for i in range(9)], SPACE, "valid_loss") == {}


def test_a_record_is_read_as_it_was_written_and_belongs_to_one_process(tmp_path: Path) -> None:
    config = tuned(SPACE, study="s")
    whole = Trial(1, {"model.dropout": 0.1}, "finished", {"valid_loss": 0.5}, 3, 1.5, {"auc": 0.9, "r2": 1.0}, Interval(0.9, 0.8, 0.95))
    with Study.open(config, root=tmp_path, snapshot="x") as study:
        study.add(whole)
        study.add(ended(0, {}, None, state="failed"))
        assert not study.resumed
        with pytest.raises(RaymlpError, match="in the hands of another process"), Study.open(config, root=tmp_path, snapshot="x"):
            pass
    with (tmp_path / "s" / "trials.jsonl").open("a") as file:
        file.write('{"number": 2')
    with Study.open(config, root=tmp_path, snapshot="x") as study:
        assert study.resumed
        assert study.trials == [ended(0, {}, None, state="failed"), whole]
        study.add(ended(2, {}, 0.1))
    with Study.open(config, root=tmp_path, snapshot="x") as study:
        assert [trial.number for trial in study.trials] == [0, 1, 2]
    other = with_overrides(config, {"tune.epochs": 7})
    with (
        pytest.raises(ConfigError, match=r"tune.epochs was another \(6, now 7\).*tune.warm_start=\[s\]"),
        Study.open(other, root=tmp_path, snapshot="x"),
    ):
        pass
    with Study.open(with_overrides(config, {"tune.num_samples": 60}), root=tmp_path, snapshot="x") as study:
        assert len(study.trials) == 3


def test_a_study_that_is_told_again_is_what_it_was() -> None:
    """Optuna keeps nothing of its own: told the same trials, it draws near the good ones as if it had never stopped."""
    study = tuned(SPACE, searcher={"kind": "tpe", "startup": 3}, seed=1).tune
    seen = [
        ended(i, {"train.learning_rate": 10.0**-a, "model.dropout": b}, abs(a - 2) + b)
        for i, (a, b) in enumerate(product((1, 2, 3), (0.0, 0.4)))
    ]
    stopped = ended(6, {"train.learning_rate": 0.9, "model.dropout": 0.5}, 9.0, state="stopped")
    first, second = (draws_of(study, seen=[*seen, stopped, ended(7, {}, None, state="failed")]) for _ in range(2))
    assert isinstance(first, TpeDraws)
    drawn = [first.draw(number) for number in range(8, 20)]
    assert drawn[0] == second.draw(8)
    assert sorted(draw["train.learning_rate"] for draw in drawn if draw)[6] == pytest.approx(0.01, rel=2)
    first.tell(ended(8, drawn[0] or {}, 0.3))


def test_tpe_looks_near_what_did_well_and_an_earlier_study_helps(tmp_path: Path) -> None:
    def loss(draw: dict[str, Any]) -> float:
        return abs(math.log10(draw["train.learning_rate"]) + 2) + draw["model.dropout"]

    config = tuned(SPACE, study="first")
    random = draws_of(config.tune)
    with Study.open(config, root=tmp_path, snapshot="s") as study:
        for number in range(12):
            draw = random.draw(number)
            assert draw
            study.add(ended(number, draw, loss(draw)))
        first = [trial.values["valid_loss"] for trial in study.trials]
    tpe = tuned(SPACE, searcher={"kind": "tpe"}, warm_start=("first",))
    told, points = earlier(tpe, root=tmp_path, snapshot="s")
    assert (len(told), points) == (12, [])
    draws, losses = draws_of(tpe.tune, seen=told), []
    for number in range(12):
        draw = draws.draw(number)
        assert draw
        losses.append(loss(draw))
        draws.tell(ended(number, draw, losses[-1]))
    assert sum(losses) < 0.7 * sum(first)
    told, points = earlier(tuned(SPACE, warm_start=("first",)), root=tmp_path, snapshot="s")
    assert told == []
    assert [loss(dict(point)) for point in points] == sorted(first)[:3]
    begun = draws_of(beginning(config.tune, points))
    assert [begun.draw(number) for number in range(4)] == [*points, random.draw(3)]
    with pytest.raises(ConfigError, match=r"expected a study in .*: first"):
        earlier(tuned(SPACE, warm_start=("frist",)), root=tmp_path, snapshot="s")


def test_what_a_trial_reported_last_is_what_it_counts_by() -> None:
    config = tuned(SPACE, objectives=("auc", "valid_loss"))
    final = {"auc": 0.9, "valid_loss": 0.4, "interval_low": 0.8, "interval_high": 0.95}
    whole = as_trial(config, 3, {"a": (1, 2)}, {"lowest": 0.39, "main": 0.88, "epochs": 4, "final": final})
    assert (whole.state, whole.values, whole.draw) == ("finished", {"auc": 0.9, "valid_loss": 0.39}, {"a": [1, 2]})
    assert whole.interval == Interval(0.9, 0.8, 0.95)
    stopped = as_trial(config, 3, {}, {"lowest": 0.39, "main": 0.88, "epochs": 2})
    assert (stopped.state, stopped.values, stopped.interval) == ("stopped", {"auc": 0.88, "valid_loss": 0.39}, None)
    assert as_trial(config, 3, {}, {"final": final}).values == {"auc": 0.9, "valid_loss": 0.4}
    assert as_trial(config, 3, {}, {}).error == "the time was over before the first epoch ended"
    assert as_trial(config, 3, {}, {"lowest": 0.39, "epochs": 2}, death="gone").values == {}


def test_the_page_and_the_overlay_say_what_was_best(tmp_path: Path) -> None:
    space = {**SPACE, "train.resample": Choice(values=("none", "<b>"), when={"train.loss.kind": "focal"})}
    space["train.loss.kind"] = Choice(values=("cross_entropy", "focal"))
    trials = [
        ended(i, {"train.learning_rate": 0.1**i, "model.dropout": 0.1, "train.loss.kind": "focal", "train.resample": "<b>"}, 1.0 / (i + 1))
        for i in range(1, 4)
    ]
    found = Found(tmp_path, tuned(space), (*trials, ended(4, {"train.loss.kind": "cross_entropy"}, None, state="failed")), resumed=True)
    result = conclude(found)
    assert result.trials[0]["number"] == 3
    assert [trial["number"] for trial in result.trials] == [3, 2, 1, 4]
    assert yaml.safe_load(result.overlay.read_text()) == {
        "model": {"kind": "mlp", "dropout": 0.1},
        "train": {"epochs": 6, "learning_rate": pytest.approx(0.001), "loss": {"kind": "focal"}, "resample": "<b>"},
    }
    shown = Console(file=io.StringIO(), width=200)
    show_trials(result, shown)
    lines = shown.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert any(line.split()[:2] == ["3", "0.2500"] and "learning_rate=0.001" in line for line in lines)
    assert any(line.split()[0] == "4" and "ValueError: no" in line for line in lines if line.strip())
    page = result.report.read_text()
    assert page.count("<polyline") == 3
    assert "ValueError: no" in page
    assert "<b>" not in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_trade_off_marks_and_joins_the_trials_that_no_other_beats() -> None:
    pairs = [(0.9, 5.0), (0.8, 1.0), (0.7, 2.0), (0.8, 9.0)]
    trials = [
        *(ended(i, {}, 1.0, auc=auc, latency_ms=ms) for i, (auc, ms) in enumerate(pairs)),
        ended(4, {}, None),
        ended(5, {}, 1.0, auc=0.99),
    ]
    drawn = trade_off(trials, ("auc", "latency_ms"), {0, 1})
    places = {words: (float(x), float(y)) for x, y, words in re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="5"><title>(trial \d)', drawn)}
    assert list(places) == ["trial 0", "trial 1", "trial 2", "trial 3"]
    assert drawn.count('class="front"') == 2
    assert places["trial 0"][1] < places["trial 1"][1] == places["trial 3"][1] < places["trial 2"][1], "a higher auc is further up"
    assert places["trial 1"][0] < places["trial 2"][0] < places["trial 0"][0] < places["trial 3"][0], "more milliseconds are to the right"
    assert f'points="{places["trial 1"][0]:.1f},{places["trial 1"][1]:.1f} {places["trial 0"][0]:.1f},{places["trial 0"][1]:.1f}"' in drawn
    assert "<polyline" not in trade_off(trials, ("auc", "latency_ms", "valid_loss"), {0, 1})


def test_the_axis_of_numbers_rises_and_a_drawing_of_many_settings_is_wider() -> None:
    trials = [ended(i, {"model.width": width}, 1.0 - i / 10) for i, width in enumerate((64, 512, 96))]
    few = parallel_coordinates(trials, {"model.width": Choice(values=(512, 64, 96))}, "valid_loss")
    heights = {int(trial): float(y) for y, trial in re.findall(r'points="70.0,([\d.]+) [^"]*"><title>trial (\d)', few)}
    assert heights[0] > heights[2] > heights[1]
    many = {f"model.s{i}": Choice(values=(1, 2)) for i in range(20)}
    widths = [
        float(found)
        for drawing in (few, parallel_coordinates(trials, many, "valid_loss"))
        for found in re.findall(r'viewBox="0 0 (\d+)', drawing)
    ]
    assert widths == [1040, 2 * 70 + 112 * 20]


def test_an_overlay_lies_between_the_groups_and_single_keys(tmp_path: Path) -> None:
    best = tmp_path / "best.yaml"
    best.write_text("model: {kind: mlp, hidden: [7], dropout: 0.2}\ntrain: {strategy: {kind: ddp}, epochs: 9}\n")
    config = load_config("flights", [f"overlay={best}", "model=linear", "train=zero2", "train.epochs=8"])
    assert config.model == load_config("flights", ["model.hidden=[7]", "model.dropout=0.2", "model.text_embedding=64"]).model
    assert (config.train.strategy.kind, config.train.epochs, config.train.num_workers) == ("ddp", 8, 2)
    with pytest.raises(ConfigError, match=r"overlay is nowhere.yaml, which cannot be read"):
        load_config("flights", ["overlay=nowhere.yaml"])
    best.write_text("epochs: 3\n")
    with pytest.raises(ConfigError, match="which holds no sections"):
        load_config("flights", [f"overlay={best}"])


def test_the_automatic_space_has_every_family_that_is_there_and_suits_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_overrides(config_of(), {"tune.space": {}, "tune.auto": True, "tune.minutes": 9})
    chosen, notes = portfolio.resolved(config)
    check(chosen)
    tune = chosen.tune
    kinds = [kind for kind in portfolio.kinds() if portfolio.left_out(kind, config) is None]
    assert tune.space["model.kind"].values == tuple(kinds)  # type: ignore[union-attr]
    assert {"mlp", "linear"} <= set(kinds)
    assert tune.objectives == ("auc",)
    assert tune.trial_minutes == 3
    assert [point["model.kind"] for point in tune.points[: len(kinds)]] == kinds
    assert "mlp" in tune.space["model.dropout"].when["model.kind"]
    assert "linear" not in tune.space["model.dropout"].when["model.kind"]
    few, _ = portfolio.resolved(with_overrides(config, {"tune.minutes": None}))
    assert few.tune.limit == len(tune.points)
    family = portfolio.Family(modules=("no_such_module",), extra="x")
    monkeypatch.setattr(portfolio, "PORTFOLIO", {**portfolio.PORTFOLIO, "mlp": family})
    chosen, notes = portfolio.resolved(config)
    assert "not tried: mlp needs pip install 'raymlp[x]'" in notes
    assert "mlp" not in chosen.tune.space["model.kind"].values  # type: ignore[union-attr]


def test_families_that_share_a_key_share_a_domain_that_has_the_values_of_both() -> None:
    one, other = Choice(values=(96, 192)), Choice(values=(192, 512))
    assert portfolio._both(one, other).values == (96, 192, 512)
    wide = portfolio._both(Uniform(low=0.0, high=0.4), Uniform(low=0.1, high=0.5))
    assert (wide.low, wide.high) == (0.0, 0.5)
    assert portfolio._both(None, one) is one


@pytest.mark.parametrize("kind", portfolio.kinds())
def test_every_family_of_the_portfolio_builds(kind: str) -> None:
    family, task = portfolio.PORTFOLIO[kind], {"kmeans": "clustering", "isolation_forest": "anomaly"}.get(kind)
    problem = {"problem.task": task, "problem.target": None} if task else {}
    for point in family.points:
        assert with_overrides(config_of(), {"model.kind": kind, **problem, **point}).model.kind == kind
    if any(family.points) or family.space:
        chosen, _ = portfolio.resolved(with_overrides(config_of(), {"model.kind": kind, **problem, "tune.space": {}}))
        check(chosen)


def test_the_best_trial_of_each_family_leads() -> None:
    trials = tuple(ended(i, {"model.kind": kind}, loss) for i, (kind, loss) in enumerate([("a", 0.5), ("b", 0.4), ("a", 0.3), ("b", 0.6)]))
    assert {name: trial.number for name, trial in leaders(trials, "valid_loss").items()} == {"a": 2, "b": 1}
    assert leaders(tuple(ended(i, {}, 0.1) for i in range(3)), "valid_loss") == {}
