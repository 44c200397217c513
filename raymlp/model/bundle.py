"""The bundle: a model on disk, complete and free of code. JSON, YAML and safetensors under a manifest of SHA-256.

manifest.json      format, name, run id, digest over all, SHA-256 and size of each file
the scorer's files   see `raymlp.model.scorer`
plan.json  contract.yaml  calibration.json
profile.json       training columns and validation predictions, the baseline of drift
metrics.json  config.yaml  card.md  environment.json (versions, processor and threads of the process that trained)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raymlp.core.errors import BundleError
from raymlp.core.files import Place, Somewhere, digest_of, sha256_file, to_json
from raymlp.data.contract import Contract
from raymlp.data.profile import Profile
from raymlp.data.target import Target
from raymlp.features.plan import FeaturePlan
from raymlp.model.calibration import Calibration
from raymlp.model.scorer import Scorer, load_scorer
from raymlp.runtime.copies import filled, local_copy
from raymlp.runtime.store import MANIFEST, place_of

FORMAT = 2
ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class Bundle:
    """Everything a model is. `contract` covers the columns the plan reads, so it is the schema of a request."""

    name: str
    run_id: str
    scorer: Scorer
    plan: FeaturePlan
    contract: Contract
    calibration: Calibration
    profile: Profile
    predictions: Profile
    metrics: Mapping[str, float]
    config_yaml: str
    snapshot: str
    environment: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    digest: str = ""


def save_bundle(bundle: Bundle, folder: Somewhere) -> Somewhere:
    """Write a bundle to a folder that does not exist yet, on a disk or in a store; seen only when it is complete."""
    if folder.exists() if isinstance(folder, Path) else (folder / MANIFEST).exists():
        raise BundleError(f"{folder} exists; expected a new place for the bundle.")
    texts = {
        "plan.json": bundle.plan.model_dump_json(indent=2),
        "contract.yaml": bundle.contract.to_yaml(),
        "calibration.json": bundle.calibration.model_dump_json(indent=2),
        "profile.json": to_json({"columns": bundle.profile.to_dict(), "predictions": bundle.predictions.to_dict()}, indent=None),
        "metrics.json": to_json(dict(bundle.metrics)),
        "config.yaml": bundle.config_yaml,
        "card.md": card(bundle),
        ENVIRONMENT: to_json(dict(bundle.environment)),
    }
    with filled(folder) as aside:
        for name, text in texts.items():
            (aside / name).write_text(text)
        bundle.scorer.save(aside)
        files = {path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in sorted(aside.iterdir())}
        manifest = {
            "format": FORMAT,
            "name": bundle.name,
            "run_id": bundle.run_id,
            "snapshot": bundle.snapshot,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": files,
            "digest": digest_of(files),
        }
        (aside / MANIFEST).write_text(to_json(manifest))
    return folder


def local(bundle: str | Place) -> Path:
    """The folder of a bundle on this machine: itself, or a verified copy of one in a store. Raises BundleError when there is none."""
    place = place_of(bundle)
    try:
        return local_copy(place, check=verify)
    except FileNotFoundError as error:
        raise BundleError(f"{place} is no bundle: {MANIFEST} cannot be read ({error}).") from None


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, after every file was found unchanged. Raises BundleError naming the file otherwise."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} is no bundle: {MANIFEST} cannot be read ({error}).") from None
    if manifest.get("format") != FORMAT:
        raise BundleError(f"{folder} has bundle format {manifest.get('format')}; expected {FORMAT}. Use the raymlp that wrote it.")
    files = manifest.get("files", {})
    if manifest.get("digest") != digest_of(files):
        raise BundleError(f"{folder}/{MANIFEST} was changed after it was written: its digest does not fit. Do not use this bundle.")
    for name, facts in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise BundleError(f"{path} is missing; expected the file listed in {MANIFEST}.")
        if sha256_file(path) != facts["sha256"]:
            raise BundleError(f"{path} was changed after it was written: its SHA-256 does not fit. Do not use this bundle.")
    extra = sorted(path.name for path in folder.iterdir() if path.name not in files and path.name != MANIFEST)
    if extra:
        raise BundleError(f"{folder / extra[0]} is not listed in {MANIFEST}; expected no other file in a bundle.")
    return manifest


def load_bundle(bundle: str | Place, *, with_scorer: bool = True) -> Bundle:
    """Read and verify a bundle in a folder or a store. Runs no code from it. Raises BundleError when it is not whole. Without its scorer
    it takes little memory and scores nothing."""
    folder = local(bundle)
    manifest = verify(folder)
    profiles = json.loads((folder / "profile.json").read_text())
    plan = FeaturePlan.from_json((folder / "plan.json").read_text())
    return Bundle(
        name=manifest["name"],
        run_id=manifest["run_id"],
        scorer=load_scorer(folder, plan) if with_scorer else Elsewhere(),
        plan=plan,
        contract=Contract.from_yaml((folder / "contract.yaml").read_text(), source=str(folder / "contract.yaml")),
        calibration=Calibration.model_validate_json((folder / "calibration.json").read_text()),
        profile=Profile.from_dict(profiles["columns"]),
        predictions=Profile.from_dict(profiles["predictions"]),
        metrics={name: math.nan if value is None else value for name, value in json.loads((folder / "metrics.json").read_text()).items()},
        config_yaml=(folder / "config.yaml").read_text(),
        snapshot=manifest["snapshot"],
        environment=environment_of(folder),
        path=folder,
        digest=manifest["digest"],
    )


class Elsewhere:
    """In the place of a scorer that was not loaded."""

    def __call__(self, tensors: Mapping[str, Any]) -> Any:
        raise BundleError("the bundle was read without its scorer, which runs elsewhere; expected one that was loaded whole.")

    def save(self, folder: Path) -> None:
        raise BundleError("the bundle was read without its scorer, which runs elsewhere; expected one that was loaded whole.")


def environment_of(folder: Path) -> dict[str, str]:
    """Where a bundle was trained; empty for one that an older version wrote."""
    file = folder / ENVIRONMENT
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def card(bundle: Bundle) -> str:
    """The model card: what the model is for, what it was trained on, how good it is (Mitchell et al. 2019)."""
    target = bundle.plan.target
    shown = {name: value for name, value in sorted(bundle.metrics.items()) if name != "delta" and math.isfinite(value)}
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in shown.items())
    inputs = "\n".join(f"- `{name}`: {bundle.contract.describe(name)}" for name in bundle.plan.inputs)
    return (
        f"# {bundle.name}\n\n{_purpose(target, bundle.calibration)} "
        f"Run `{bundle.run_id}`, snapshot `{bundle.snapshot[:12]}`.\n\n"
        f"## Validation metrics\n\n| metric | value |\n|---|---|\n{metrics}\n\n## Inputs\n\n{inputs}\n\n"
        f"## Training data\n\n{bundle.profile.rows:,} rows{_sampled(bundle)}. Use outside the ranges above has not been measured.\n"
        + _privacy(bundle)
    )


def _purpose(target: Target, calibration: Calibration) -> str:
    """What the model answers, in a sentence."""
    if target.task == "clustering":
        return "Gives the cluster of a row and its distance to the cluster's centre. No answer was learned."
    if target.task == "language":
        return "Tells how likely a text is, token by token. No answer was learned."
    if target.task == "anomaly":
        judge = f", which `{target.column}` ({target.classes[1]}) judges" if target.column else ""
        return f"Gives an anomaly score, higher for what is more unusual, and flags rows from {calibration.threshold:.4g} on{judge}."
    return f"Predicts `{target.column}` ({target.task}{', positive: ' + target.classes[1] if target.task == 'binary' else ''})."


def _sampled(bundle: Bundle) -> str:
    rows = bundle.metrics.get("sampled_rows")
    return "" if rows is None else f", of which {rows:,.0f} evenly spaced ones were learned from; the feature plan knows all"


def _privacy(bundle: Bundle) -> str:
    """What is promised to those whose rows were learned from, and what is not."""
    if "epsilon" not in bundle.metrics:
        return ""
    return (
        f"\n## Privacy\n\nThe weights are ({bundle.metrics['epsilon']:.3g}, {bundle.metrics['delta']:.2g})-differentially private for each "
        "training row (DP-SGD with Poisson sampling, Renyi accountant, one row added or removed). Not covered: the number of rows, "
        "the feature plan and the profile in this bundle, which are exact statistics of the training rows, and the validation rows, "
        "which chose the epoch and the calibration.\n"
    )
