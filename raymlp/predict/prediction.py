"""A batch prediction from start to end: what is asked, whether it can be done, the work, the budget, the output."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from raymlp.config.schema import Config
from raymlp.core.errors import ContractError
from raymlp.core.files import Place, digest_of
from raymlp.core.records import BatchPrediction, Version
from raymlp.data import parquet, sources
from raymlp.data.suppression import Suppressed
from raymlp.model.answers import names_of
from raymlp.model.bundle import Bundle, load_bundle
from raymlp.model.scorer import placed
from raymlp.predict.answers import require_apart
from raymlp.predict.job import DEVICE, Job, Tally, run
from raymlp.predict.output import FORMAT, QUARANTINE, Output, require_address
from raymlp.predict.rows import BYTES_ROWS, CHUNK_BYTES, Rows, rows_of, without_target
from raymlp.runtime.session import ray_session
from raymlp.runtime.store import remove

JUDGED_FROM = 1_000_000
"""Rows after which the share of bad ones is looked at, before the end."""


def predict(config: Config, version: Version, snapshots: Place, *, say: Callable[[str], None] = lambda _: None) -> BatchPrediction:
    """Answer every row of `config.data.source` by the bundle of `version`, into `config.predict.output`. Starts Ray
    where none runs.

    The same model, rows and settings are the same job: it goes on where an earlier run was cut off, and one that came to its end is found
    again. `snapshots` is where the list of people who were forgotten lies. `say` hears how far it is.

    Raises BundleError for a bundle that is not whole, ConfigError or DataError for what cannot be read or written, ContractError when
    more rows than `predict.max_bad_share` are bad; then nothing is published.
    """
    with ray_session(config.runtime) if config.data.source.kind == "kafka" else nullcontext():  # which reads its schema through Ray
        return _predict(config, version, snapshots, say)


def _predict(config: Config, version: Version, snapshots: Place, say: Callable[[str], None]) -> BatchPrediction:
    started, settings = time.perf_counter(), config.predict
    require_address(settings.output)
    bundle = load_bundle(version.bundle)
    target = bundle.plan.target
    data = without_target(config.data, target.column)
    say("looking at the source")
    parts = sources.parts_of(data.source)
    suppressed = Suppressed.load(snapshots / config.problem.name)
    rows, warnings = rows_of(config.problem, data, settings, bundle.contract, suppressed.sieve(), parts)
    placed(bundle.scorer, DEVICE[settings.gpus_per_worker > 0])
    require_apart(rows.kept, names_of(target.task, target.classes, settings.prefix))
    source = sources.fingerprint(data.source, parts)
    output = Output.at(settings.output, _key(config, rows, bundle, version, source, suppressed))
    notes = [*warnings, *suppressed.warnings(rows.types)]
    if getattr(data.source, "where", ()):
        notes.append("data.source.where leaves rows out: it is in the model's settings unless you set it")
    found = output.manifest()
    if found is not None and found.get("key") == output.key:
        return _result(output, version, bundle, found, None, 0.0, notes)
    output.require_free(overwrite=settings.overwrite)
    with output.alone(), ray_session(config.runtime):
        tally, done = Tally(len(parts)), output.finished()
        job = Job(rows, parts, version, bundle.digest, output, settings, parquet.key_of(data.privacy))
        say(f"starting, {len(done)} files finished before" if done else "starting")
        begun = time.perf_counter()

        def on_chunk(tally: Tally) -> None:
            seconds = time.perf_counter() - begun
            say(
                f"{tally.rows:,} rows, {tally.new_rows / seconds:,.0f} a second; {tally.finished_parts:,} of {tally.parts:,} parts; "
                f"{tally.bad:,} in quarantine"
            )
            if tally.rows + tally.bad >= JUDGED_FROM:
                _hold_budget(config, tally, output)

        run(job, tally, done, on_chunk=on_chunk)
        _hold_budget(config, tally, output)
        seconds = time.perf_counter() - begun
        manifest = {
            "model": {"name": bundle.name, "version": version.label, "digest": bundle.digest, "run_id": bundle.run_id},
            "source": source,
            "kept": rows.kept,
            "rows": tally.rows,
            "quarantined": tally.bad,
            "suppressed": tally.suppressed,
            "chunks": tally.done + tally.new_files,
            "files": tally.files,
            "seconds": round(time.perf_counter() - started, 2),
        }
        found = output.manifest()  # a process elsewhere may have published meanwhile: no lock spans a store
        if found is not None and found.get("key") == output.key:
            remove(output.working)
            return _result(output, version, bundle, found, None, 0.0, notes)
        output.require_free(overwrite=settings.overwrite)
        output.publish(manifest)
    notes += [f"{output.place.parent / name} holds unfinished work of other settings or another source" for name in output.others()]
    return _result(output, version, bundle, manifest, tally, seconds, notes)


def _key(config: Config, rows: Rows, bundle: Bundle, version: Version, source: list[dict[str, Any]], suppressed: Suppressed) -> str:
    """Digest of all that decides what is written, so that nothing of another model, source or setting is taken for finished."""
    data, settings = config.data, config.predict
    joined = [sources.fingerprint(join.source) for join, _ in rows.lookups]
    return digest_of(
        {
            "format": FORMAT,
            "model": [bundle.digest, version.label],
            "source": [source, data.source.model_dump(mode="json", exclude={"retry"})],
            "joined": [[join.model_dump(mode="json") for join, _ in rows.lookups], joined],
            "columns": [rows.contract.to_yaml(), rows.types, rows.kept, rows.absent, settings.prefix],
            "chunks": [settings.file_rows, data.batch_rows, CHUNK_BYTES, BYTES_ROWS],
            "sealed": data.privacy.encrypt_snapshots,
            "suppressed": suppressed.digest,
            "key": rows.key.check if rows.key is not None else None,
        }
    )


def _hold_budget(config: Config, tally: Tally, output: Output) -> None:
    """Raise ContractError when too many rows have no answer."""
    total, most = tally.rows + tally.bad, config.predict.max_bad_share
    if total and tally.bad / total > most:
        raise ContractError(
            f"{tally.bad:,} of {total:,} rows ({tally.bad / total:.1%}) have no answer; expected at most {most:.1%}. "
            f"The first: {tally.first}. All of them are in {output.working / QUARANTINE}. Mend the source, or raise "
            "predict.max_bad_share: finished files are kept."
        )


def _result(
    output: Output, version: Version, bundle: Bundle, manifest: dict[str, Any], tally: Tally | None, seconds: float, notes: list[str]
) -> BatchPrediction:
    """What came of it; without a tally it was there already."""
    new, done = (tally.new_files, tally.done) if tally else (0, manifest["chunks"])
    return BatchPrediction(
        output=str(output.place),
        quarantine=str(output.place / QUARANTINE),
        version=version,
        digest=bundle.digest,
        rows=manifest["rows"],
        quarantined=manifest["quarantined"],
        suppressed=manifest["suppressed"],
        chunks=new,
        resumed=done,
        seconds=round(seconds, 2),
        rows_per_s=tally.new_rows / seconds if tally and seconds else 0.0,
        notes=tuple(notes),
        reused=tally is None,
    )
