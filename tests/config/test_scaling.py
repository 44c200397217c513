from __future__ import annotations

import pytest
from pydantic import ValidationError

from raymlp.config.scaling import PRESETS
from raymlp.config.serve import Serve, Tls


def test_a_preset_is_taken_whole_and_single_settings_take_its_place() -> None:
    assert Serve().replicas == PRESETS["steady"]
    assert Serve(scaling="cost").replicas == PRESETS["cost"]
    changed = Serve(scaling="cost", min_replicas=1, downscale_delay_s=0).replicas
    assert changed == PRESETS["cost"].model_copy(update={"min_replicas": 1, "downscale_delay_s": 0.0})


def test_a_floor_above_the_ceiling_is_refused_whoever_set_it() -> None:
    with pytest.raises(ValidationError, match=r"min_replicas is 3; expected at most max_replicas \(2\)"):
        Serve(min_replicas=3)
    with pytest.raises(ValidationError, match=r"min_replicas is 2; expected at most max_replicas \(1\)"):
        Serve(scaling="latency", max_replicas=1)


def test_presets_differ_in_the_way_they_are_named() -> None:
    latency, steady, cost = (PRESETS[name] for name in ("latency", "steady", "cost"))
    assert latency.min_replicas > steady.min_replicas > cost.min_replicas == 0
    assert latency.target_ongoing_requests < steady.target_ongoing_requests < cost.target_ongoing_requests
    assert latency.upscale_delay_s < min(steady.upscale_delay_s, cost.upscale_delay_s)
    assert latency.downscale_delay_s > steady.downscale_delay_s > cost.downscale_delay_s


def test_what_tls_does_not_cover_is_refused() -> None:
    tls = Tls(certificate="a.pem", key="a.key")
    assert (Serve(tls=tls).scheme, Serve().scheme) == ("https", "http")
    with pytest.raises(ValidationError, match="grpc_port is 9000 with tls"):
        Serve(tls=tls, grpc_port=9000)
