"""The shadow of an endpoint: given, taken away, compared with the champion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymlp.config.schema import Config
from raymlp.core.errors import ServingError
from raymlp.core.files import Place
from raymlp.pipeline.models import resolve
from raymlp.pipeline.serving import prediction_log
from raymlp.runtime.audit import record

if TYPE_CHECKING:
    from raymlp.serve.comparison import ShadowReport


def set_shadow(config: Config, model: str | Place = "", share: float | None = None) -> str:
    """Let a version (`serve.shadow.model` by default) answer copies of a share of the champion's requests, unseen; its label."""
    from raymlp.serve import shadowing

    settings, name = config.serve.shadow, config.problem.name
    if not (reference := str(model) or settings.model):
        raise ServingError("no version was named as the shadow; expected one. Set serve.shadow.model, or --model.")
    version, share = resolve(config, reference), settings.share if share is None else share
    shadowing.set_shadow(name, shadowing.shadow_of(version, share, max_waiting=settings.max_waiting))
    record(config.runtime, "shadow on", model=name, version=version.label, share=share)
    return version.label


def end_shadow(config: Config) -> None:
    """Take the shadow away; nothing happens when there is none."""
    from raymlp.serve import deploy as serving
    from raymlp.serve import shadowing

    if (shadow := serving.declared(config.problem.name).get("shadow")) is not None:
        shadowing.set_shadow(config.problem.name, None)
        record(config.runtime, "shadow off", model=config.problem.name, version=shadow["label"])


def shadow_report(config: Config) -> list[ShadowReport]:
    """What shadows answered beside the champions of the time, one report for each pair of versions; empty when nothing was logged."""
    from raymlp.model.bundle import load_bundle
    from raymlp.serve.application import shadow_folder
    from raymlp.serve.comparison import compare
    from raymlp.serve.log import read_log

    name = config.problem.name
    log, shadows = prediction_log(config), read_log(shadow_folder(config, name))
    found = []
    for report in compare(log, shadows, None, None):
        targets = [load_bundle(_bundle(config, label)).plan.target for label in (report.champion, report.shadow)]
        found += [one for one in compare(log, shadows, *targets) if (one.champion, one.shadow) == (report.champion, report.shadow)]
    return found


def _bundle(config: Config, label: str) -> str:
    """A version's bundle by its label in the log: a registered one (`v4`), or that which a running endpoint has under it."""
    from raymlp.serve import deploy as serving

    if label.startswith("v") and label[1:].isdigit():
        return resolve(config, f"{config.problem.name}/{label[1:]}").bundle
    wanted = serving.declared(config.problem.name)
    shadow = wanted.get("shadow") or {}
    paths = {**wanted["versions"], **({shadow["label"]: shadow["path"]} if shadow else {})}
    if label not in paths:
        raise ServingError(f"version {label} is neither registered nor on the endpoint; expected one of: {', '.join(paths)}. Register it.")
    return str(paths[label])
