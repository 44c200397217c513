"""Preflight: resolve, check and estimate in about two seconds, without Ray and without reading the rows."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from raymlp.config.schema import Config
from raymlp.config.strategy import Auto, DeepSpeed
from raymlp.config.train import Train
from raymlp.config.trees import Trees
from raymlp.config.unsupervised import IsolationForest, KMeans
from raymlp.core.errors import ConfigError, RaymlpError, nearest
from raymlp.core.records import PlanReport
from raymlp.data.place import require_store, snapshot_root
from raymlp.runtime.copies import VARIABLE as CACHE
from raymlp.runtime.copies import cache_folder, own_folder
from raymlp.runtime.session import storage_root
from raymlp.runtime.store import StorePlace, require_conditions
from raymlp.train.choice import foretold
from raymlp.train.support import refusals, unused

GROWTH = 3
"""Free disk asked for, as a multiple of the source files."""


def preflight(config: Config) -> PlanReport:
    """Facts of what a run would do, and every problem that would stop it."""
    facts: dict[str, str] = {}
    problems: list[str] = []
    for check in (_data, _own_steps, _model, _storage, _training, _tuning, _serving):
        try:
            facts.update(check(config, problems.append))
        except RaymlpError as error:
            problems.append(str(error))
    return PlanReport(facts, tuple(problems))


Say = Callable[[str], None]


def _data(config: Config, problem: Say) -> dict[str, str]:
    from raymlp.data import snapshot, sources, staging, suppression

    data = snapshot.reachable(config.data)
    parts = sources.parts_of(data.source)
    columns = staging.columns_of(config.problem, data)
    suppression.Suppressed.load(snapshot_root(config.runtime) / config.problem.name).sieve()
    named = {
        "features.numeric": config.features.numeric or (),
        "features.categorical": config.features.categorical or (),
        "features.dates": tuple(config.features.dates or ()),
        "features.text": config.features.text,
        "features.image": () if config.features.image is None else (config.features.image,),
        "features.drop": config.features.drop,
        "features.steps": tuple(name for target in config.features.steps for name in target.columns),
    }
    for key, names in named.items():
        for name in names:
            if name not in columns:
                problem(f"{key} names '{name}', which the data does not have.{nearest(name, columns)} Set {key}.")
    size = sum({part.path: part.size for part in parts}.values())
    place = snapshot_root(config.runtime)
    if isinstance(place, Path) and (free := shutil.disk_usage(_existing(place)).free) < GROWTH * size:
        problem(f"{free / 1e9:.1f} GB are free at {place}; expected {GROWTH} times the source, {GROWTH * size / 1e9:.1f} GB.")
    target = config.problem
    on = f" on '{target.target}'" if target.target else f", no target{f', known anomalies in {target.label!r}' if target.label else ''}"
    kinds = ", ".join(f"{sum(kind == k for k in columns.values())} {kind}" for kind in dict.fromkeys(columns.values()))
    return {
        "problem": f"{target.name}: {target.task}{on}, judged by {target.main_metric}",
        "source": f"{len(parts)} part{'s' * (len(parts) != 1)}, {size / 1e6:,.1f} MB, {len(config.data.joins)} joins"
        + (f"; the fallback {data.source.name}, since {config.data.source.name} is unavailable" if data != config.data else ""),
        "columns": f"{len(columns)} ({kinds})",
        "split": " ".join(f"{key}={value}" for key, value in config.data.split.model_dump(mode="json", exclude_none=True).items()),
    }


def _own_steps(config: Config, problem: Say) -> dict[str, str]:
    """Steps of the user's own: whether they are there, and whether the endpoint may run them."""
    if not config.features.steps:
        return {}
    from raymlp.core.trust import TRUSTED, path_of, serves
    from raymlp.features.custom import made

    for i, target in enumerate(config.features.steps):
        try:
            path = path_of(type(made(target, f"features.steps.{i}")))
        except ConfigError as error:
            problem(str(error))
            continue
        if not serves(path):
            problem(
                f"features.steps.{i} runs {path}, which the endpoint would refuse; expected its module in {TRUSTED}. "
                f"Set {TRUSTED}={path.partition('.')[0]}."
            )
    return {"own steps": ", ".join(target.target for target in config.features.steps)}


