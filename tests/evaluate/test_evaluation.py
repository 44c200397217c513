"""The whole evaluation on planted problems: numbers, verdict, honesty of the report, and two models side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raymlp.core.errors import DataError
from raymlp.core.metrics import auc, log_loss
from raymlp.core.records import Task
from raymlp.evaluate.evaluation import compare_models, evaluate
from raymlp.model.predictor import Predictor
from tests.evaluate.planted import Case, config_of, write_bundle

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


@pytest.mark.parametrize("task", TASKS)
def test_a_model_that_learned_passes_and_the_page_shows_it(task: Task, cases: Callable[[Task], Case], tmp_path: Path) -> None:
    case = cases(task)
    config = config_of(task, evaluate={"gate": {"max_gap_to_baseline": 0.5}})
    result = evaluate(config, case.snapshot, case.bundle, report_dir=tmp_path)
    assert result.gate.action == "pass", result.gate.reason
    assert (result.split, result.rows) == ("test", case.tables["test"]["answer"].drop_null().length())
    assert set(result.baselines) == {"rule", "linear", "gradient_boosting"}
    page = result.report.read_text()
    assert well_formed(page)
    assert "Gate passed" in page
    assert result.gate.reason.split(":")[0] in page
    assert "run-7" in page
    assert "neither the weights" in page
    assert 'src="http' not in page
    assert "<svg" in page
    plain = json.loads((tmp_path / "evaluation.json").read_text())
    assert plain["metrics"][config.problem.main_metric]["value"] == pytest.approx(result.metrics[config.problem.main_metric].value)


def test_the_metric_is_that_of_the_predictor_on_the_answered_rows(cases: Callable[[Task], Case], tmp_path: Path) -> None:
    case = cases("binary")
    result = evaluate(case.config, case.snapshot, case.bundle, report_dir=tmp_path)
    table = case.tables["test"].filter(case.tables["test"]["answer"].is_valid())
    y = pc.equal(table["answer"], "yes").to_numpy().astype(float)
    assert result.metrics["auc"].value == pytest.approx(auc(y, Predictor.load(case.bundle).predict(table).scores), abs=1e-12)


def test_slices_cover_sensitive_columns_first_and_leave_out_small_groups(cases: Callable[[Task], Case], tmp_path: Path) -> None:
    case = cases("binary")
    result = evaluate(case.config, case.snapshot, case.bundle, report_dir=tmp_path)
    assert [item["value"] for item in result.slices if item["column"] == "group"] == ["one", "two"]
    assert [item["column"] for item in result.slices][:2] == ["group", "group"]
    assert "too few rows to report" in result.report.read_text()
    assert "Selection rate" in result.report.read_text()


def test_an_ignorant_model_is_refused(cases: Callable[[Task], Case], tmp_path: Path) -> None:
    case = cases("binary")
    ignorant = write_bundle(case.config, case.tables["train"], tmp_path / "ignorant", steps=0)
    result = evaluate(case.config, case.snapshot, ignorant, report_dir=tmp_path)
    assert result.gate.action == "fail"
    assert "Gate refused" in result.report.read_text()


def test_without_a_test_split_the_report_says_what_validation_chose(cases: Callable[[Task], Case], tmp_path: Path) -> None:
    case = cases("binary")
    result = evaluate(case.config, replace(case.snapshot, rows={"train": 1_500, "valid": 400}), case.bundle, report_dir=tmp_path)
    assert result.split == "valid"
    assert "a little optimistic" in result.report.read_text()


def test_a_sample_of_the_training_rows_is_said(cases: Callable[[Task], Case], tmp_path: Path) -> None:
    case = cases("binary")
    config = config_of("binary", evaluate={"max_baseline_rows": 300, "baselines": ["rule", "linear"]})
    page = evaluate(config, case.snapshot, case.bundle, report_dir=tmp_path).report.read_text()
    assert "300 training rows, a random sample of 1,500" in page


def test_names_in_the_data_cannot_write_into_the_page(cases: Callable[[Task], Case], tmp_path: Path) -> None:
    case = cases("binary")
    evil = config_of("binary", problem={"slices": ["kind"]})
    table = case.tables["test"]
    kinds = pc.if_else(pc.equal(table["kind"], "x"), "<script>$alert$</script>", table["kind"])
    folder = tmp_path / "snapshot"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        pq.write_table(case.tables[split] if split == "train" else table.set_column(1, "kind", kinds), folder / split / "p.parquet")
    page = evaluate(evil, replace(case.snapshot, path=folder), case.bundle, report_dir=tmp_path).report.read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;$alert$" in page


def test_rows_without_any_answer_are_a_clear_error(cases: Callable[[Task], Case]) -> None:
    case = cases("binary")
    table = case.tables["test"]
    empty = table.set_column(table.schema.get_field_index("answer"), "answer", pa.nulls(table.num_rows, pa.string()))
    with pytest.raises(DataError, match="none of 1000 rows has a known answer in 'answer'"):
        compare_models(case.config, case.bundle, case.bundle, empty)


def test_a_model_ties_with_itself_and_passes(cases: Callable[[Task], Case]) -> None:
    case = cases("binary")
    decision, gain = compare_models(case.config, case.bundle, case.bundle, case.tables["valid"])
    assert (decision.action, gain.value, gain.low, gain.high) == ("pass", 0.0, 0.0, 0.0)


@pytest.mark.parametrize("task", TASKS)
def test_an_ignorant_challenger_stays_out_and_a_learned_one_comes_in(task: Task, cases: Callable[[Task], Case], tmp_path: Path) -> None:
    case = cases(task)
    ignorant = write_bundle(case.config, case.tables["train"], tmp_path / "ignorant", steps=0)
    worse, loss = compare_models(case.config, case.bundle, ignorant, case.tables["valid"])
    better, gain = compare_models(case.config, ignorant, case.bundle, case.tables["valid"])
    assert (worse.action, better.action) == ("fail", "pass")
    assert loss.high < 0 < gain.low


def test_a_champion_without_the_newest_class_is_judged_on_it_too(cases: Callable[[Task], Case], tmp_path: Path) -> None:
    case = cases("multiclass")
    train = case.tables["train"]
    old = write_bundle(case.config, train.filter(pc.not_equal(train["answer"], "high")), tmp_path / "old")
    decision, gain = compare_models(case.config, old, case.bundle, case.tables["valid"])
    assert decision.action == "pass"
    assert gain.low > 0.5
    assert np.isfinite(gain.high)


def test_classes_of_two_models_are_matched_by_name(cases: Callable[[Task], Case], tmp_path: Path) -> None:
    case = cases("multiclass")
    train, valid = case.tables["train"], case.tables["valid"]
    old = write_bundle(case.config, train.filter(pc.not_equal(train["answer"], "high")), tmp_path / "old")
    shared = valid.filter(pc.and_(valid["answer"].is_valid(), pc.not_equal(valid["answer"], "high")))
    decision, _ = compare_models(case.config, old, case.bundle, shared)
    alone = Predictor.load(old)
    y = alone.bundle.plan.target.read(shared["answer"])
    assert decision.facts["champion"] == pytest.approx(log_loss(y, alone.predict(shared).scores))


class _Tags(HTMLParser):
    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.broken = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.broken += 1


def well_formed(page: str) -> bool:
    """Every tag that opens closes, in order."""
    parser = _Tags()
    parser.feed(page)
    return not parser.open and not parser.broken
