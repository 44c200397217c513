"""From a model back to the files it was made from: version, bundle, run, code, config, snapshot, source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raymlp.config.loader import build_config
from raymlp.config.schema import Config, Site
from raymlp.core.errors import ConfigError, RegistryError
from raymlp.core.files import Place
from raymlp.core.records import Registration, Station
from raymlp.data import origin
from raymlp.data.place import snapshot_root
from raymlp.model.bundle import Bundle, load_bundle
from raymlp.registry.store import REFERENCE, Store
from raymlp.runtime.session import storage_root
from raymlp.runtime.store import MANIFEST, place_of
from raymlp.runtime.tracking import Recorded, code_version, recorded, tracking_uri


def recorded_bundle(reference: str, site: Site) -> Place:
    """The bundle behind a folder, `NAME@ALIAS`, `NAME/VERSION` or a run's id. Raises RegistryError when there is none."""
    found = _found(reference, site)
    return found.bundle if isinstance(found, Registration) else found


def recorded_config(text: str, site: Site) -> Config:
    """The config of a recorded run, with the present place of results. Raises ConfigError when this version cannot read it."""
    import yaml

    try:
        return build_config(yaml.safe_load(text)).model_copy(update={"registry": site.registry, "runtime": site.runtime})
    except ConfigError as error:
        raise ConfigError(f"the recorded config is not one of this version of raymlp: {error}") from None


def stations(reference: str, site: Site) -> Iterator[Station]:
    """Every station on the way, in order. Raises RegistryError, BundleError or ConfigError where the way ends."""
    found = _found(reference, site)
    if isinstance(found, Registration):
        yield Station("version", f"{found.name}/{found.version}", "same", ", ".join(found.aliases) or "no alias")
    path = found.bundle if isinstance(found, Registration) else found
    bundle = load_bundle(path)
    yield Station("bundle", f"{bundle.digest[:12]} in {path}", "same", "every file is what its manifest says")
    try:
        run: Recorded | None = recorded(bundle.run_id, registry=site.registry, runtime=site.runtime)
    except RegistryError:
        run = None
    yield from _run_stations(bundle, run, site)
    config = recorded_config(bundle.config_yaml, site)
    snapshot = origin.with_digest(snapshot_root(site.runtime) / config.problem.name, bundle.snapshot)
    if snapshot is None:
        place = snapshot_root(site.runtime) / config.problem.name
        yield Station("snapshot", bundle.snapshot[:12], "missing", f"not in {place}, or rewritten since, as `forget` does")
        return
    yield origin.snapshot_station(snapshot)
    yield from origin.source_stations(snapshot, config.data)


def _run_stations(bundle: Bundle, run: Recorded | None, site: Site) -> Iterator[Station]:
    if run is None:
        yield Station("run", bundle.run_id, "missing", f"not in {tracking_uri(site.registry, site.runtime)}")
        yield Station("config", f"{len(bundle.config_yaml.splitlines())} lines in the bundle", "unknown", "nothing to compare it with")
        return
    job = run.tags.get("raymlp.job", "a run")
    yield Station("run", run.id, "same", f"{job} of {run.started:%Y-%m-%d %H:%M} UTC, {run.status.lower()}")
    now = code_version()
    same = [run.tags.get(name) == now.get(name) for name in ("raymlp.version", "raymlp.commit")]
    commit = run.tags.get("raymlp.commit", "no git commit")
    there = f"now {now['raymlp.version']}, {now.get('raymlp.commit', 'no git commit')[:12]}"
    yield Station("code", f"raymlp {run.tags.get('raymlp.version', '?')}, {commit[:12]}", "same" if all(same) else "changed", there)
    lines = len(bundle.config_yaml.splitlines())
    state = "missing" if not run.config_yaml else "same" if run.config_yaml == bundle.config_yaml else "changed"
    yield Station("config", f"{lines} lines, seed {run.tags.get('raymlp.seed', '?')}", state, "the run's beside the bundle's")  # type: ignore[arg-type]


def _found(reference: str, site: Site) -> Registration | Place:
    if "://" in reference or Path(reference).is_dir():
        return place_of(reference)
    if REFERENCE.match(reference):
        return Store(site.registry, site.runtime).get(reference)
    bundle = storage_root(site.runtime) / "runs" / reference / "bundle"
    if (bundle / MANIFEST).is_file():
        return bundle
    run = recorded(reference, registry=site.registry, runtime=site.runtime)
    raise RegistryError(f"run {run.id} ({run.status.lower()}) has no bundle at {bundle}; expected one that ended with a model.")
