"""The workflows: GitHub's schema, zizmor's rules, pinned actions, and jobs and programs that are there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raymlp.cli.jobs import divided

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / ".github" / "workflows").glob("*.yml"), *(ROOT / "cluster" / "workflows").glob("*.yml")])


def run(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        pytest.skip(f"{name} is not installed")
    return subprocess.run([str(word) for word in (program, *words)], capture_output=True, text=True)


def broken(file: Path, old: str, new: str, folder: Path) -> Path:
    text = file.read_text()
    assert old in text
    place = folder / ".github" / "workflows" / file.name
    place.parent.mkdir(parents=True)
    place.write_text(text.replace(old, new))
    return place


def named(name: str) -> Path:
    return next(file for file in FILES if file.name == name)


def test_github_would_take_them(tmp_path: Path) -> None:
    done = run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *FILES)
    assert done.returncode == 0, done.stdout
    bad = broken(named("ci.yml"), "runs-on:", "run-on:", tmp_path)
    assert run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", bad).returncode == 1


def test_zizmor_finds_nothing(tmp_path: Path) -> None:
    done = run("zizmor", "--offline", "--no-progress", *FILES)
    assert done.returncode == 0, done.stdout
    bad = broken(named("train.yml"), '"$EXPERIMENT"', "experiment=${{ inputs.experiment }}", tmp_path)
    done = run("zizmor", "--offline", "--no-progress", bad)
    assert done.returncode != 0
    assert "template-injection" in done.stdout


def test_every_action_is_pinned_by_its_commit() -> None:
    uses = [line for file in FILES for line in re.findall(r"uses: (.*)", file.read_text())]
    assert len(uses) > 10
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}  # v[\d.]+", line) for line in uses)
    assert len({line.split("@")[0] for line in uses}) == len(set(uses))


def test_what_they_run_is_there() -> None:
    text = "\n".join(file.read_text() for file in FILES)
    submitted = [shlex.split(words) for words in re.findall(r'python -m raymlp submit --name "\$JOB" (.*)', text)]
    assert {verb for verb, *_ in submitted} == {"train", "evaluate", "register", "predict", "rollout", "monitor"}
    for verb, *words in submitted:
        assert (ROOT / "jobs" / f"{verb}.py").is_file()
        divided(verb, words)  # by the verb's own parser
    assert (ROOT / ".ci" / "run").is_file()
    for kind in yaml.safe_load(named("image.yml").read_text())["jobs"]["image"]["strategy"]["matrix"]["kind"]:
        assert (ROOT / "cluster" / "docker" / f"Dockerfile.{kind}").is_file()
    for cloud in yaml.safe_load(named("ci.yml").read_text())["jobs"]["terraform"]["strategy"]["matrix"]["cloud"]:
        assert (ROOT / "cluster" / "terraform" / cloud / "main.tf").is_file()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_token_is_for_the_job_that_needs_it_behind_an_environment(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert "timeout-minutes" in job
        if "secrets." in yaml.safe_dump(job):
            assert "environment" in job
        for step in job["steps"]:
            assert "AUTH_TOKEN" not in step.get("run", "")
            assert "ray job submit" not in step.get("run", "")  # which gives 0 for a job that was stopped
