"""How the endpoint runs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raymlp.config.fallback import Fallback
from raymlp.config.rollout import Rollout
from raymlp.config.section import Section


class Log(Section):
    """The prediction log: one Parquet row a prediction."""

    max_rows: int = Field(default=50_000, ge=1)
    """Rows a replica holds before the oldest are dropped (and counted)."""

    flush_rows: int = Field(default=1_000, ge=1)
    """Rows that make a replica write a file."""

    flush_s: float = Field(default=2.0, gt=0)
    """Seconds after which waiting rows are written anyway."""


class Serve(Section):
    """One Ray Serve application for a model name."""

    model: str = ""
    """`NAME@ALIAS` in the registry, or the path of a bundle; empty takes the problem's champion."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs keys."""

    port: int = Field(default=8000, ge=1, le=65535)
    """TCP port of the endpoint."""

    grpc_port: int | None = Field(default=None, ge=1, le=65535)
    """TCP port of the Open Inference Protocol's gRPC service; null has none. Ray Serve listens there on every address of the machine, so
    it needs `auth=key`."""

    auth: Literal["key", "none"] = "key"
    """`key` asks for `Authorization: Bearer KEY`, keys come from RAYMLP_API_KEYS (comma separated, each for everything) and `keys_file`;
    `none` is for loopback only."""

    keys_file: str | None = None
    """A file of keys with names, roles and an end, made by `raymlp keys add`, with mode 0600. Replicas follow its changes within
    seconds; on a cluster it lies where all nodes see it."""

    ingress: Literal["auto", "haproxy", "proxy"] = "auto"
    """`haproxy` is the fast path; `proxy` is Ray Serve's own; `auto` takes HAProxy where its binary is present."""

    runtime: Literal["torch", "onnx", "auto"] = "torch"
    """What nets run in. `torch` answers as offline, to the last bit for a row alone; `onnx` is several times quicker for a small net and
    differs by at most 1e-5 (needs raymlp[onnx]; a net that it cannot run is refused); `auto` takes onnx where it can be had and torch
    elsewhere, and logs why. Trees and clusters have their own."""

    batching: Literal["auto", "off"] = "auto"
    """`auto` lets rows of requests that come while others are being answered be predicted together, for a model that gains from it,
    as measured when it is loaded; `off` predicts each request on its own."""

    min_replicas: int = Field(default=1, ge=0)
    """Replicas that always run."""

    max_replicas: int = Field(default=2, ge=1)
    """Replicas that autoscaling may start."""

    target_ongoing_requests: float = Field(default=8, gt=0)
    """Requests in progress a replica that autoscaling aims for."""

    max_ongoing_requests: int = Field(default=64, ge=1)
    """Requests a replica works on at once; more wait in the queue."""

    max_queued_requests: int = Field(default=512, ge=1)
    """Requests that may wait; beyond it the answer is 503 with Retry-After."""

    upscale_delay_s: float = Field(default=3, ge=0)
    """Seconds of load before a replica is added."""

    downscale_delay_s: float = Field(default=60, ge=0)
    """Seconds of calm before a replica is removed."""

    cpus_per_replica: float = Field(default=0.5, ge=0)
    """CPUs reserved for each replica."""

    max_rows_per_request: int = Field(default=1_000, ge=1)
    """Rows a request may carry; more is refused with 422."""

    fallback: Fallback | None = None
    """What is answered, marked as such, when no version can: `{kind: rule}` is the rule that evaluation compares with, `{kind: constant,
    value: .5}` a number of your own; null answers 500 or 503."""

    keep: bool = False
    """Leave the endpoint running after `raymlp run` until Ctrl-C."""

    log: Log = Log()
    """The prediction log."""

    rollout: Rollout = Rollout()
    """Moving traffic to a challenger."""

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas is {self.min_replicas}; expected at most max_replicas ({self.max_replicas})")
        if self.auth == "none" and self.host not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError(f"host is {self.host} with auth=none; an endpoint beyond loopback needs auth=key")
        if self.auth == "none" and self.grpc_port is not None:
            raise ValueError(f"grpc_port is {self.grpc_port} with auth=none; gRPC listens beyond loopback and needs auth=key")
        if self.grpc_port == self.port:
            raise ValueError(f"grpc_port is {self.grpc_port}, as port; expected another one")
        return self
