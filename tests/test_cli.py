"""The command line as a user meets it: in processes of its own, with its exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raymlp.cli import Terminated, app, run_command
from raymlp.cli.jobs import AT_HOME

ROOT = Path(__file__).resolve().parents[1]
VERBS = [*(command.callback.__name__ for command in app.registered_commands if command.callback), "rollout"]


def raymlp(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-m", "raymlp", *words], capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


def test_help_lists_every_verb() -> None:
    out = raymlp("--help").stdout
    assert all(verb in out for verb in VERBS)


def test_each_verb_that_runs_on_a_cluster_has_a_job_script() -> None:
    scripts = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert scripts == set(VERBS) - set(AT_HOME)
    for script in scripts:
        assert f'job("{script}")' in (ROOT / "jobs" / f"{script}.py").read_text()


def test_plan_says_what_a_run_would_do(tmp_path: Path) -> None:
    result = raymlp("plan", "experiment=flights", f"runtime.storage={tmp_path}", "serve.port=8997")
    assert result.returncode == 0, result.stderr
    assert re.search(r"problem\s+flights: binary on 'arr_delay'", result.stdout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["plan", "experiment=flights", "train.epoch=3"], 2, "train.epoch is not a setting; found 3. Did you mean 'train.epochs'?"),
        (["train", "experiment=nothing"], 2, "experiment is 'nothing'"),
        (["plan", "experiment=flights", "train.num_workers=64"], 2, "64 workers x 1 CPUs = 64"),
        (["plan", "experiment=flights", "data.source.path=nothing.csv"], 2, "nothing.csv names no file"),
        (["plan", "experiment=flights", "features.drop=[tempp]"], 2, "Did you mean 'temp'"),
        (["fly"], 2, "No such command"),
    ],
)
def test_a_mistake_gives_one_error_and_its_exit_code(words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(words) == code
    shown = capsys.readouterr().err
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown


def test_init_writes_an_experiment_that_plans(tmp_path: Path) -> None:
    rows = "\n".join(f"{i},{i % 7},{'yes' if i % 3 else 'no'},{'1' if i % 3 else '0'},same" for i in range(300))
    (tmp_path / "My Data.csv").write_text(f"id,x,y,leak,constant\n{rows}\n")
    result = raymlp("init", "My Data.csv", "--target", "y", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "id left out: id-like" in result.stdout
    assert "leak left out: leaks the target" in result.stdout
    assert "constant left out: constant" in result.stdout
    assert raymlp("plan", "experiment=my-data", "serve.port=8996", cwd=tmp_path).returncode == 0
    again = raymlp("init", "My Data.csv", "--target", "y", cwd=tmp_path)
    assert (again.returncode, "--force" in again.stderr) == (2, True)
    wrong = raymlp("init", "My Data.csv", "--target", "z", "--name", "other", cwd=tmp_path)
    assert (wrong.returncode, "has no column 'z'" in wrong.stderr) == (2, True)


def test_contract_does_not_overwrite_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "contract.yaml").write_text("mine")
    words = ["contract", "experiment=flights", f"runtime.storage={tmp_path}", "--out", str(tmp_path / "contract.yaml")]
    assert run_command(words) == 2
    assert "contract.yaml exists; expected a new file" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "contract.yaml").read_text() == "mine"


def test_broken_rules_are_a_table_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raymlp import pipeline
    from raymlp.data.rules import BrokenRule

    broken = [BrokenRule("x is below 0", 1_234, "'-5'")]
    monkeypatch.setattr(pipeline, "check_contract", lambda *_, **__: broken)
    words = ["contract", "experiment=flights", f"runtime.storage={tmp_path}", "--check", "c.yaml"]
    assert run_command(words) == 1
    shown = capsys.readouterr()
    assert re.search(r"x is below 0 +1,234 +'-5'", shown.out)
    assert "breaks 1 rules of c.yaml" in shown.err
    broken.clear()
    assert run_command(words) == 0


@pytest.mark.parametrize(("stop", "code", "said"), [(Terminated(), 143, "Terminated."), (KeyboardInterrupt(), 130, "Interrupted.")])
def test_a_command_that_is_stopped_says_so_by_its_exit_code(
    stop: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise stop

    monkeypatch.setattr("raymlp.pipeline.prepare", stopped)
    assert run_command(["prepare", "experiment=flights", f"runtime.storage={tmp_path}"]) == code
    assert said in capsys.readouterr().err


def test_help_lists_verbs_in_the_order_of_a_models_life() -> None:
    verbs = [command.callback.__name__ for command in app.registered_commands if command.callback]
    life = ["init", "prepare", "train", "evaluate", "deploy", "run"]
    assert [verb for verb in verbs if verb in life] == life


@pytest.mark.parametrize(
    "words", [["status"], ["set", "0.1"], ["pause", "--reason", "lunch"], ["resume", "--accept", "ratio"], ["promote"]]
)
def test_a_verb_of_a_rollout_needs_nothing_but_the_storage(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command(["rollout", *words, "experiment=flights", f"runtime.storage={tmp_path}"])
    shown = capsys.readouterr()
    if words == ["status"]:
        assert (code, shown.out) == (0, "There was no rollout so far.\n")
    else:
        assert code == 1
        assert "no process drives the rollouts of flights" in shown.err


def test_a_share_that_is_no_number_is_an_error_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["rollout", "set", "much", "experiment=flights"]) == 2
    assert "unable to parse string as a number" in capsys.readouterr().err
