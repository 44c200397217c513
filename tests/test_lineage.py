"""A recorded run is made again bit by bit, and traced back to its files; what changed or is gone is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.csv
import pytest
import yaml

from raymlp import lineage, pipeline
from raymlp.cli import run_command
from raymlp.config.loader import build_config, to_yaml, with_overrides
from raymlp.config.schema import Site
from raymlp.core.errors import ConfigError, DataError, RegistryError
from raymlp.core.files import sha256_file
from raymlp.core.records import Snapshot, Station, TrainedModel
from raymlp.data import sources
from raymlp.model.bundle import load_bundle, save_bundle
from raymlp.train.support import unrepeatable
from tests.train.planted import config_of, planted, trained, write_snapshot


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """A run of two epochs, its snapshot, and the CSV file that the snapshot was made from."""
    home = tmp_path_factory.mktemp("home")
    table = planted(400, 1, "binary")
    pyarrow.csv.write_csv(table, home / "rows.csv")
    source = {"data.source": {"kind": "csv", "path": str(home / "rows.csv")}, "runtime.storage": str(home / "artifacts")}
    config = with_overrides(config_of(epochs=2, batch_size=64), source)
    folder = home / "artifacts" / "snapshots" / "planted" / "abc"
    snapshot = write_snapshot(folder, {"train": table, "valid": planted(200, 2, "binary")})
    files = {f"{file.parent.name}/{file.name}": sha256_file(file) for file in sorted(folder.glob("*/*.parquet"))}
    manifest = json.loads((folder / "manifest.json").read_text())
    facts = {"created": "2026-01-01", "source": sources.fingerprint(config.data.source), "files": files, "joined": []}
    (folder / "manifest.json").write_text(json.dumps(manifest | facts))
    return trained(config, snapshot=snapshot)


@pytest.fixture
def site(made: TrainedModel, tmp_path: Path) -> Site:
    """A copy of its storage folder."""
    storage = made.bundle.parents[2]
    shutil.copytree(storage, tmp_path / "artifacts")
    return Site.model_validate({"runtime": {"storage": str(tmp_path / "artifacts")}})


@pytest.fixture
def recorded(made: TrainedModel, site: Site) -> TrainedModel:
    return replace(made, bundle=Path(site.runtime.storage) / "runs" / made.run_id / "bundle")


def states(stations: tuple[Station, ...]) -> dict[str, str]:
    return {station.kind: station.state for station in stations}


def test_a_run_made_again_is_equal_to_the_last_bit(recorded: TrainedModel, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymlp.pipeline.training.train", trained)
    result = pipeline.reproduce(recorded.run_id, site)
    assert result.differences == ()
    assert {"weights.safetensors", "plan.json", "calibration.json", "auc"} <= {fact.name for fact in result.facts}
    assert result.model.bundle != recorded.bundle
    environment = {fact.name: fact.recorded for fact in result.environment}
    assert {"python", "torch", "raymlp", "cpu", "threads", "training rows"} <= set(environment)


def test_another_seed_is_told_from_the_recorded_one_with_exit_code_1(
    recorded: TrainedModel, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("raymlp.pipeline.training.train", lambda config, **rest: trained(with_overrides(config, {"train.seed": 1}), **rest))
    assert run_command(["reproduce", str(recorded.bundle), f"runtime.storage={site.runtime.storage}"]) == 1
    shown = capsys.readouterr()
    assert "weights.safetensors" in shown.out
    assert f"differ from run {recorded.run_id}: the environment is the same" in " ".join(shown.err.split())


def test_a_difference_of_environment_is_named(
    recorded: TrainedModel, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = load_bundle(recorded.bundle)
    changed = {name: value + 1 for name, value in first.scorer.weights.items()}
    moved = save_bundle(
        replace(first, scorer=replace(first.scorer, weights=changed), environment={**first.environment, "torch": "1.0"}),
        recorded.bundle.parent / "other",
    )
    monkeypatch.setattr("raymlp.pipeline.training.train", trained)
    assert run_command(["reproduce", str(moved), f"runtime.storage={site.runtime.storage}"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of " in said
    assert f"torch was 1.0 and is {first.environment['torch']}" in said


def test_a_private_run_is_said_to_differ_as_it_must(
    recorded: TrainedModel, site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("opacus")
    first = load_bundle(recorded.bundle)
    private = with_overrides(build_config(yaml.safe_load(first.config_yaml)), {"train.private": {"max_epsilon": 50.0, "noise": 1.0}})
    other = save_bundle(replace(first, config_yaml=to_yaml(private)), recorded.bundle.parent / "other")
    monkeypatch.setattr("raymlp.pipeline.training.train", trained)
    assert run_command(["reproduce", str(other), f"runtime.storage={site.runtime.storage}"]) == 1
    shown = capsys.readouterr()
    assert f"run {recorded.run_id} cannot be made again bit by bit" in " ".join(shown.out.split())
    assert "as they must: train.private draws batches and noise from the operating system" in " ".join(shown.err.split())
    assert unrepeatable(config_of()) == ()


def test_a_snapshot_that_the_source_no_longer_gives_is_refused(
    recorded: TrainedModel, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = Path(site.runtime.storage) / "snapshots" / "planted" / "abc" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"digest": "1" * 64}))
    monkeypatch.setattr("raymlp.pipeline.training.prepare", lambda *_, **__: Snapshot(manifest.parent, "1" * 64, {}))
    with pytest.raises(DataError, match=r"trained on snapshot 0000000000.*source now gives 1111111111"):
        pipeline.reproduce(recorded.run_id, site)
    assert states(pipeline.trace(recorded.run_id, site).stations)["snapshot"] == "missing"


def test_a_trace_walks_from_the_bundle_to_the_source_and_finds_all_as_it_was(recorded: TrainedModel, site: Site) -> None:
    found = pipeline.trace(str(recorded.bundle), site)
    assert states(found.stations) == dict.fromkeys(("bundle", "run", "code", "config", "snapshot", "source"), "same")
    assert found.broken == ()
    assert next(item for item in found.stations if item.kind == "source").recorded.startswith("rows.csv, ")


def test_a_trace_names_what_changed_and_what_is_gone(
    recorded: TrainedModel, made: TrainedModel, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise RegistryError("gone")

    source = made.bundle.parents[3] / "rows.csv"
    before = source.read_bytes()
    parts = sorted((Path(site.runtime.storage) / "snapshots" / "planted" / "abc").glob("*/*.parquet"))
    try:
        source.write_bytes(before + b"1,2,x,3,true\n")
        parts[0].write_bytes(parts[1].read_bytes())
        found = {item.kind: item for item in pipeline.trace(recorded.run_id, site).broken}
        assert found.keys() == {"snapshot", "source"}
        assert (found["snapshot"].state, found["snapshot"].note) == ("changed", "train/part-00000.parquet of its 4 files")
        assert found["source"].note.startswith("now rows.csv, ")
        source.unlink()
        parts[0].unlink()
        monkeypatch.setattr(lineage, "recorded", gone)
        found = {item.kind: item for item in pipeline.trace(str(recorded.bundle), site).broken}
        assert {kind: item.state for kind, item in found.items()} == dict.fromkeys(("run", "snapshot", "source"), "missing")
    finally:
        source.write_bytes(before)


def test_a_run_that_is_not_there_and_a_setting_of_the_run_are_refused(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RegistryError, match="run 123 is not in sqlite"):
        pipeline.reproduce("123", site)
    assert run_command(["trace", "123", "train.epochs=3"]) == ConfigError.exit_code
    assert "'train.epochs=3' is a setting of the run" in " ".join(capsys.readouterr().err.split())
