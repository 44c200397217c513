"""A model that is there: judged, registered, found by its name, and asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raymlp.config.loader import load_config, load_site
from raymlp.config.schema import Config
from raymlp.core.errors import GateRefused
from raymlp.core.files import Place
from raymlp.core.records import (
    BatchPrediction,
    Decision,
    Evaluation,
    Registration,
    Snapshot,
    Version,
)
from raymlp.data.place import snapshot_root
from raymlp.pipeline.data import prepare
from raymlp.runtime.audit import record
from raymlp.runtime.progress import SilentStory, Story
from raymlp.runtime.session import storage_root
from raymlp.runtime.store import place_of

if TYPE_CHECKING:
    from raymlp.model.predictor import Predictor
    from raymlp.registry.store import Store


def evaluate(config: Config, bundle: str | Place, *, snapshot: Snapshot | None = None, story: Story | None = None) -> Evaluation:
    """Judge a bundle beside the baselines on the same rows; report and metrics join the run that made it."""
    from raymlp.evaluate import evaluation
    from raymlp.model.bundle import load_bundle
    from raymlp.runtime.tracking import existing

    snapshot = snapshot or prepare(config, story=story)
    with (story or SilentStory()).step("evaluate") as step:
        step.say("baselines and intervals")
        place = place_of(bundle)
        run_id = load_bundle(place).run_id
        result = evaluation.evaluate(config, snapshot, place, report_dir=storage_root(config.runtime) / "runs" / run_id)
        run = existing(run_id, registry=config.registry, runtime=config.runtime)
        run.metrics({f"evaluation_{name}": interval.value for name, interval in result.metrics.items()})
        run.file(result.report)
        run.tag("raymlp.gate", str(result.gate))
        name = config.problem.main_metric
        beside = ", ".join(f"{other} {scores[name].value:.4f}" for other, scores in result.baselines.items())
        step.result(f"{name} {result.metrics[name]} beside {beside}")
        step.note(f"gate {result.gate}")
    return result


def register(config: Config, bundle: str | Place, *, aliases: tuple[str, ...] | None = None, story: Story | None = None) -> Registration:
    """Add a bundle to the registry as a new version. Its aliases are those given, or else what promotion says:
    `champion` where there is none, `challenger` beside one."""
    from raymlp.model.bundle import load_bundle
    from raymlp.registry import promotion
    from raymlp.runtime.tracking import existing

    with (story or SilentStory()).step("register") as step:
        store, name = store_of(config), config.problem.name
        run = existing(load_bundle(bundle).run_id, registry=config.registry, runtime=config.runtime)
        registration = store.register(name, place_of(bundle), run=run)
        version = registration.version
        changes = promotion.decide("register", version, store.aliases(name))[1] if aliases is None else dict.fromkeys(aliases, version)
        store.set_aliases(name, changes)
        registration = store.get(f"{name}/{version}")
        record(config.runtime, "register", model=name, version=f"v{version}", aliases=dict(changes), run=load_bundle(bundle).run_id)
        step.result(f"{name} version {version} as {', '.join(registration.aliases) or 'no alias'}")
    return registration


def is_bundle(model: str | Place) -> bool:
    """Whether a model is named by a folder or an address, and not by the registry."""
    return "://" in str(model) or Path(str(model)).is_dir()


def resolve(config: Config, model: str | Place = "") -> Version:
    """The version behind a bundle's path or address, a registry reference, or nothing (the problem's champion)."""
    reference = str(model) or f"{config.problem.name}@champion"
    if is_bundle(reference):
        from raymlp.model.bundle import local, verify

        place = place_of(reference)
        return Version(verify(local(place))["digest"][:12], str(place.resolve() if isinstance(place, Path) else place))
    found = store_of(config).get(reference)
    return as_version(found)


def as_version(registration: Registration) -> Version:
    """A registered version as the endpoint names it: `v7`."""
    return Version(f"v{registration.version}", str(registration.bundle))


def load_predictor(reference: str | Place, *, config: Config | None = None) -> Predictor:
    """The predictor of a bundle path or of `models:/name@alias`. A reference is looked up in the registry of `config`,
    or of the default storage folder."""
    from raymlp.config.registry import Registry
    from raymlp.config.runtime import Runtime
    from raymlp.model.predictor import Predictor
    from raymlp.registry.store import Store

    if is_bundle(reference):
        return Predictor.load(str(reference))
    store = store_of(config) if config else Store(Registry(), Runtime())
    return Predictor.load(store.get(str(reference)).bundle)


def predict(config: Config, model: str | Place = "", *, story: Story | None = None) -> BatchPrediction:
    """Answer every row of `data.source` by a bundle, `NAME@ALIAS` or `NAME/VERSION` (the problem's champion by default), into Parquet files
    at `predict.output`. A job that was cut off goes on when it is given again. `config_of` has the config that suits a model."""
    from raymlp.predict import prediction

    with (story or SilentStory()).step("predict") as step:
        try:
            result = prediction.predict(config, resolve(config, model), snapshot_root(config.runtime), say=step.say)
        except (KeyboardInterrupt, SystemExit):
            step.note("finished files are kept: the same command goes on from here")
            raise
        if not result.reused:
            facts = {"rows": result.rows, "output": result.output.partition("?")[0]}
            record(config.runtime, "predict", model=config.problem.name, version=result.version.label, **facts)
        speed = f", {result.rows_per_s:,.0f} a second" if result.chunks else ""
        before = f"; {result.resumed:,} of {result.chunks + result.resumed:,} files were finished before" if result.resumed else ""
        before = "; all of it was there" if result.reused else before
        step.result(f"{result.rows:,} rows by {result.version.label}{speed}; {result.quarantined:,} in quarantine{before}")
        for note in result.notes:
            step.note(note)
    return result


def config_of(model: str | Place, overrides: Sequence[str] = ()) -> Config:
    """The config to predict with a model: problem, data and model as its bundle records them, where the overrides choose no others, and
    Hydra overrides as `data.source.path=new.csv predict.output=scores`. Raises RegistryError, BundleError or ConfigError."""
    import yaml

    from raymlp.model.bundle import load_bundle
    from raymlp.registry.store import Store

    bundle: Place
    if is_bundle(model):
        bundle = place_of(str(model))
    else:
        site = load_site([word for word in overrides if word.startswith(("runtime.", "registry."))])
        bundle = Store(site.registry, site.runtime).get(str(model)).bundle
    recorded = yaml.safe_load(load_bundle(bundle).config_yaml) or {}
    return load_config(overrides=overrides, base={name: recorded[name] for name in ("problem", "data", "model") if name in recorded})


def require(gate: Decision) -> None:
    """Raise GateRefused unless the gate passed."""
    if gate.action != "pass":
        raise GateRefused(f"the gate refused the model: {gate.reason}. Look at the report, then at evaluate.gate.")


def store_of(config: Config) -> Store:
    from raymlp.registry.store import Store

    return Store(config.registry, config.runtime)
