"""A study in a store that speaks the S3 protocol: one file a trial, one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raymlp.config.runtime import Runtime
from raymlp.config.tune import Choice, LogUniform
from raymlp.core.errors import ConfigError, RaymlpError
from raymlp.runtime.store import StorePlace, place_of
from raymlp.tune.conclusion import conclude
from raymlp.tune.search import search
from raymlp.tune.study import Study, earlier
from tests.tune.studies import bowl, ended, tuned

pytest.importorskip("obstore")
SPACE = {"train.learning_rate": LogUniform(low=1e-4, high=1e-1)}


@pytest.fixture
def root(bucket: Any) -> Iterator[StorePlace]:
    """An empty folder in the bucket."""
    filesystem, query = bucket
    folder = place_of(f"s3://lake/tune?{query}")
    assert isinstance(folder, StorePlace)
    yield folder
    filesystem.delete_dir_contents("lake")


def test_trials_are_kept_each_and_one_process_holds_the_study(root: StorePlace) -> None:
    config = tuned(SPACE, study="one", num_samples=3)
    trials = [ended(number, {"train.learning_rate": 10.0**-number}, float(number)) for number in (2, 1)]
    with Study.open(config, root=root, snapshot="s") as study:
        assert not study.resumed
        for trial in trials:
            study.add(trial)
        with pytest.raises(RaymlpError, match="is in the hands of another process"), Study.open(config, root=root, snapshot="s"):
            raise AssertionError
    with Study.open(config, root=root, snapshot="s") as study:
        assert study.resumed
        assert study.trials == [trials[1], trials[0]]
    assert [file.name for file in (root / "one" / "trials").files()] == ["000001.json", "000002.json"]
    with pytest.raises(ConfigError, match="the snapshot was another"), Study.open(config, root=root, snapshot="other"):
        raise AssertionError
    told, points = earlier(tuned(SPACE, study="two", warm_start=("one",)), root=root, snapshot="s")
    assert (told, [point["train.learning_rate"] for point in points]) == ([], [0.1, 0.01])


@pytest.mark.ray
def test_a_study_in_a_store_is_the_one_on_a_disk_and_leaves_its_record_alone(
    ray_runtime: Runtime, root: StorePlace, tmp_path: Path
) -> None:
    space = {"train.learning_rate": Choice(values=(0.01, 0.1)), "train.weight_decay": Choice(values=(0.0, 0.1))}
    settings: dict[str, Any] = {"num_samples": 4, "epochs": 3, "study": "one", "max_concurrent": 2}
    local = search(tuned(space, **settings), bowl(), root=tmp_path, snapshot="s")
    found = search(tuned(space, **settings), bowl(), root=root, snapshot="s")
    assert [(trial.number, trial.draw, trial.values) for trial in found.trials] == [
        (trial.number, trial.draw, trial.values) for trial in local.trials
    ]
    result = conclude(found)
    assert result.best == conclude(local).best
    assert result.overlay.read_text() == (tmp_path / "one" / "best.yaml").read_text()
    names = {str(file.relative_to(root / "one")) for file in root.files()}
    assert names == {".claim.json", "best.yaml", "study.html", "study.json", *(f"trials/{number:06d}.json" for number in range(4))}
