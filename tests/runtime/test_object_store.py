"""What has no lock and no rename: writes on condition, claims and the audit log in a store that speaks the S3 protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from raymlp.config.runtime import Runtime
from raymlp.core.errors import ConfigError, DataError, RaymlpError
from raymlp.retrain import lock
from raymlp.runtime import copies, store
from raymlp.runtime.audit import FIRST, audit_file, entries, record, verify
from raymlp.runtime.claim import Claim, Taken
from raymlp.runtime.copies import filled, local_copy, own_folder
from raymlp.runtime.store import StorePlace, place_of, require_conditions

pytest.importorskip("obstore")


@pytest.fixture
def lake(bucket: Any) -> Iterator[StorePlace]:
    """An empty folder in the bucket."""
    filesystem, query = bucket
    folder = place_of(f"s3://lake/deep/results?{query}")
    assert isinstance(folder, StorePlace)
    yield folder
    filesystem.delete_dir_contents("lake")


# ------------------------------------------------------------------------------------------------- files


def test_a_file_has_its_size_and_time_when_it_is_listed_and_when_it_is_asked(lake: StorePlace) -> None:
    file = lake / "a.txt"
    file.write_text("12345")
    (listed,) = lake.glob("*.txt")
    assert listed == file
    assert listed.stat() == file.stat()
    assert file.stat().st_size == 5
    with pytest.raises(FileNotFoundError):
        (lake / "b.txt").stat()
    file.unlink()
    file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        file.unlink()
    assert listed.stat().st_size == 5, "as it was listed"


def test_a_write_on_condition_succeeds_only_on_what_was_seen(lake: StorePlace) -> None:
    file = lake / "one.json"
    assert file.seen() is None
    first = file.write_if("1", None)
    assert file.write_if("1", None) == first, "asked again, as a client does when an answer was lost"
    with pytest.raises(FileExistsError):
        file.write_if("2", None)
    assert file.seen() == first
    second = file.write_if("2", first)
    with pytest.raises(FileExistsError):
        file.write_if("3", first)
    assert file.read_text() == "2"
    file.unlink()
    with pytest.raises(FileExistsError):
        file.write_if("3", second)
    assert not file.exists()


def test_of_many_who_write_at_once_one_succeeds(lake: StorePlace) -> None:
    def tries(number: int) -> int | None:
        with suppress(FileExistsError):
            (lake / "one.json").write_if(str(number), None)
            return number
        return None

    with ThreadPoolExecutor(8) as pool:
        won = [number for number in pool.map(tries, range(16)) if number is not None]
    assert [str(number) for number in won] == [(lake / "one.json").read_text()]


def test_a_store_that_knows_no_conditions_is_refused(lake: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    require_conditions(lake)
    assert not list(lake.parent.glob(".trial*"))

    class Forgetful:
        """Writes whatever it is asked to, as some servers did before they knew If-None-Match."""

        def put(self, name: str, content: bytes, *, mode: str) -> None: ...

        def delete(self, name: str) -> None: ...

    monkeypatch.setattr(store, "_client", lambda root, query: Forgetful())
    monkeypatch.setattr(store, "_proof", lambda root, query: [])
    with pytest.raises(ConfigError, match=r"s3://lake writes a file anew .* If-None-Match and If-Match\. Set runtime\.storage"):
        require_conditions(lake)


# ------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_seen_whole_and_is_copied_once_for_a_manifest(
    lake: StorePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMLP_CACHE", str(tmp_path / "cache"))
    for target in (lake / "made", tmp_path / "made"):
        with pytest.raises(FileNotFoundError, match="halfway"), filled(target) as folder:
            (folder / "halfway").unlink()
        assert not target.exists()
        with filled(target) as folder:
            (folder / "below").mkdir()
            (folder / "below" / "a").write_text("1")
            (folder / "manifest.json").write_text("{}")
    with filled(lake / "made") as folder:
        (folder / "manifest.json").write_text('"another, which is too late"')
    assert local_copy(tmp_path / "made") == tmp_path / "made"
    copied = local_copy(lake / "made")
    assert sorted(str(file.relative_to(copied)) for file in copied.rglob("*") if file.is_file()) == ["below/a", "manifest.json"]
    monkeypatch.setattr(copies, "published", None)
    assert local_copy(lake / "made") == copied
    with pytest.raises(FileNotFoundError):
        local_copy(lake / "other")


def test_the_manifest_is_written_last_and_an_upload_that_fails_leaves_nothing(lake: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = copies.writing

    def writing(place: StorePlace) -> Any:
        order.append(place.name)
        if "fails" in place.name:
            raise OSError("no such luck")
        return real(place)

    monkeypatch.setattr(copies, "writing", writing)
    fill(lake / "made", "manifest.json", "a", "z")
    assert order == ["a", "z", "manifest.json"]
    with pytest.raises(DataError, match="no such luck"):
        fill(lake / "other", "a", "fails", "manifest.json")
    assert list((lake / "other").files()) == []


def fill(target: StorePlace, *names: str) -> None:
    with filled(target) as folder:
        for name in names:
            (folder / name).write_text(name)


def test_a_copy_that_is_not_whole_is_kept_by_nobody(lake: StorePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_CACHE", str(tmp_path))
    (lake / "made" / "manifest.json").write_text("{}")

    def refuse(folder: Path) -> None:
        raise ValueError(str(sorted(file.name for file in folder.iterdir())))

    with pytest.raises(ValueError, match=r"\['manifest.json'\]"):
        local_copy(lake / "made", check=refuse)
    assert list((tmp_path / "copies").iterdir()) == []


def test_a_name_that_leads_out_of_its_folder_is_not_copied(lake: StorePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMLP_CACHE", str(tmp_path / "cache"))
    (lake / "made" / "manifest.json").write_text("{}")
    monkeypatch.setattr(StorePlace, "files", lambda self: [self / "manifest.json", self / "x/../../../../evil"])
    with pytest.raises(DataError, match="leads out of its folder"):
        local_copy(lake / "made")
    assert not list(tmp_path.rglob("evil"))


def test_what_a_machine_alone_needs_lies_in_the_folder_itself_or_in_the_cache(
    lake: StorePlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert own_folder(tmp_path) == tmp_path
    monkeypatch.setenv("RAYMLP_CACHE", str(tmp_path))
    assert own_folder(lake).parent == own_folder(lake / "x").parent == tmp_path / "own"
    assert own_folder(lake) != own_folder(lake / "x")
    monkeypatch.delenv("RAYMLP_CACHE")
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert copies.cache_folder() == Path("/home/ann/.cache/raymlp")


# ------------------------------------------------------------------------------------------------- claims


def test_one_has_a_claim_until_it_gives_it_up(lake: StorePlace) -> None:
    first, second = Claim(lake / "claim.json"), Claim(lake / "claim.json")
    assert not first.is_live()
    assert first.take()
    assert not second.take()
    assert second.is_live()
    assert second.holder().startswith("process ")
    first.renew()
    first.release()
    assert not second.is_live()
    with pytest.raises(Taken):
        first.renew()
    assert second.take()
    assert (first.epoch, second.epoch) == (1, 2)
    second.release()


def test_who_is_silent_is_overtaken_and_finds_out(lake: StorePlace) -> None:
    first, second = Claim(lake / "claim.json", silent_s=600), Claim(lake / "claim.json", silent_s=0.2)
    assert first.take()
    tries = iter(range(10**6))
    while not second.take():
        assert next(tries) < 10**5
    with pytest.raises(Taken, match=r"claimed by process \d+ on "):
        first.renew()
    first.release()
    assert second.sign()["epoch"] == 2, "giving up what one does not have changes nothing"
    second.renew()
    second.release()


def test_a_sign_of_life_keeps_others_away(lake: StorePlace) -> None:
    first, second = Claim(lake / "claim.json", silent_s=0.6), Claim(lake / "claim.json", silent_s=0.6)
    assert first.take()
    signs = set()
    while len(signs) < 12:  # twice as long as silence takes
        assert not second.take()
        signs.add(json.dumps(second.sign()))
    first.release()


def test_what_a_dead_process_had_is_taken_over_and_what_a_living_one_has_is_not(lake: StorePlace) -> None:
    dead = {"epoch": 4, "time": 1.0, "pid": 1, "host": "gone", "unlike": "x"}
    (lake / "claim.json").write_text(json.dumps(dead))
    first, second = Claim(lake / "claim.json", silent_s=0.3), Claim(lake / "claim.json", silent_s=0.3)
    with first.held(RaymlpError("it is held")):
        assert first.epoch == 5
        with pytest.raises(RaymlpError, match="it is held"), second.held(RaymlpError("it is held")):
            raise AssertionError
    with second.held(RaymlpError("it is held")):
        assert second.epoch == 6


def test_of_many_who_want_a_claim_one_gets_it(lake: StorePlace) -> None:
    claims = [Claim(lake / "claim.json") for _ in range(8)]
    together = threading.Barrier(len(claims))

    def take(claim: Claim) -> bool:
        together.wait()
        return claim.take()

    with ThreadPoolExecutor(len(claims)) as pool:
        assert sum(pool.map(take, claims)) == 1
    for claim in claims:
        claim.release()


def test_one_retrain_at_a_time(lake: StorePlace) -> None:
    assert not lock.is_held(lake)
    with lock.held(lake):
        assert lock.is_held(lake)
        with pytest.raises(RaymlpError, match="running already"), lock.held(lake):
            raise AssertionError
    assert not lock.is_held(lake)
    seconds = lock.seconds_since_last(lake)
    assert seconds is not None
    assert 0 <= seconds < 60


# ------------------------------------------------------------------------------------------------- the audit log


@pytest.fixture
def runtime(lake: StorePlace) -> Runtime:
    found = Runtime(storage=str(lake))
    for number in range(1, 5):
        record(found, "deploy", model="flights", version=f"v{number}", note="ü")
    return found


def test_each_line_is_a_file_and_all_are_one_chain(runtime: Runtime, lake: StorePlace) -> None:
    found = list(entries(audit_file(runtime)))
    assert [(entry["number"], entry["version"], entry["details"]) for entry in found] == [
        (number, f"v{number}", {"note": "ü"}) for number in range(1, 5)
    ]
    assert [entry["before"] for entry in found] == [FIRST, *(entry["hash"] for entry in found[:-1])]
    assert [file.name for file in (lake / "audit").files()] == [f"{number:09d}.json" for number in range(1, 5)]
    chain = verify(audit_file(runtime), head=found[1]["hash"][:12])
    assert (chain.entries, chain.head) == (4, found[-1]["hash"])


def test_what_was_changed_taken_out_or_moved_is_told(runtime: Runtime) -> None:
    lines = sorted(audit_file(runtime).glob("*.json"))
    text = [line.read_text() for line in lines]
    lines[1].write_text(text[1].replace('"v2"', '"v9"'))
    with pytest.raises(RaymlpError, match="line 2 was changed after it was written"):
        verify(audit_file(runtime))
    lines[1].write_text(text[2])
    with pytest.raises(RaymlpError, match="line 2 does not follow"):
        verify(audit_file(runtime))
    lines[1].unlink()
    with pytest.raises(RaymlpError, match="line 2 does not follow"):
        verify(audit_file(runtime))
    lines[1].write_text(text[1])
    lines[3].unlink()
    with pytest.raises(RaymlpError, match="no line with the hash"):
        verify(audit_file(runtime), head=json.loads(text[3])["hash"])


def test_many_who_record_at_once_leave_one_chain(runtime: Runtime) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: record(runtime, "predict", model="m", version=str(number)), range(12)))
    found = list(entries(audit_file(runtime)))
    assert sorted(int(entry["version"]) for entry in found[4:]) == list(range(12))
    assert verify(audit_file(runtime)).entries == 16
