"""What memory is left: of the machine, or of the container where that is less."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymlp.runtime import memory


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """1,000 kB, 600 of them available; the folder of its control groups."""
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree:  100 kB\nMemAvailable:  600 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_a_container_the_machine_counts(machine: Path) -> None:
    assert (memory.total(), memory.available()) == (1_024_000, 614_400)
    write(machine, memory__max="max\n")
    assert (memory.total(), memory.available()) == (1_024_000, 614_400)


def test_a_container_has_its_limit_less_what_it_uses_and_its_cache_is_free(machine: Path) -> None:
    write(machine, memory__max="500000\n", memory__current="300000\n", memory__stat="anon 1\ninactive_file 50000\n")
    assert (memory.total(), memory.available()) == (500_000, 250_000)


def test_control_groups_of_the_first_version_are_read_too(machine: Path) -> None:
    stat = "inactive_file 7\ntotal_inactive_file 100000\n"
    write(machine / "memory", memory__limit_in_bytes="400000\n", memory__usage_in_bytes="450000\n", memory__stat=stat)
    assert (memory.total(), memory.available()) == (400_000, 50_000)
    write(machine / "memory", memory__limit_in_bytes=f"{2**63 - 4096}\n")
    assert (memory.total(), memory.available()) == (1_024_000, 614_400)


def test_this_machine_has_some() -> None:
    assert 0 < memory.available() <= memory.total()
