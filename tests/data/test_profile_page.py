"""The profile page: what it says of planted rows, that it escapes what comes from the data, and that it needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlp.config.monitor import Monitor
from raymlp.config.problem import Problem
from raymlp.core.errors import DataError
from raymlp.core.files import to_json
from raymlp.core.records import Snapshot
from raymlp.data.association import Association, Outline
from raymlp.data.contract_batch import REASON
from raymlp.data.profile import Profile
from raymlp.data.profile_page import (
    correlation,
    facts_of,
    histogram_edges,
    missing_rows,
    quarantine_reasons,
    read,
    remarks,
    shares,
    split_rows,
    write_page,
)
from raymlp.data.profile_svg import Scale, percent_of, round_ticks
from raymlp.data.target import Target

EVIL = "<script>alert('x')</script>"


def table_of(rows: int, seed: int, task: str, shift: float = 0.0) -> pa.Table:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=rows) + shift
    answers: dict[str, Any] = {"binary": rng.random(rows) < 0.3, "regression": 10 + a, "multiclass": rng.choice(["p", "q", EVIL], rows)}
    return pa.table({
        "a": a,
        "twin": 2 * a + 1,
        EVIL: pa.array(rng.choice([EVIL, "plain & simple", None], rows, p=[0.5, 0.1, 0.4]).tolist(), pa.string()),
        "same": np.ones(rows),
        "day": pa.array(rng.integers(0, 10**9, rows), pa.timestamp("s", "UTC")),
        "gone": pa.nulls(rows, pa.float64()),
        "y": answers[task],
    })  # fmt: skip


def snapshot_of(path: Path, task: str = "binary") -> tuple[Snapshot, Problem]:
    """What `prepare` leaves beside the rows; `a` has moved by one deviation in the validation split."""
    problem = Problem(name="planted", task=task, target="y")  # type: ignore[arg-type]
    splits = {"train": table_of(2_000, 1, task), "valid": table_of(1_000, 2, task, shift=1.0)}
    profiles = {split: Profile().update(table) for split, table in splits.items()}
    target = Target.fit(problem, profiles["train"])
    association = Association(Outline.of(profiles["train"], target)).update(splits["train"])
    rows = {split: table.num_rows for split, table in splits.items()}
    manifest = {
        "created": "2026-01-01",
        "split": {"kind": "random"},
        "source": [{"file": EVIL}],
        "unlabelled": 3,
        "warnings": [f"watch {EVIL}"],
    }
    texts = {
        "profile.json": profiles["train"].to_dict(),
        "profile-valid.json": profiles["valid"].to_dict(),
        "association.json": association.to_dict(),
        "manifest.json": manifest,
    }
    for name, plain in texts.items():
        (path / name).write_text(to_json(plain))
    (path / "quarantine").mkdir()
    pq.write_table(pa.table({"a": ["x"] * 5, REASON: ["bad a"] * 3 + [EVIL] * 2}), path / "quarantine" / "part-0.parquet")
    return Snapshot(path, "d" * 64, rows, quarantined=5), problem


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    def get(task: str) -> str:
        snapshot, problem = snapshot_of(tmp_path_factory.mktemp(task), task)
        return write_page(snapshot, problem, Monitor(), folder=tmp_path_factory.mktemp("page")).read_text()

    return get


class Tags(HTMLParser):
    """Opening tags that are not closed, and all tags that were seen."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("task", ["binary", "regression", "multiclass"])
def test_names_and_values_from_the_data_are_escaped_and_nothing_is_fetched(task: str, page: Callable[[str], str]) -> None:
    text = page(task)
    tags = Tags(text)
    assert tags.open == []
    assert "script" not in tags.seen
    assert "&lt;script&gt;" in text
    assert not re.search(r"(?:src|href)=\"(?!#)|url\(|@import|https?://", text)
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan", "", re.sub(r"<title>.*?</title>", "", text).lower())


