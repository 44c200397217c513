"""docs/clusters.md and the README of cluster/ray-up: every path and every verb in them is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raymlp.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "docs" / "clusters.md",
    ROOT / "docs" / "decisions" / "0037-clusters-as-files.md",
    ROOT / "cluster" / "ray-up" / "README.md",
]
TEXT = "\n".join(page.read_text() for page in PAGES)


def test_every_path_is_there() -> None:
    paths = set(re.findall(r"\b((?:cluster|jobs|tests|\.github)/[\w./-]*\w)", TEXT))
    assert len(paths) > 20
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_verb_and_target_is_there() -> None:
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    verbs |= {group.name for group in app.registered_groups}
    assert not [verb for verb in re.findall(r"\braymlp ([a-z]+) ", TEXT) if verb not in verbs and verb not in ("in", "lies", "is")]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in re.findall(r"`make (\w+)`", TEXT))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
