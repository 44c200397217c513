"""Which model predicts: by alias, version or folder, with the config that its bundle records."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from raymlp import pipeline
from raymlp.cli import run_command
from raymlp.config.loader import to_yaml, with_overrides
from raymlp.config.schema import Config
from raymlp.core.errors import ConfigError, RegistryError
from raymlp.core.records import TrainedModel
from raymlp.model.predictor import Predictor
from raymlp.runtime.audit import audit_file, entries
from tests.predict.test_batch import here  # noqa: F401 (a fixture)
from tests.train.planted import config_of, planted, trained, write_snapshot


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def config(home: Path) -> Config:
    """A config that asks for a target, in a CSV with semicolons."""
    source = {"data.source": {"kind": "csv", "path": str(home / "old.csv"), "delimiter": ";"}, "runtime.storage": str(home / "artifacts")}
    return with_overrides(config_of(epochs=1, batch_size=64), source)


@pytest.fixture(scope="module")
def model(home: Path, config: Config) -> TrainedModel:
    """A registered model: `planted/1`, the champion."""
    snapshot = write_snapshot(
        home / "artifacts" / "snapshots" / "planted" / "abc", {"train": planted(200, 1, "binary"), "valid": planted(100, 2, "binary")}
    )
    made = trained(config, snapshot=snapshot)
    pipeline.register(config, made.bundle)
    return made


@pytest.fixture(scope="module")
def rows(home: Path) -> pa.Table:
    """New rows without a target."""
    table = planted(50, 3, "binary").drop(["y"]).append_column("row", pa.array(range(50)))
    pacsv.write_csv(table, home / "new.csv", pacsv.WriteOptions(delimiter=";"))
    return table


@pytest.mark.usefixtures("here")
def test_the_command_needs_a_model_a_source_and_a_place(
    model: TrainedModel, config: Config, home: Path, rows: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"runtime.storage={home / 'artifacts'}", f"data.source.path={home / 'new.csv'}", "predict.keep=[row]"]
    expected = Predictor.load(model.bundle).predict(rows)
    for reference, version in (
        ("planted@champion", "v1"),
        ("planted/1", "v1"),
        (str(model.bundle), Predictor.load(model.bundle).bundle.digest[:12]),
    ):
        out = tmp_path / version / reference.replace("/", "_")[-20:]
        assert run_command(["predict", reference, *words, f"predict.output={out}"]) == 0
        found = pq.read_table(out)
        assert found.column("row").to_pylist() == list(range(50))
        assert found.column("score").to_pylist() == pytest.approx(expected.scores, abs=1e-6)
        assert found.column("label").to_pylist() == expected.labels
        assert set(found.column("model_version").to_pylist()) == {version}
        assert json.loads((out / "_manifest.json").read_text())["model"]["run_id"] == model.run_id
    shown = capsys.readouterr().out
    assert "50 rows by v1, " in shown
    assert "0 in quarantine" in shown
    assert run_command(["predict", "planted@champion", *words, f"predict.output={tmp_path / 'v1' / 'planted@champion'}"]) == 0
    assert "all of it was there" in " ".join(capsys.readouterr().out.split())
    audited = [(entry["what"], entry["model"], entry["version"]) for entry in entries(audit_file(config.runtime))]
    assert audited[0] == ("register", "planted", "v1")
    assert audited[1:] == [("predict", "planted", version) for version in ("v1", "v1", Predictor.load(model.bundle).bundle.digest[:12])]


@pytest.mark.usefixtures("model")
def test_an_unknown_alias_lists_the_known_ones(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["predict", "planted@chalenger", f"runtime.storage={home / 'artifacts'}"]) == 1
    assert "planted@champion (version 1)" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(RegistryError, match=r"is no model reference; expected NAME@ALIAS"):
        pipeline.config_of("not a model", [f"runtime.storage={home / 'artifacts'}"])


def test_the_config_of_a_model_is_what_its_bundle_records(model: TrainedModel, config: Config, home: Path) -> None:
    found = pipeline.config_of(model.bundle, [f"runtime.storage={home / 'artifacts'}", "predict.output=scores"])
    assert (found.problem, found.data, found.model) == (config.problem, config.data, config.model)
    assert "planted" in to_yaml(found)
    with pytest.raises(ConfigError, match=r"predict.outptu is not a setting"):
        pipeline.config_of(model.bundle, ["predict.outptu=scores"])
