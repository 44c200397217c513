"""The README and the pages of docs/ are true line by line: their commands are parsed, composed or run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import raymlp
from raymlp.cli import app
from raymlp.config.loader import load_config
from raymlp.config.runtime import Runtime

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
VERBS = {command.callback.__name__ for command in app.registered_commands if command.callback} | {"rollout"}
GROUPS = {
    group.name: {command.name or command.callback.__name__ for command in group.typer_instance.registered_commands if command.callback}
    for group in app.registered_groups
    if group.typer_instance
}


def inline_code(text: str) -> list[str]:
    """What stands between single backticks."""
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def commands() -> list[str]:
    """Commands in bash blocks and inline code, without trailing comments."""
    lines = [line.split("   #")[0].split("  #")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
    inline = [" ".join(code.split()) for code in inline_code(f"{README}\n{PAGES}") if code.startswith(("raymlp ", "ray job", "make "))]
    return [line for line in [*lines, *inline] if line.startswith(("raymlp ", "ray job", "make "))]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_exists_and_its_overrides_compose(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words == ["ray", "job", "submit"]:  # named, not run
        return
    if words[:3] == ["ray", "job", "submit"]:
        script = words[words.index("python") + 1]
        assert (ROOT / script).is_file()
        words = ["raymlp", Path(script).stem, *words[words.index(script) + 1 :]]
    if words[1] == "predict":  # which takes problem and data from the model
        words.append("experiment=flights")
    if words[1] in GROUPS:
        assert words[2:3] == [] or words[2] in GROUPS[words[1]]
        if words[1] != "rollout":
            return
    assert words[1] in VERBS
    overrides = [word for word in words[2:] if "=" in word and not word.startswith("overlay=")]
    if overrides and not {"experiment=data", "experiment=visits"} & set(overrides):  # which a reader makes by `raymlp init`
        assert load_config(overrides=overrides).problem.name == "flights"


def test_the_verbs_are_those_of_the_command_line() -> None:
    named = re.search(r"^Verbs: (.*?)\.\n", README, re.MULTILINE | re.DOTALL)
    assert named
    assert set(re.findall(r"`(\w+)`", named[1])) == VERBS


def test_every_path_and_picture_it_names_exists() -> None:
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text, base = file.read_text(), file.parent
        for path, _, part in (link.partition("#") for link in re.findall(r"\]\(((?!http)[^)]+)\)", text)):
            assert (base / path).exists(), path
            if part:
                page = (base / path).read_text() if path else text
                titles = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", page, re.M)]
                assert part in titles, part
        for path in re.findall(r"`((?:raymlp|conf|docs|jobs)/[\w/.]*)`", text):
            assert (ROOT / path).exists(), path


def test_every_setting_that_is_named_is_there() -> None:
    """The first two parts of those in the pages; what a model has depends on its kind."""
    words = [word for code in inline_code(PAGES) for word in code.split() if re.fullmatch(r"[a-z_.]+\.[a-z_]+=\S+", word)]
    assert len(words) > 20
    known = load_config("flights").model_dump()
    for word in words:
        section, key = word.partition("=")[0].split(".")[:2]
        assert key in known[section] or section == "model", word


@pytest.mark.ray
def test_the_python_example_runs_and_the_curl_example_fits_the_contract(ray_runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    code = next(text for kind, text in BLOCKS if kind == "python")
    small = f'"train.epochs=1", "data.split.train_start=2013-06-15", "runtime.storage={ray_runtime.storage}"'
    assert '"train.epochs=1"' in code
    names: dict[str, object] = {}
    exec(code.replace('"train.epochs=1"', small), names)
    auc, described = capsys.readouterr().out.split(" ", 1)
    assert 0.55 < float(auc) < 0.85
    assert described.startswith("a whole number")
    curl = next(text for kind, text in BLOCKS if kind == "bash" and "curl" in text)
    body = json.loads(curl[curl.index("-d '") + 4 : curl.rindex("'")])
    predictor = names["predictor"]
    assert isinstance(raymlp.__version__, str)
    answer = predictor.predict(body["instances"]).rows()[0]  # type: ignore[attr-defined]
    assert 0 < answer["probability"] < 1
