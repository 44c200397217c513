from __future__ import annotations

from pathlib import Path

from raymlp.serve.fitting import bytes_of, too_large

MIB = 1 << 20


def report(node: str, free_mib: int) -> dict[str, object]:
    return {"node": node, "free_bytes": free_mib * MIB}


def test_what_fits_says_nothing() -> None:
    reports = [report("a", 1000), report("a", 1000), report("b", 500)]
    assert too_large("2", bundle_bytes=475 * MIB, measured_bytes=0, reports=reports) == ""
    assert too_large("2", bundle_bytes=10**15, measured_bytes=0, reports=[]) == "", "an endpoint that sleeps has no replica to fill"


def test_replicas_of_a_node_need_it_together_and_a_part_stays_free() -> None:
    reports = [report("a", 1000), report("a", 1000), report("b", 1000)]
    assert too_large("2", bundle_bytes=475 * MIB, measured_bytes=0, reports=reports) == "", "2 x 475 = 950 = 95 % of 1,000"
    problem = too_large("2", bundle_bytes=476 * MIB, measured_bytes=0, reports=reports)
    assert "2 on a make 952 MiB, and 950 MiB of the 1,000 MiB free there may be used" in problem
    assert "serve.placement=apart" in problem


def test_the_larger_of_files_and_probe_counts_and_the_smallest_free_figure_of_a_node() -> None:
    assert "needs about 300 MiB" in too_large("2", bundle_bytes=100 * MIB, measured_bytes=300 * MIB, reports=[report("a", 310)])
    assert "needs about 300 MiB" in too_large("2", bundle_bytes=300 * MIB, measured_bytes=100 * MIB, reports=[report("a", 310)])
    assert "of the 400 MiB free" in too_large("2", bundle_bytes=300 * MIB, measured_bytes=0, reports=[report("a", 900), report("a", 400)])


def test_a_bundle_counts_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "b").write_bytes(b"x" * 5)
    assert bytes_of(str(tmp_path)) == 15
    assert bytes_of(str(tmp_path / "none")) == 0
