"""What the verbs say and do where `runtime.storage` is an address: plan, doctor, registry, retention of what is another's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raymlp
from raymlp import doctor, pipeline
from raymlp.config.registry import Registry
from raymlp.config.runtime import Runtime
from raymlp.config.schema import Config, Site
from raymlp.core.errors import DataError, RegistryError
from raymlp.lineage import recorded_bundle
from raymlp.registry.store import Store
from raymlp.runtime.audit import record
from raymlp.runtime.ports import free_port
from raymlp.runtime.store import StorePlace, place_of
from raymlp.runtime.tracking import tracked
from tests.serve.bundles import make_bundle

pytest.importorskip("obstore")


@pytest.fixture
def lake(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorePlace]:
    """An empty folder in the bucket, on a machine without copies."""
    filesystem, query = bucket
    monkeypatch.setenv("RAYMLP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts of a database that a setting names
    folder = place_of(f"s3://lake/results?{query}")
    assert isinstance(folder, StorePlace)
    yield folder
    filesystem.delete_dir_contents("lake")


def config_in(place: StorePlace, tmp_path: Path) -> Config:
    tracking = f"registry.tracking_uri=sqlite:///{tmp_path / 'mlflow.db'}"
    return raymlp.load_config("flights", [f"runtime.storage='{place}'", tracking, f"serve.port={free_port()}"])


def test_a_plan_asks_the_store(lake: StorePlace, tmp_path: Path) -> None:
    report = pipeline.plan(config_in(lake, tmp_path))
    assert report.problems == ()
    assert report.facts["storage"] == str(lake)
    absent = StorePlace("s3://none", "results", lake.query)
    assert any("is in a bucket that does not exist" in line for line in pipeline.plan(config_in(absent, tmp_path)).problems)


def test_a_node_that_sees_the_drivers_file_is_well_and_one_that_does_not_is_told(lake: StorePlace, tmp_path: Path) -> None:
    config = config_in(lake, tmp_path)
    with doctor._token(config) as token:
        assert doctor._storage_of(lake, token) == ""
        assert "does not show a file that the driver wrote" in doctor._storage_of(lake / "elsewhere", token)
    assert "cannot be read or written" in doctor._storage_of(StorePlace("s3://none", "x", lake.query), token)
    assert list(lake.files()) == []


def test_a_registered_bundle_is_brought_to_the_store_once_for_all_nodes(lake: StorePlace, tmp_path: Path) -> None:
    runtime, registry = Runtime(storage=str(lake)), Registry(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    made = make_bundle(lake / "runs" / "one" / "bundle", seed=1)
    with tracked("flights", "train", config_yaml="a: 1", seed=0, snapshot="s", registry=registry, runtime=runtime) as run:
        found = Store(registry, runtime).register("flights", made, run=run)
    assert found.bundle == lake / "bundles" / "flights" / "1"
    names = {file.name for file in lake.files() if file.parent == found.bundle}
    assert names == {file.name for file in made.glob("*")}
    predictor = raymlp.load_predictor(found.bundle)
    assert predictor.bundle.digest == raymlp.load_predictor(made).bundle.digest
    site = Site(registry=registry, runtime=runtime)
    assert recorded_bundle("flights/1", site) == found.bundle
    assert recorded_bundle("one", site) == made
    assert recorded_bundle(str(made), site) == made
    (found.bundle / "manifest.json").write_text((make_bundle(tmp_path / "other", seed=2) / "manifest.json").read_text())
    with pytest.raises(RegistryError, match=r"holds another bundle .* than version 1 of flights .* one registry for a storage"):
        Store(registry, runtime).get("flights/1")


def test_a_store_that_is_away_is_an_error_of_ours(lake: StorePlace) -> None:
    with pytest.raises(DataError, match=r"Set runtime\.storage or runtime\.snapshots, or the credentials"):
        (StorePlace("s3://none", "x", lake.query) / "y").write_text("1")
    with pytest.raises(DataError, match=r"s3://none/x/.* cannot be read or written"):
        (StorePlace("s3://none", "x", lake.query) / "y").write_if("1", None)
    with pytest.raises(DataError, match=r"s3://none/x/audit/.* cannot be read or written"):
        record(Runtime(storage=str(StorePlace("s3://none", "x", lake.query))), "deploy", model="m", version="v1")