def _model(config: Config, problem: Say) -> dict[str, str]:
    """Whether the model's package, or a net of the user's own, is there, goes with the recipe, and whether the endpoint may run it."""
    from raymlp.config.model import Own
    from raymlp.core.trust import TRUSTED, serves
    from raymlp.model.nets import require

    require(config.model)
    if not isinstance(config.model, Own):
        return {}
    from raymlp.model.own import class_of

    path, kind = config.model.target, class_of(config.model)
    if hasattr(kind, "training_step"):
        from raymlp.train.own import refuse_hooks

        refuse_hooks(kind, config.train)
    if not serves(path):
        problem(
            f"model._target_ is {path}, which the endpoint would refuse; expected its module in {TRUSTED}. "
            f"Set {TRUSTED}={path.partition('.')[0]}."
        )
    return {"own net": path}


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _storage(config: Config, problem: Say) -> dict[str, str]:
    root = storage_root(config.runtime)
    require_store(root)
    if isinstance(root, StorePlace):
        require_conditions(root)
    for folder in (own_folder(root), *((cache_folder(),) if isinstance(root, StorePlace) else ())):
        if not os.access(_existing(folder), os.W_OK):
            problem(f"{folder} cannot be written; expected a writable place. Set runtime.storage or {CACHE}.")
    place = snapshot_root(config.runtime)
    require_store(place)
    return {"storage": str(root)} | ({"snapshots": str(place)} if config.runtime.snapshots else {})


def _training(config: Config, problem: Say) -> dict[str, str]:
    train = config.train
    for line in refusals(config):
        problem(line)
    encodings = {config.features.rules(name).text_encoding for name in config.features.text}
    for encoding, library in {"subword": "tokenizers", "pretrained": "transformers"}.items():
        if encoding in encodings and importlib.util.find_spec(library) is None:
            raise ConfigError(f"features.text_encoding is {encoding}, which needs {library}. Run: pip install 'raymlp[text]'.")
    asked = train.num_workers * train.cpus_per_worker
    offered = _local_cpus(config)
    where = config.runtime.address or os.environ.get("RAY_ADDRESS")
    if not where and asked > offered:
        problem(
            f"training asks for {train.num_workers} workers x {train.cpus_per_worker:g} CPUs = {asked:g}, the local Ray offers {offered}; "
            "expected no more. Set train.num_workers or runtime.num_cpus."
        )
    workers = f"{train.num_workers} worker{'s' * (train.num_workers != 1)}"
    strategy = train.strategy
    detail = (
        f" stage {strategy.stage}" if isinstance(strategy, DeepSpeed) else f" ({foretold(train)})" if isinstance(strategy, Auto) else ""
    )
    rows = train.batch_size * train.accumulate * train.num_workers
    how = f"{strategy.kind}{detail}, {workers}, precision {_precision(train)}, {rows:,} rows a step"
    if isinstance(config.model, Trees):
        how = f"{workers}, {config.model.rounds_per_epoch} rounds an epoch"
    ignored = unused(config)
    length = f"at most {train.epochs} epochs"
    if isinstance(config.model, KMeans | IsolationForest):
        how = f"{workers}, by scikit-learn on at most {config.model.sample_rows:,} evenly spaced training rows"
        length = "in one go"
    return {
        "training": f"{config.model.kind}, {how}, {length}",
        **({"not used": ignored} if ignored else {}),
        "ray": f"cluster at {where}" if where else f"local, {offered} CPUs",
    }


def _precision(train: Train) -> str:
    """The precision and what it means under the strategy."""
    if train.precision == "32":
        return "32"
    if not isinstance(train.strategy, DeepSpeed):
        return f"{train.precision} (autocast)"
    return f"{train.precision} (pure half{', with loss scaling' if train.precision == '16' else ''}, and a copy in 32 for the optimizer)"


def _local_cpus(config: Config) -> int:
    return config.runtime.num_cpus or max(4, os.cpu_count() or 1)


def _tuning(config: Config, problem: Say) -> dict[str, str]:
    """Whether `raymlp tune` could run. A space that the model does not have stops that verb alone, so it is told and is no problem."""
    from raymlp.tune import checks, portfolio

    here = not (config.runtime.address or os.environ.get("RAY_ADDRESS"))
    sums = ""
    if here:
        offered = {"CPU": float(_local_cpus(config)), "GPU": float(config.train.num_workers)}  # how many GPUs there are, Ray finds out
        sums = f"; {checks.at_a_time(config, offered)[1]}"
    try:
        chosen, notes = portfolio.resolved(config)
        checks.check(chosen)
    except ConfigError as error:
        return {"tuning": f"would be refused: {error}"}
    settings = chosen.tune
    size = f"{settings.limit} trials" if settings.limit else "the whole grid" if settings.searcher.kind == "grid" else "as many as fit"
    time = f" in {settings.minutes:g} minutes" if settings.minutes else ""
    return {"tuning": "; ".join([f"{settings.searcher.kind} over {', '.join(settings.space)}: {size}{time}{sums}", *notes])}


def _serving(config: Config, problem: Say) -> dict[str, str]:
    serve = config.serve
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((serve.host, serve.port))
        except OSError as error:
            problem(f"{serve.host}:{serve.port} cannot be used ({error.strerror}); expected a free port. Set serve.port.")
    url = f"{serve.scheme}://{serve.host}:{serve.port}/v1/models/{config.problem.name}:predict"
    return {"endpoint": f"{url}, {serve.replicas.min_replicas} to {serve.replicas.max_replicas} replicas"}
