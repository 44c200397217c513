"""Reading a rollout's log file by file is the same as reading all of it at once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymlp.config.rollout import Business, Rollout
from raymlp.core.errors import DataError
from raymlp.serve import reading as reading_module
from raymlp.serve.evidence import Versions, gather
from raymlp.serve.ledger import COLUMNS
from raymlp.serve.reading import Reading
from raymlp.serve.rollout.facts import Evidence
from tests.serve.test_evidence import Writer, predictor, routes

SETTINGS = Rollout(business=Business(column="revenue"))
VERSIONS = Versions("v1", "v2", predictor(0.5), predictor(1.0))


def log_of(rows: int, seed: int) -> pa.Table:
    """Requests of two shares and of another rollout, from users who come back."""
    rng, writer = np.random.default_rng(seed), Writer()
    by = [routes(0.2), routes(0.5), routes(0.5, salt="another")]
    for number in range(rows):
        key, status = f"user {rng.integers(rows // 3 + 1)}", 500 if rng.random() < 0.1 else 200
        route = by[min(2, int(3 * number / rows + rng.random() / 2))]
        writer.send(key, route, status=status, rows=1 + int(rng.random() < 0.1), latency_ms=float(rng.lognormal(2, 0.5)), x=rng.random())
    columns = {name: [getattr(entry, name) for entry in writer.entries] for name in COLUMNS if name not in ("version", "time")}
    times = pa.array([round(entry.time * 1e6) for entry in writer.entries], pa.timestamp("us", tz="UTC"))
    x = [None if entry.inputs is None else entry.inputs["x"] for entry in writer.entries]
    return pa.table({**columns, "time": times, "version": [entry.version for entry in writer.entries], "in.x": x})


def labels_of(log: pa.Table, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    ids = [name for name in dict.fromkeys(log.column("prediction_id").to_pylist()) if rng.random() < 0.7] or ["none"]
    answers = [None if rng.random() < 0.1 else float(rng.random() < 0.5) for _ in ids]
    return pa.table({"prediction_id": ids, "label": pa.array(answers, pa.float64()), "revenue": rng.random(len(ids))})


def write(folder: Path, name: int, table: pa.Table) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / f"{name:04d}.parquet")


def nearly(one: Evidence, other: Evidence) -> None:
    """Equal but for the order in which floating-point numbers are added."""
    assert one.steps == other.steps
    assert (one.latency_reference, one.scores) == (other.latency_reference, other.scores)
    for found, expected in ((one.loss, other.loss), (one.ranking, other.ranking)):
        assert found is not None
        assert expected is not None
        assert vars(found) == pytest.approx(vars(expected))


@settings(max_examples=25)
@given(st.data())
def test_in_any_order_and_with_looks_in_between_it_is_the_same_as_all_at_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("reading")
    log = log_of(data.draw(st.integers(1, 900)), data.draw(st.integers(0, 9)))
    labels = labels_of(log, 1)
    parts = data.draw(st.integers(1, 6))
    dealt = np.random.default_rng(data.draw(st.integers(0, 9))).integers(parts, size=log.num_rows)
    files = [("log", number, log.filter(pa.array(dealt == number))) for number in range(parts)]
    dealt = np.random.default_rng(3).integers(parts, size=labels.num_rows)
    files += [("labels", number, labels.filter(pa.array(dealt == number))) for number in range(parts)]
    reading = Reading(folder / "log", folder / "labels", VERSIONS, "s", SETTINGS, since=0.0)
    assert reading.evidence().requests == 0
    for kind, number, table in data.draw(st.permutations(files)):
        write(folder / kind, number, table)
        if data.draw(st.booleans()):
            reading.evidence()
    found = reading.evidence()
    nearly(found, gather(log.sort_by([("time", "ascending"), ("row", "ascending")]), labels, VERSIONS, "s", SETTINGS))
    nearly(found, Reading(folder / "log", folder / "labels", VERSIONS, "s", SETTINGS, since=0.0).evidence())


def test_a_file_is_read_once_and_an_old_one_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = reading_module.read_table
    monkeypatch.setattr(reading_module, "read_table", lambda file, columns: (opened.append(file.name), real(file, columns))[1])
    log = log_of(60, 0)
    for number in range(3):
        write(tmp_path / "log", number, log.slice(20 * number, 20))
    os.utime(tmp_path / "log" / "0000.parquet", (1e9, 1e9))
    reading = Reading(tmp_path / "log", tmp_path / "labels", VERSIONS, "s", SETTINGS, since=1e9 + 2 * reading_module.CLOCKS_APART_S)
    first = reading.evidence()
    assert opened == ["0001.parquet", "0002.parquet"]
    assert reading.evidence() == first
    assert len(opened) == 2


def test_inputs_are_fetched_once_a_row_when_its_label_has_come(tmp_path: Path) -> None:
    log = log_of(90, 0)
    write(tmp_path / "log", 0, log)
    scored: list[int] = []
    counting = predictor(0.5)
    scores = counting.scores
    counting.scores = lambda table: (scored.append(table.num_rows), scores(table))[1]  # type: ignore[method-assign]
    versions = Versions("v1", "v2", counting, predictor(1.0))
    reading = Reading(tmp_path / "log", tmp_path / "labels", versions, "s", SETTINGS, since=0.0)
    labels = labels_of(log, 1)
    rows = 0
    for number in range(2):
        write(tmp_path / "labels", number, labels.slice(20 * number, 20))
        rows = reading.evidence().loss.rows
        reading.evidence()
    assert sum(scored) == rows
    assert len(scored) == 2


def test_a_changed_or_removed_file_makes_it_begin_anew(tmp_path: Path) -> None:
    log = log_of(90, 0)
    write(tmp_path / "log", 0, log.slice(0, 45))
    write(tmp_path / "log", 1, log.slice(45))
    reading = Reading(tmp_path / "log", tmp_path / "labels", VERSIONS, "s", SETTINGS, since=0.0)
    reading.evidence()
    write(tmp_path / "log", 0, log.slice(0, 10))
    (tmp_path / "log" / "0001.parquet").unlink()
    nearly(reading.evidence(), gather(log.slice(0, 10), None, VERSIONS, "s", SETTINGS))


def test_labels_of_two_types_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "log", 0, log_of(10, 0))
    write(tmp_path / "labels", 0, pa.table({"prediction_id": ["a"], "label": [1.0]}))
    write(tmp_path / "labels", 1, pa.table({"prediction_id": ["a"], "label": ["late"]}))
    with pytest.raises(DataError, match="the labels do not go together"):
        Reading(tmp_path / "log", tmp_path / "labels", VERSIONS, "s", SETTINGS, since=0.0).evidence()
