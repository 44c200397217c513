"""`raymlp forget` as a user meets it, with a registry that knows which version was trained on what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raymlp import pipeline
from raymlp.cli import run_command
from raymlp.config.loader import load_config
from raymlp.core.errors import ConfigError
from raymlp.data.snapshot import open_snapshot, read_split
from raymlp.runtime.tracking import client
from tests.data.people import SECRET, make_snapshot


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two snapshots, and two registered versions trained on one of them and one on something else."""
    monkeypatch.setenv("RAYMLP_PRIVACY_KEY", SECRET)
    folder = tmp_path / "snapshots" / "flights"
    digest = open_snapshot(make_snapshot(folder, "one")).digest
    config = load_config("flights", [f"runtime.storage={tmp_path}"])
    mlflow = client(config.registry, config.runtime)
    experiment = mlflow.create_experiment("flights")
    mlflow.create_registered_model("flights")
    for number, snapshot in enumerate((digest, "another", digest)):
        run = mlflow.create_run(experiment, tags={"raymlp.snapshot": snapshot}).info.run_id
        mlflow.create_model_version("flights", f"file:///nowhere/{number}", run_id=run)
    return tmp_path


def test_the_verb_removes_a_person_and_names_the_models_also_after_a_second_event(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = storage / "snapshots" / "flights" / "one"
    words = ["experiment=flights", f"runtime.storage={storage}"]
    assert run_command(["forget", *words, "--key", "user=user-3", "--dry-run"]) == 0
    assert "would remove 11 rows of 1 snapshots" in capsys.readouterr().out
    assert read_split(path, "train").num_rows == 72
    for user in ("user-3", "user-4"):
        assert run_command(["forget", "--key", f"user={user}", *words]) == 0
        shown = capsys.readouterr().out
        assert "flights/1, flights/3" in shown
        assert user not in shown
    assert read_split(path, "train").num_rows == 58
    manifest = (path / "manifest.json").read_text()
    assert len(json.loads(manifest)["forgotten"]) == 2
    assert not any(user in manifest for user in ("user-3", "user-4"))
    assert not any("user-3" in file.read_text() for file in storage.glob("*.log"))


def test_plan_says_that_the_list_needs_its_key(storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=flights", f"runtime.storage={storage}", "serve.port=8997"]
    assert run_command(["forget", *words, "--key", "user=user-3"]) == 0
    assert "`prepare` leaves such rows out from now on" in " ".join(capsys.readouterr().out.split())
    assert run_command(["plan", *words]) == 0
    monkeypatch.delenv("RAYMLP_PRIVACY_KEY")
    assert run_command(["plan", *words]) == 2
    assert "RAYMLP_PRIVACY_KEY is not set, and" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either a column with a value or expired"),
        (["--key", "user=user-3", "--expired"], "either a column with a value or expired"),
        (["--key", "user"], "--key has no COLUMN=VALUE"),
        (["--expired"], "data.privacy.retention_days is not set"),
    ],
)
def test_a_mistake_is_named_before_anything_is_removed(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["forget", "experiment=flights", f"runtime.storage={tmp_path}", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_expired_rows_go_by_the_retention_of_the_settings(storage: Path) -> None:
    settings = ["data.privacy.retention_days=1", "data.privacy.retention_column=at", f"runtime.storage={storage}"]
    result = pipeline.forget(load_config("flights", settings), expired=True)
    assert (result.snapshots, result.models) == ({"one": 100}, ("flights/1", "flights/3"))
    with pytest.raises(ConfigError, match="expected one of them"):
        pipeline.forget(load_config("flights", settings))
