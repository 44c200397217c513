"""What uploads, and what does not."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from raymlp.core.errors import ConfigError
from raymlp.jobs.package import package_of


def write(root: Path, files: dict[str, str | int]) -> Path:
    """Files by name: their text, or their size in bytes."""
    for name, content in files.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            with place.open("wb") as file:
                file.truncate(content)
        else:
            place.write_text(content)
    return root


def names(root: Path, *excludes: str, results: Path | None = None) -> list[str]:
    return [file.name for file in package_of(root, excludes, results=results).files]


def test_what_no_job_needs_stays(tmp_path: Path) -> None:
    kept = {"conf/experiment/mine.yaml": "x", "mine/net.py": "x", "mine/build/step.py": "x", "artifacts.py": "x"}
    left = {
        ".git/objects/ab": "x", ".venv/bin/python": "x", "my-env/pyvenv.cfg": "x", "my-env/lib/a.py": "x", "conda/conda-meta/history": "x",
        "mine/__pycache__/net.pyc": "x", ".mypy_cache/a": "x", "artifacts/runs/a/model": "x", "outputs/2026/log": "x", "multirun/a": "x",
        "mlruns/0/meta.yaml": "x", "conf/local/default.yaml": "x", ".env": "TOKEN=x", "keys/tls.pem": "x", "node_modules/a.js": "x",
    }  # fmt: skip
    assert names(write(tmp_path, kept | left)) == sorted(kept)


def test_ignore_files_hold_where_they_lie_and_the_later_rule_wins(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".gitignore": "data/\n*.log\n!kept.log\n",
            ".rayignore": "docs/\n",
            "data/a.csv": "x", "a.log": "x", "kept.log": "x", "docs/a.md": "x",
            "mine/.gitignore": "/scratch/\n!b.log\n", "mine/scratch/a": "x", "mine/b.log": "x", "scratch/a": "x", "big.bin": "x",
        },
    )  # fmt: skip
    seen = [name for name in names(tmp_path) if not name.endswith("ignore")]
    assert seen == ["big.bin", "kept.log", "mine/b.log", "scratch/a"]
    assert "big.bin" not in names(tmp_path, "*.bin")
    assert "data/a.csv" in names(tmp_path, "!data/")


def test_results_stay_wherever_they_go(tmp_path: Path) -> None:
    write(tmp_path, {"results/runs/a": "x", "train.py": "x"})
    assert names(tmp_path, results=tmp_path / "results") == ["train.py"]


def test_results_behind_a_link_stay_too(tmp_path: Path) -> None:
    root = write(tmp_path / "project", {"train.py": ""})
    write(tmp_path / "disk", {"api-key": "secret"})
    (root / "out").symlink_to(tmp_path / "disk")
    assert names(root, results=root / "out") == ["train.py"]


def test_an_overlay_has_to_upload(tmp_path: Path) -> None:
    package = package_of(write(tmp_path / "project", {"best.yaml": "a: 1", "artifacts/best.yaml": "a: 2"}))
    package.require_overlays(["overlay=./best.yaml", "train.epochs=2"])
    for place in ("artifacts/best.yaml", str(tmp_path / "project" / "best.yaml"), "../best.yaml"):
        with pytest.raises(ConfigError, match="does not upload; expected a file among those that do"):
            package.require_overlays([f"overlay={place}"])


def test_a_link_is_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "shared", {"steps.py": "x"})
    root = write(tmp_path / "project", {"a.py": "x"})
    (root / "own").symlink_to(tmp_path / "shared")
    (root / "own" / "round").symlink_to(root)
    (root / "nowhere").symlink_to(tmp_path / "gone")
    os.mkfifo(root / "pipe")
    assert names(root) == ["a.py", "own/steps.py"]


def test_too_much_is_refused_with_the_ten_largest_by_name(tmp_path: Path) -> None:
    write(tmp_path, {"train.py": "x", **{f"data/part-{i:02}.parquet": i * 1_000_000 for i in range(1, 13)}})
    package = package_of(tmp_path)
    package.require_at_most(79)
    with pytest.raises(ConfigError) as refused:
        package.require_at_most(78)
    lines = str(refused.value).splitlines()
    assert "would upload 78.0 MB in 13 files; expected at most 78 MB" in lines[0]
    assert [line.split()[-1] for line in lines[1:-1]] == [f"data/part-{i:02}.parquet" for i in range(12, 2, -1)]
    assert lines[1].split()[:2] == ["12.0", "MB"]
    assert "jobs.excludes" in lines[-1]


def test_a_home_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no project's folder"):
        package_of(tmp_path)


def test_the_archive_holds_what_was_told_and_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    files = {"b.py": "print()", "a/run.sh": "#!/bin/sh", "ü mlaut.txt": "ü"}
    first, second = (write(tmp_path / part, files) for part in ("one", "two"))
    os.chmod(first / "a/run.sh", 0o755)
    os.chmod(second / "a/run.sh", 0o700)
    os.utime(second / "b.py", (1, 1))
    one, two = package_of(first), package_of(second)
    assert one.digest == two.digest
    assert one.write(tmp_path / "one.zip").read_bytes() == two.write(tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == files
        assert one.size == sum(entry.file_size for entry in archive.infolist()) == 18
        assert archive.getinfo("a/run.sh").external_attr >> 16 == 0o100755
    (second / "b.py").write_text("print(1)")
    assert package_of(second).digest != one.digest
    (first / "b.py").rename(first / "c.py")
    assert package_of(first).digest != two.digest
