"""A bundle is tried where a crash harms nobody."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from raymlp.config.runtime import Runtime
from raymlp.core.errors import ServingError
from raymlp.core.records import Version
from raymlp.model.predictor import Predictor
from raymlp.serve.probe import in_own_process, probe
from tests.serve.bundles import make_bundle

pytestmark = pytest.mark.ray


def test_a_good_bundle_answers_with_its_digest(ray_runtime: Runtime, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", seed=1)
    assert probe(Version("1", str(bundle))).digest == Predictor.load(bundle).bundle.digest


def test_a_bundle_that_kills_its_process_is_refused(ray_runtime: Runtime) -> None:
    def die(_: str) -> str:
        os._exit(1)

    with pytest.raises(ServingError, match="poison crashed its process"):
        in_own_process(die, "", what="poison")()


def test_a_bundle_that_hangs_is_refused(ray_runtime: Runtime) -> None:
    def hang(_: str) -> str:
        time.sleep(600)
        return ""

    with pytest.raises(ServingError, match="tar gave no answer within 4 s"):
        in_own_process(hang, "", what="tar", timeout_s=4)()


def test_a_place_without_a_bundle_is_refused(ray_runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="is no bundle"):
        probe(Version("1", str(tmp_path / "absent")))
