"""How the endpoint runs."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raymlp.config.access import LOOPBACK, Access
from raymlp.config.experiment import Experiment
from raymlp.config.fallback import Fallback
from raymlp.config.rollout import Rollout
from raymlp.config.scaling import PRESETS, Preset, Scaling
from raymlp.config.section import Section


class Log(Section):
    """The prediction log: one Parquet row a prediction."""

    max_rows: int = Field(default=50_000, ge=1)
    """Rows a replica holds before the oldest are dropped (and counted)."""

    flush_rows: int = Field(default=1_000, ge=1)
    """Rows that make a replica write a file."""

    flush_s: float = Field(default=2.0, gt=0)
    """Seconds after which waiting rows are written anyway. A process that is killed loses at most the rows of these seconds, and of the
    .2 s and the write after them."""

    sample: float = Field(default=1.0, gt=0, le=1)
    """Share of the predictions that is logged, in (0, 1], chosen by a hash of the prediction's id, failed ones too. Whether one is logged
    has nothing to do with version, key or answer, so what is compared stays fair and only takes longer."""


class Shadow(Section):
    """A version that gets a copy of the champion's requests; its answers are logged and never returned."""

    model: str = ""
    """`NAME@ALIAS` or `NAME/VERSION` in the registry, or the path of a bundle; empty has no shadow."""

    share: float = Field(default=0.1, gt=0, le=1)
    """Share of the champion's requests that are copied, in (0, 1]."""

    max_waiting: int = Field(default=256, ge=1)
    """Requests a replica holds for the shadow; more are dropped (and counted)."""


class Tls(Section):
    """A certificate for HTTPS: PEM files on the node where the ingress runs, the head."""

    certificate: str = Field(min_length=1)
    """The certificate, with its chain after it. What replaces it is read when the ingress starts or a replica comes or goes."""

    key: str = Field(min_length=1)
    """Its private key, without a password."""


class Serve(Access):
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
    """`key` asks for `Authorization: Bearer KEY`, keys come from RAYMLP_API_KEYS (comma separated, each for everything) and `keys_file`,
    tokens as `jwt` says; `none` is for loopback only."""

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

    tls: Tls | None = None
    """Serve HTTPS with this certificate; null serves HTTP."""

    placement: Literal["together", "apart"] = "together"
    """`together`: all versions live in each replica. `apart`: each version has a deployment of its own, with its own scaling and GPUs, for
    large models; a call to it costs milliseconds."""

    stand_in: Literal["champion", "none"] = "none"
    """Who answers for a version that stands apart and is away: the `champion`, named as such in the answer, or `none`: 503."""

    version_timeout_s: float = Field(default=30, gt=0)
    """Seconds after which a version that stands apart counts as away."""

    scaling: Preset = "steady"
    """How replicas come and go: `latency` (2 to 4, at the first sign of load), `steady` (1 to 2, under lasting load) or `cost` (0 to 4,
    none while nothing is asked). The settings below take the place of the preset's."""

    min_replicas: int | None = Field(default=None, ge=0)
    """Replicas that always run."""

    max_replicas: int | None = Field(default=None, ge=1)
    """Replicas that autoscaling may start."""

    target_ongoing_requests: float | None = Field(default=None, gt=0)
    """Requests in progress a replica that autoscaling aims for."""

    upscale_delay_s: float | None = Field(default=None, ge=0)
    """Seconds of load before a replica is added."""

    downscale_delay_s: float | None = Field(default=None, ge=0)
    """Seconds of calm before a replica is removed, the last one too."""

    max_ongoing_requests: int = Field(default=64, ge=1)
    """Requests a replica works on at once; more wait in the queue."""

    max_queued_requests: int = Field(default=512, ge=1)
    """Requests that may wait at a replica; beyond it the answer is 503 with Retry-After, at once."""

    cpus_per_replica: float = Field(default=0.5, ge=0)
    """CPUs reserved for each replica."""

    num_gpus_per_replica: float = Field(default=0, ge=0)
    """GPUs reserved for each replica that holds weights, whose nets then run there; a fraction lets replicas share one."""

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

    experiment: Experiment = Experiment()
    """Several versions compared on live traffic."""

    shadow: Shadow = Shadow()
    """A version that answers beside the champion, unseen."""

    @model_validator(mode="after")
    def _safe(self) -> Self:
        _ = self.replicas
        if self.runtime == "onnx" and self.num_gpus_per_replica:
            raise ValueError("runtime is onnx, which is for CPUs, with num_gpus_per_replica; expected torch or auto. Set one of them")
        if self.auth == "none" and self.host not in LOOPBACK:
            raise ValueError(f"host is {self.host} with auth=none; an endpoint beyond loopback needs auth=key")
        if self.auth == "none" and self.grpc_port is not None:
            raise ValueError(f"grpc_port is {self.grpc_port} with auth=none; gRPC listens beyond loopback and needs auth=key")
        if self.tls and self.grpc_port is not None:
            raise ValueError(
                f"grpc_port is {self.grpc_port} with tls, which covers HTTP alone; expected one of them. Unset grpc_port or tls"
            )
        if self.grpc_port == self.port:
            raise ValueError(f"grpc_port is {self.grpc_port}, as port; expected another one")
        return self

    @property
    def scheme(self) -> str:
        """Of the endpoint's address."""
        return "https" if self.tls else "http"

    @property
    def replicas(self) -> Scaling:
        """The preset with the settings that take its place."""
        preset = PRESETS[self.scaling].model_dump()
        given = {name: value for name in preset if (value := getattr(self, name, None)) is not None}
        return Scaling(**{**preset, **given})
