"""What is watched is exported: every name in the rules and dashboards comes from raymlp's code or Ray's, rules fire when they should."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "monitoring"
RAY = Path(ray.__file__).parent
NAME = re.compile(r"\b(?:ray|raymlp)_[a-z_]+(?=[{)\[ ]|$)")
CODE = runpy.run_path(str(FOLDER / "dashboards.py"))


def queries() -> list[str]:
    rules = yaml.safe_load((FOLDER / "rules.yml").read_text())
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    panels = [
        target["expr"]
        for file in FOLDER.glob("dashboards/*.json")
        for panel in json.loads(file.read_text())["panels"]
        for target in panel["targets"]
    ]
    return [*alerts, *panels]


def names_in(query: str) -> set[str]:
    """Metrics that a query reads: names outside of label lists and groupings."""
    bare = re.sub(r"(by|on|without)\s*\([^)]*\)", "", re.sub(r"\{[^}]*\}", "{", query))
    return set(NAME.findall(bare))


@pytest.fixture(scope="module")
def of_ray() -> bytes:
    """Ray's own text where its metrics are named: its programs, and the Python of its node agent, Data and Train."""
    python = [path for folder in ("dashboard/modules/reporter", "data/_internal", "train/v2") for path in (RAY / folder).rglob("*.py")]
    programs = [RAY / "core/src/ray/raylet/raylet", RAY / "core/src/ray/gcs/gcs_server"]
    return b"\n".join(path.read_bytes() for path in [*python, *programs])


def is_exported(name: str, of_ray: bytes) -> bool:
    if "raymlp" in name:
        return name in CODE["exported"]()
    bare = name.removeprefix("ray_").removeprefix("data_")  # Ray Data joins its prefix to the names of fields
    return re.search(rb"\b(data_|train_)?" + re.escape(bare).encode() + rb"\b", of_ray) is not None


def test_every_metric_that_is_watched_is_exported(of_ray: bytes) -> None:
    used = set().union(*(names_in(query) for query in queries()))
    assert len(used) > 20
    assert not {name for name in used if not is_exported(name, of_ray)}


def test_a_metric_that_nobody_exports_is_found(of_ray: bytes) -> None:
    assert names_in('sum by (model) (rate(ray_raymlp_request_total{model=~"$model"}[5m])) > 1') == {"ray_raymlp_request_total"}
    assert not is_exported("ray_raymlp_request_total", of_ray)
    assert not is_exported("ray_node_disk_utilisation_percentage", of_ray)


def test_every_metric_of_the_endpoint_and_of_monitoring_is_watched() -> None:
    used = set().union(*(names_in(query) for query in queries()))
    assert CODE["exported"]() <= used


@pytest.mark.parametrize("name", CODE["DASHBOARDS"])
def test_the_dashboards_are_those_of_the_code(name: str) -> None:
    assert (FOLDER / "dashboards" / f"{name}.json").read_text() == CODE["text_of"](name), "old dashboards; run: make clusters"


def test_every_alert_says_what_to_do_and_has_an_example() -> None:
    rules = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
    assert all(rule["labels"]["severity"] in ("page", "ticket") for rule in rules)
    assert all(set(rule["annotations"]) == {"summary", "action"} for rule in rules)
    examples = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    fired = {item["alertname"] for test in examples for item in test["alert_rule_test"] if item["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules}


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on the path (Debian: prometheus, prometheus-alertmanager)")
    return found


def run(*words: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True)


def test_the_rules_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    promtool = program("promtool")
    done = run(promtool, "test", "rules", FOLDER / "rules_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copy(FOLDER / "rules_test.yml", tmp_path)
    (tmp_path / "rules.yml").write_text((FOLDER / "rules.yml").read_text().replace("> 0.01", "> 0.1"))
    assert run(promtool, "test", "rules", tmp_path / "rules_test.yml").returncode == 1


@pytest.mark.parametrize("name", ["prometheus", "prometheus-machines"])
def test_prometheus_takes_its_configuration(name: str, tmp_path: Path) -> None:
    promtool = program("promtool")
    # Debian's build knows no Kubernetes: the rest of the file is checked with other targets in its place.
    text = re.sub(
        r"kubernetes_sd_configs:\n +- role: pod\n.*\n", "static_configs: [{targets: [a]}]\n", (FOLDER / f"{name}.yml").read_text()
    )
    (tmp_path / "config.yml").write_text(text)
    shutil.copy(FOLDER / "rules.yml", tmp_path)
    done = run(promtool, "check", "config", tmp_path / "config.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "config.yml").write_text(text.replace("scrape_interval", "scrape_intervall"))
    assert run(promtool, "check", "config", tmp_path / "config.yml").returncode == 1


def test_alertmanager_takes_its_configuration(tmp_path: Path) -> None:
    amtool = program("amtool")
    # `url_file` is younger than Debian's build.
    text = re.sub(r"url_file: .*", "url: http://127.0.0.1/", (FOLDER / "alertmanager.yml").read_text())
    (tmp_path / "config.yml").write_text(text)
    assert run(amtool, "check-config", tmp_path / "config.yml").returncode == 0
    (tmp_path / "config.yml").write_text(text.replace("receiver: pages", "receiver: nobody"))
    assert run(amtool, "check-config", tmp_path / "config.yml").returncode == 1