def test_the_remarks_name_what_was_planted(tmp_path: Path) -> None:
    snapshot, problem = snapshot_of(tmp_path)
    said = remarks(read(snapshot, problem, Monitor()))
    assert said == [
        f"watch {EVIL}",
        "gone has no value in training.",
        "same holds one value only.",
        "a, twin are distributed otherwise in valid than in train.",
        "a and twin say nearly the same.",
    ]


def test_splits_missing_values_and_reasons_are_counted(tmp_path: Path) -> None:
    snapshot, problem = snapshot_of(tmp_path)
    seen = read(snapshot, problem, Monitor())
    assert [(row["name"], row["rows"], round(row["share"], 3)) for row in split_rows(seen)] == [
        ("train", 2_000, 0.667),
        ("valid", 1_000, 0.333),
    ]
    assert [row["name"] for row in missing_rows(seen)] == ["gone", EVIL]
    assert missing_rows(seen)[1]["cells"][0]["share"] == pytest.approx(0.4, abs=0.03)
    assert quarantine_reasons(tmp_path) == [("bad a", 3), (EVIL, 2)]


def test_a_histogram_is_the_rows_in_equal_bins() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    column = Profile().update(pa.table({"a": values})).columns["a"]
    distribution = column.distribution()
    assert distribution
    edges = histogram_edges(column, distribution)
    expected = np.histogram(values, edges)[0] / len(values)
    assert np.allclose(np.diff(edges), edges[1] - edges[0])
    assert shares(distribution, edges) == pytest.approx(expected, abs=0.005)


def test_a_few_whole_numbers_get_a_bar_each_and_far_ends_are_cut_off() -> None:
    whole = Profile().update(pa.table({"n": [0, 1, 1, 3]})).columns["n"]
    distribution = whole.distribution()
    assert distribution
    edges = histogram_edges(whole, distribution)
    assert edges.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]
    assert shares(distribution, edges).tolist() == [0.25, 0.5, 0.0, 0.25]
    far = Profile().update(pa.table({"a": [*np.linspace(0, 1, 10_000), 1e9]})).columns["a"]
    distribution = far.distribution()
    assert distribution
    assert histogram_edges(far, distribution)[-1] < 2


def test_the_facts_of_a_column_are_its_numbers() -> None:
    column = Profile().update(pa.table({"n": [0, 0, 2, 4, 4]})).columns["n"]
    quantiles = {"5 %": "0", "25 %": "0", "50 %": "2", "75 %": "4", "95 %": "4"}
    assert dict(facts_of(column)) == {"mean": "2", "std": "1.789", "min": "0", "max": "4", "zero": "40.0 %", **quantiles}


def test_twins_stand_side_by_side_and_lead_the_pairs(tmp_path: Path) -> None:
    snapshot, problem = snapshot_of(tmp_path)
    found = correlation(read(snapshot, problem, Monitor()).association)
    assert [(pair["a"], pair["b"]) for pair in found["pairs"]] == [("a", "twin")]
    assert found["pairs"][0]["r"] == pytest.approx(1.0)


def test_a_snapshot_of_an_older_version_says_what_to_do(tmp_path: Path) -> None:
    snapshot, problem = snapshot_of(tmp_path)
    (tmp_path / "association.json").unlink()
    with pytest.raises(DataError, match=r"made by an older version.*Prepare the data again"):
        read(snapshot, problem, Monitor())


def test_ticks_are_round_and_a_scale_stays_inside_its_ends() -> None:
    assert round_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert round_ticks(-37, 180) == [0, 50, 100, 150]
    assert round_ticks(3, 3) == [3]
    scale = Scale(0, 10, 100, 200)
    assert [scale(-5), scale(5), scale(50)] == [100, 150, 200]
    assert [percent_of(share) for share in (0.123, 0.034, 0.0005, 0.0)] == ["12 %", "3.4 %", "0.05 %", "0 %"]
