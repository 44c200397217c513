"""The Terraform files as far as they go without a provider: they parse, everything that is referred to is declared, everything declared
is used. `terraform validate` runs in .github/workflows/ci.yml."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

hcl2 = pytest.importorskip("hcl2")
ROOT = Path(__file__).resolve().parents[2] / "cluster"
FOLDERS = sorted((ROOT / "terraform").iterdir())
REFERENCE = re.compile(r"(?<![\w.\"/-])(data\.[a-z]\w*\.\w+|(?:var|local)\.\w+|[a-z]\w*_\w+\.\w+)(?=[\[.\s,)}\]:?]|$)")


def without_strings(text: str) -> str:
    """The expressions of a file: comments gone, and of strings only what is between `${` and `}`."""
    text = re.sub(r"#.*", "", text)
    return re.sub(r'"((?:[^"\\]|\\.)*)"', lambda found: " ".join(re.findall(r"\$\{([^}]*)\}", found[1])), text)


def plain(name: Any) -> str:
    return str(name).strip('"')


def declared(folder: Path) -> tuple[set[str], set[str]]:
    """Everything that may be referred to, and the variables and locals among it."""
    names: set[str] = set()
    own: set[str] = set()
    for file in folder.glob("*.tf"):
        content = hcl2.loads(file.read_text())
        for kind, prefix in (("resource", ""), ("data", "data.")):
            for block in content.get(kind, []):
                for type_, named in block.items():
                    if not plain(type_).startswith("__"):
                        names |= {f"{prefix}{plain(type_)}.{plain(name)}" for name in named if not plain(name).startswith("__")}
        own |= {f"var.{plain(name)}" for block in content.get("variable", []) for name in block if not plain(name).startswith("__")}
        own |= {f"local.{plain(name)}" for block in content.get("locals", []) for name in block if not plain(name).startswith("__")}
    return names | own, own


def used(folder: Path) -> set[str]:
    """Everything that is referred to, but for the items of dynamic blocks."""
    text = "\n".join(file.read_text() for file in folder.glob("*.tf"))
    items = {f"{name}.{part}" for name in re.findall(r'dynamic "(\w+)"', text) for part in ("key", "value")}
    return set(REFERENCE.findall(without_strings(text))) - items


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_everything_that_is_used_is_declared_and_the_other_way_round(folder: Path) -> None:
    known, own = declared(folder)
    assert len(known) > 15
    assert used(folder) - known == set()
    assert own - used(folder) == set()


def test_an_undeclared_name_and_a_broken_file_are_found(tmp_path: Path) -> None:
    text = (FOLDERS[0] / "main.tf").read_text()
    (tmp_path / "main.tf").write_text(text.replace("var.region", "var.regoin", 1))
    assert "var.regoin" in used(tmp_path) - declared(tmp_path)[0]
    with pytest.raises(Exception, match="Unexpected"):
        hcl2.loads(text.replace("{", "", 1))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_files_have_terraforms_own_form(folder: Path) -> None:
    if shutil.which("terraform") is None:
        pytest.skip("no terraform on the path")
    assert subprocess.run(["terraform", f"-chdir={folder}", "fmt", "-check"], capture_output=True).returncode == 0


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_kubernetes_files_count_on_is_made_here(folder: Path) -> None:
    text = (folder / "main.tf").read_text()
    spot = (ROOT / "k8s" / "overlays" / "spot" / "kustomization.yaml").read_text()
    assert '"raymlp.io/spot" = "true"' in text
    assert 'raymlp.io/spot: "true"' in spot
    assert "key: raymlp.io/spot" in spot
    assert 'namespace        = "kuberay-system"' in text
    assert "kuberay-system" in (ROOT / "k8s" / "base" / "network.yaml").read_text()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_variable_says_what_it_is(folder: Path) -> None:
    for block in hcl2.loads((folder / "variables.tf").read_text())["variable"]:
        for name, content in block.items():
            assert plain(content["description"]).endswith("."), name
            assert content["type"]
