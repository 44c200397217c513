"""The search finds what it should, whatever happens to its trials and to itself, and says it so that the command line takes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raymlp.config.runtime import Runtime
from raymlp.config.tune import Choice, Integer, LogUniform, Uniform
from raymlp.core.errors import ConfigError, TrainingError
from raymlp.tune.conclusion import conclude
from raymlp.tune.search import search
from raymlp.tune.study import Study
from raymlp.tune.trials import Trial
from tests.tune.studies import bowl, ended, tuned

PAIR = {"train.finder.lowest": Choice(values=(1e-6, 1e-2)), "train.finder.highest": Choice(values=(1e-3, 1.0))}
RATES = {"train.learning_rate": Choice(values=(0.01, 1.0))}


@pytest.mark.ray
def test_the_better_of_two_step_sizes_is_found(ray_runtime: Runtime, tmp_path: Path) -> None:
    heard: list[Trial] = []
    config = tuned(RATES, scheduler="none", objectives=("valid_loss", "latency_ms"))
    found = search(config, bowl(), root=tmp_path, snapshot="s", on_trial=heard.append)
    result = conclude(found)
    assert {found.trials[number].draw["train.learning_rate"] for number in result.pareto} == {0.01, 1.0}  # one is better, one quicker
    assert result.best == ("train.learning_rate=0.01",)
    assert (result.metric, result.score) == ("valid_loss", pytest.approx(0.1 + 1 / 6))
    assert len(result.trials) == len(heard) == 6
    assert {trial.draw["train.learning_rate"]: trial.values["valid_loss"] for trial in found.trials} == {
        0.01: pytest.approx(0.1 + 1 / 6),
        1.0: pytest.approx(2.1 + 1 / 6),
    }
    assert all(trial.state == "finished" and trial.epochs == 6 and trial.interval for trial in heard)
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.ray
def test_a_study_goes_on_with_the_draws_that_it_would_have_made(ray_runtime: Runtime, tmp_path: Path) -> None:
    space = {
        "train.learning_rate": LogUniform(low=1e-4, high=1e-1),
        "model.dropout": Uniform(low=0.0, high=0.4),
        "train.batch_size": Integer(low=16, high=18),
        "model.hidden": Choice(values=((8,), (8, 4))),
    }
    config = tuned(space, seed=3, num_samples=4, epochs=2, study="whole")
    whole = search(config, bowl(), root=tmp_path, snapshot="s")
    assert len({json.dumps(trial.draw) for trial in whole.trials}) == 4
    cut = tmp_path / "cut"
    cut.mkdir()
    header, lines = ((tmp_path / "whole" / name).read_text() for name in ("study.json", "trials.jsonl"))
    (cut / "study.json").write_text(header)
    (cut / "trials.jsonl").write_text(
        "".join(line for line in lines.splitlines(keepends=True) if '"number":2' not in line) + '{"number": 3, "dr'
    )
    again = config.model_copy(update={"tune": config.tune.model_copy(update={"study": "cut"})})
    found = search(again, bowl(), root=tmp_path, snapshot="s")
    assert found.resumed
    assert [(trial.number, trial.draw) for trial in found.trials] == [(trial.number, trial.draw) for trial in whole.trials]
    assert len((cut / "trials.jsonl").read_text().splitlines()) == 4
    with pytest.raises(ConfigError, match=r"the snapshot was another; expected the same to go on. Set another tune.study"):
        search(again, bowl(), root=tmp_path, snapshot="other")


@pytest.mark.ray
def test_asha_stops_trials_that_fall_behind(ray_runtime: Runtime, tmp_path: Path) -> None:
    space = {"model.dropout": Choice(values=tuple(i / 10 for i in range(9)))}
    config = tuned(space, num_samples=9, max_concurrent=1, epochs=9, grace_epochs=1)
    found = search(config, bowl(), root=tmp_path, snapshot="s")
    stopped = [trial for trial in found.trials if trial.state == "stopped"]
    assert stopped
    assert all(trial.epochs < 9 for trial in stopped)
    assert sum(trial.epochs for trial in found.trials) < 9 * 9


@pytest.mark.ray
def test_a_trial_that_fails_is_a_row_and_the_others_count(ray_runtime: Runtime, tmp_path: Path) -> None:
    """Also one whose settings cannot be together, though each of them can."""
    space = {"train.batch_size": Choice(values=(1, 2)), **PAIR}
    points = ((1, 1e-6, 1.0), (2, 1e-6, 1.0), (2, 1e-2, 1e-3))
    given = tuple(dict(zip(space, point, strict=True)) for point in points)
    config = tuned(space, num_samples=3, points=given, study="some", max_failures=3)
    found = search(config, bowl(refused=1), root=tmp_path, snapshot="s")
    failed, good, odd = found.trials
    assert (failed.state, failed.error) == ("failed", "ValueError: too small")
    assert good.state in ("finished", "stopped")
    assert odd.state == "failed"
    assert odd.error
    assert odd.error.startswith("ConfigError: ")
    assert "highest is 0.001 and lowest 0.01" in odd.error
    assert conclude(found).best[0] == "train.batch_size=2"
    again = search(tuned(space, num_samples=1, warm_start=("some",)), bowl(), root=tmp_path, snapshot="s")
    assert [trial.draw for trial in again.trials] == [good.draw]
    assert again.notes == ("1 settings of some were tried first",)
    with Study.open(tuned(RATES, num_samples=2, study="none"), root=tmp_path, snapshot="s") as study:
        for number in range(2):
            study.add(ended(number, {"train.learning_rate": 1.0}, None, state="failed"))
    with pytest.raises(TrainingError, match="all 2 trials failed; the first: ValueError: no"):
        search(tuned(RATES, num_samples=2, study="none"), bowl(), root=tmp_path, snapshot="s")


@pytest.mark.ray
def test_a_trial_whose_process_is_killed_starts_again_and_one_that_always_dies_is_a_row(ray_runtime: Runtime, tmp_path: Path) -> None:
    space = {"train.learning_rate": Choice(values=(0.01, 1.0, 10.0))}
    config = tuned(space, searcher={"kind": "grid"}, scheduler="none", max_failures=1)
    found = search(config, bowl(deaths={1.0: 1, 10.0: 2}, marks=str(tmp_path)), root=tmp_path / "tune", snapshot="s")
    good, once, always = found.trials
    assert (tmp_path / "1.0").read_text() == "x"
    assert (tmp_path / "10.0").read_text() == "xx"
    assert (good.state, good.epochs) == ("finished", 6)
    assert (once.state, once.epochs, once.values["valid_loss"]) == ("finished", 6, pytest.approx(2.1 + 1 / 6))
    assert always.state == "failed"
    assert always.error
    assert always.error.startswith("the trial's process died 2 times: ")
    assert conclude(found).best == ("train.learning_rate=0.01",)


@pytest.mark.ray
def test_when_the_time_is_over_trials_end_with_their_epoch_and_count(ray_runtime: Runtime, tmp_path: Path) -> None:
    config = tuned(RATES, num_samples=None, minutes=0.03, epochs=500, scheduler="none", max_concurrent=1)
    found = search(config, bowl(pause_s=0.05), root=tmp_path, snapshot="s")
    assert 1 <= len(found.trials) <= 2
    assert {trial.state for trial in found.trials} == {"stopped"}
    assert all(trial.interval and 1 <= trial.epochs < 499 for trial in found.trials)
