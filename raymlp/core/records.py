"""The small frozen records that pass between stages. Plain values only: they print, compare and serialise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from raymlp.core.files import Place

Task = Literal["binary", "multiclass", "regression", "clustering", "anomaly", "language"]
WITH_TARGET: tuple[Task, ...] = ("binary", "multiclass", "regression")


def needs_target(task: Task) -> bool:
    """Whether there is an answer to learn; the other tasks learn from the rows alone."""
    return task in WITH_TARGET


def has_classes(task: Task) -> bool:
    """Whether the answer is one of several classes."""
    return task in ("binary", "multiclass")


@dataclass(frozen=True)
class Decision:
    """What a policy says: an action, the reason in one sentence, and the facts it rests on."""

    action: str
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.action}: {self.reason}"


@dataclass(frozen=True)
class Snapshot:
    """An immutable data set: Parquet files by split, contract, profile, manifest. `notes` say what was noticed about it, `growth` what
    was read of a source that grew, and what taken over from an earlier snapshot."""

    path: Place
    digest: str
    rows: Mapping[str, int]
    quarantined: int = 0
    reused: bool = False
    notes: tuple[str, ...] = ()
    growth: str = ""


@dataclass(frozen=True)
class DataReport:
    """The page that shows what a snapshot holds."""

    snapshot: Snapshot
    report: Place


@dataclass(frozen=True)
class TrainedModel:
    """A finished training run: where its bundle is, and its metrics on the validation split."""

    bundle: Place
    metrics: Mapping[str, float]
    run_id: str


@dataclass(frozen=True)
class Interval:
    """A point estimate with a 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Spread:
    """A mean over several models, and the standard deviation among them."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.deviation:.4f}"


@dataclass(frozen=True)
class CrossValidation:
    """One model a fold. `metrics` are over the models, `out_of_fold` over all rows, each scored by the model that did not learn from
    it; `predictions` is the Parquet file of those scores."""

    models: tuple[TrainedModel, ...]
    metrics: Mapping[str, Spread]
    out_of_fold: Mapping[str, float]
    predictions: Place
    run_id: str


@dataclass(frozen=True)
class Found:
    """What a finder suggests, as an override, what it tried, one row each, and the files it left."""

    best: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    files: tuple[Place, ...]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one bundle and of the baselines on the same rows, and what the gate says of them.

    `metrics` maps metric to interval; `baselines` maps baseline to metric to interval.
    """

    split: str
    rows: int
    metrics: Mapping[str, Interval]
    baselines: Mapping[str, Mapping[str, Interval]]
    slices: tuple[Mapping[str, Any], ...]
    gate: Decision
    report: Place


@dataclass(frozen=True)
class Registration:
    """One version in the registry. `bundle` is where all nodes find the registered files."""

    name: str
    version: str
    bundle: Place
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Version:
    """A model version as the endpoint loads it: a label that appears in answers, and the bundle's path."""

    label: str
    bundle: str


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint. `weights` maps version label to its share of traffic; they sum to one."""

    name: str
    url: str
    weights: Mapping[str, float]
    log: Place


@dataclass(frozen=True)
class Finding:
    """One check of monitoring: a number with its sample size, threshold and verdict."""

    kind: Literal["feature drift", "prediction drift", "quality"]
    name: str
    statistic: str
    value: float
    threshold: float
    rows: int
    alert: bool
    note: str = ""


@dataclass(frozen=True)
class BatchPrediction:
    """Answers of a model for all rows of a source, as Parquet files in `output`. `quarantined` rows have none, for reasons that are told
    in `quarantine`; `suppressed` ones belong to people who were forgotten. `rows_per_s` is that of the chunks answered in this run,
    whose number is `chunks`; `resumed` were finished before, and with `reused` all of it was there already. `notes` say what was
    noticed."""

    output: str
    quarantine: str
    version: Version
    digest: str
    rows: int
    quarantined: int
    suppressed: int
    chunks: int
    resumed: int
    seconds: float
    rows_per_s: float
    notes: tuple[str, ...] = ()
    reused: bool = False


@dataclass(frozen=True)
class MonitorReport:
    """What one window of live traffic looks like beside training."""

    window: str
    rows: int
    labelled: int
    findings: tuple[Finding, ...]
    report: Place | None = None

    @property
    def alerts(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.alert)


@dataclass(frozen=True)
class TuneResult:
    """A study that ended: the best settings, as overrides and as the file `overlay`, by the first objective; the trials, best first;
    the numbers of those that no other beats in all objectives; the page about them."""

    best: tuple[str, ...]
    metric: str
    score: float
    trials: tuple[Mapping[str, Any], ...]
    pareto: tuple[int, ...]
    study: str
    overlay: Place
    report: Place


@dataclass(frozen=True)
class RetrainResult:
    """What the retrain policy decided and, if a model was trained, what the gate said of it."""

    decision: Decision
    gate: Decision | None = None
    model: TrainedModel | None = None
    registration: Registration | None = None


@dataclass(frozen=True)
class RolloutResult:
    """How a rollout ended (`promote`, `rollback`, or `pause` where only a person can say), after how many requests; the shares of traffic
    the challenger had, and the file of its record."""

    decision: Decision
    requests: int
    challenger_requests: int
    shares: tuple[float, ...]
    record: Place


@dataclass(frozen=True)
class PlanReport:
    """What a run would do: resolved facts, and problems that would stop it."""

    facts: Mapping[str, str]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class ForgetResult:
    """What was removed: rows by snapshot, rows of the prediction log, labels; the registered versions that were trained on the
    touched snapshots; and what was passed over. With `dry_run`, what would be."""

    snapshots: Mapping[str, int]
    log_rows: int
    labels: int
    models: tuple[str, ...]
    notes: tuple[str, ...]
    dry_run: bool


@dataclass(frozen=True)
class Compared:
    """One fact of a recorded run beside that of the same run made again."""

    name: str
    recorded: str
    again: str

    @property
    def same(self) -> bool:
        return self.recorded == self.again


@dataclass(frozen=True)
class Reproduction:
    """A recorded run made again. `facts` are the digests of the bundle's files and the metrics; `environment` has what may explain
    a difference: versions, processor, threads. `unrepeatable` has the settings of a run that cannot come out the same, with the reason."""

    run_id: str
    model: TrainedModel
    facts: tuple[Compared, ...]
    environment: tuple[Compared, ...]
    unrepeatable: tuple[str, ...] = ()

    @property
    def differences(self) -> tuple[Compared, ...]:
        return tuple(fact for fact in self.facts if not fact.same)


@dataclass(frozen=True)
class Trace:
    """The way from a model back to the files it was made from: what was recorded at each station, and what has become of it."""

    stations: tuple[Station, ...]

    @property
    def broken(self) -> tuple[Station, ...]:
        return tuple(station for station in self.stations if station.state in ("missing", "changed"))


@dataclass(frozen=True)
class Station:
    """One station of a trace. `state` says whether what is there now is what was recorded; `unknown` where nothing was recorded."""

    kind: Literal["version", "bundle", "run", "code", "config", "snapshot", "source"]
    recorded: str
    state: Literal["same", "changed", "missing", "unknown"]
    note: str = ""


@dataclass(frozen=True)
class RunSummary:
    """The whole life of a model: title, seconds and outcome of each step; where the results lie; when what happened."""

    steps: tuple[tuple[str, float, str], ...]
    places: Mapping[str, str]
    happened: tuple[tuple[str, str], ...]
    gate: Decision


def as_plain(record: Any) -> Any:
    """A record as plain dicts, lists and strings, ready for JSON."""
    return asdict(record)
