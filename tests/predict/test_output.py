"""Where answers go: seen whole or not at all, found again, replaced only when asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymlp.core.errors import ConfigError, DataError
from raymlp.data import parquet
from raymlp.predict import output as output_module
from raymlp.predict.output import MANIFEST, Output, require_address, written
from raymlp.runtime.store import StorePlace

KEY, OTHER = "a" * 64, "b" * 64


def fill(output: Output, number: int, rows: int) -> dict[str, Any]:
    """Write a chunk of part 0 as a worker does, and give its facts."""
    writers = [parquet.Writer(place) for place in output.files_of(0, number)]
    for writer in writers:
        writer.write(pa.table({"x": range(rows)}))
        writer.close()
    facts = {"rows": rows, "bad": rows, "suppressed": 0, "first": "", "last": False, "files": written(output.working, *writers)}
    output.finish(0, number, facts)
    return facts


def manifest_of(*facts: dict[str, Any]) -> dict[str, Any]:
    return {"files": {name: fact for item in facts for name, fact in item["files"].items()}, "model": {"name": "m", "version": "v1"}}


def test_files_are_seen_when_all_are_there(tmp_path: Path) -> None:
    output = Output.at(str(tmp_path / "deep" / "out"), KEY)
    output.require_free(overwrite=False)
    with output.alone():
        first = fill(output, 0, 3)
        output.files_of(0, 1)[0].write_text("half")  # type: ignore[attr-defined]
        assert output.finished() == {(0, 0): json.loads(json.dumps(first))}
        assert not (tmp_path / "deep" / "out").exists()
        assert output.manifest() is None
        output.publish(manifest_of(first, fill(output, 1, 2)))
    assert pq.read_table(tmp_path / "deep" / "out").column("x").to_pylist() == [0, 1, 2, 0, 1]
    assert sorted(file.name for file in (tmp_path / "deep" / "out").iterdir()) == [
        MANIFEST, "_quarantine", "part-00000-00000.parquet", "part-00000-00001.parquet",
    ]  # fmt: skip
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["out"]
    assert output.manifest()["key"] == KEY  # type: ignore[index]


def test_what_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    for key, rows in ((KEY, 3), (OTHER, 2)):
        output = Output.at(str(tmp_path / "out"), key)
        if key == OTHER:
            with pytest.raises(ConfigError, match=r"holds answers of m v1.*predict.overwrite=true"):
                output.require_free(overwrite=False)
        output.require_free(overwrite=True)
        with output.alone():
            facts = fill(output, 0, rows)
            if key == OTHER:
                assert pq.read_table(tmp_path / "out").num_rows == 3  # the old answers, until the new ones are whole
            output.publish(manifest_of(facts))
    assert pq.read_table(tmp_path / "out").num_rows == 2
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    Output.at(str(tmp_path / "mine"), KEY).require_free(overwrite=False)
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds no answers of raymlp"):
            Output.at(str(tmp_path / "mine"), KEY).require_free(overwrite=overwrite)
    with pytest.raises(ConfigError, match=r"predict.output is empty"):
        require_address("")


def test_nothing_is_published_while_finished_files_are_missing(tmp_path: Path) -> None:
    """A worker on another node wrote to its own disk, and told that it was done."""
    output = Output.at(str(tmp_path / "out"), KEY)
    with output.alone():
        facts = [fill(output, number, 1) for number in range(2)]
        output.files_of(0, 1)[0].unlink()
        words = r"1 of 4 finished files are not in .*, as part-00000-00001.parquet; expected a place that all nodes see. Set predict.output"
        with pytest.raises(DataError, match=words):
            output.publish(manifest_of(*facts))
        assert not (tmp_path / "out").exists()
        output.publish(manifest_of(facts[0], fill(output, 1, 1)))
    assert pq.read_table(tmp_path / "out").num_rows == 2


def test_in_a_store_missing_files_keep_the_old_answers(bucket: Any) -> None:
    store, query = bucket
    for key in (KEY, OTHER):
        output = Output.at(f"s3://lake/scores/hour?{query}", key)
        with output.alone():
            facts = [fill(output, number, 1) for number in range(2)]
            if key == OTHER:
                output.files_of(0, 1)[0].unlink()
                with pytest.raises(DataError, match=r"1 of 4 finished files are not in .*_working-b+"):
                    output.publish(manifest_of(*facts))
            else:
                output.publish(manifest_of(*facts))
        assert output.manifest()["key"] == KEY  # type: ignore[index]
    store.delete_dir_contents("lake")


def test_one_process_at_a_time_whatever_its_job(tmp_path: Path) -> None:
    outputs = [Output.at(str(tmp_path / "out"), key) for key in (KEY, OTHER)]
    code = f"""
import sys
from raymlp.predict.output import Output
with Output.at({str(tmp_path / "out")!r}, {KEY!r}).alone():
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for output in outputs:
            with pytest.raises(DataError, match=rf"out is being written by process {other.pid} on"), output.alone():
                pass
        other.kill()
        other.wait()
    with outputs[0].alone():
        assert sorted(file.name for file in tmp_path.iterdir()) == [f".out.{KEY[:12]}", ".out.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_its_owner_took_away_while_another_opened_it_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes third makes a lock of its own: two would write."""
    output, opened = Output.at(str(tmp_path / "out"), KEY), output_module._opened

    def opened_and_gone(lock: Path) -> Any:
        file = opened(lock)
        lock.unlink()
        return file

    monkeypatch.setattr(output_module, "_opened", opened_and_gone)
    with pytest.raises(DataError, match=r"is being written by another process"), output.alone():
        pass


def test_unfinished_work_of_other_settings_is_named(tmp_path: Path) -> None:
    with Output.at(str(tmp_path / "out"), OTHER).alone():
        fill(Output.at(str(tmp_path / "out"), OTHER), 0, 1)
    assert Output.at(str(tmp_path / "out"), KEY).others() == [f".out.{OTHER[:12]}"]
    assert Output.at(str(tmp_path / "out"), OTHER).others() == []


def test_in_a_store_the_manifest_comes_last_and_a_cut_off_move_goes_on(bucket: Any) -> None:
    store, query = bucket
    outputs = [Output.at(f"s3://lake/scores/day?{query}", key) for key in (KEY, OTHER)]
    for output, rows in zip(outputs, (3, 2), strict=True):
        output.require_free(overwrite=True)
        place = output.place
        assert isinstance(place, StorePlace)
        with output.alone():
            facts = manifest_of(fill(output, 0, rows), fill(output, 1, 1))
            if output is outputs[0]:
                (output.working / "part-00000-00000.parquet").replace(place / "part-00000-00000.parquet")  # type: ignore[arg-type]
                assert output.manifest() is None
            else:
                assert output.others() == []
            output.publish(facts)
        files = {str(file.relative_to(place)) for file in place.files()}
        assert files == {MANIFEST, *(f"{folder}part-00000-0000{n}.parquet" for folder in ("", "_quarantine/") for n in (0, 1))}
        assert parquet.read(place / "part-00000-00000.parquet").num_rows == rows
        assert output.manifest()["key"] == output.key  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"holds answers of m v1"):
        outputs[0].require_free(overwrite=False)
    store.delete_dir_contents("lake")
