"""What makes two starts the same run: the settings and the data that its numbers follow from, kept beside its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from raymlp.config.schema import Config
from raymlp.core.errors import TrainingError
from raymlp.core.files import Place, to_json, write_text

FILE = "run.json"
SECTIONS = ("problem", "features", "model", "train")
FREE = (
    "train.name", "train.resume", "train.max_failures", "train.checkpoint", "train.finder", "train.peak_tflops",
    "train.stopping.patience", "train.stopping.min_delta",
)  # fmt: skip
"""Settings that may change between a checkpoint and the run that goes on from it."""
SHOWN = 5


def identity(config: Config, snapshot: str, *, shuffle_labels: bool = False) -> dict[str, Any]:
    """Settings by dotted key, and the digest of the snapshot. With `train.elastic`, the number of workers may change as well."""
    plain = config.model_dump(mode="json", include=set(SECTIONS))
    free = FREE + (("train.num_workers", "train.elastic") if config.train.elastic else ())
    settings = {key: value for key, value in _flat(plain) if not any(key == name or key.startswith(f"{name}.") for name in free)}
    return {**settings, "snapshot": snapshot, "shuffle_labels": shuffle_labels}


def require_same(run_dir: Place, now: Mapping[str, Any]) -> None:
    """Write down what the run is at its first start. Raises TrainingError at a later one that names what differs."""
    place = run_dir / FILE
    if not place.exists():
        write_text(place, to_json(dict(now)))
        return
    before, now = json.loads(place.read_text()), json.loads(to_json(dict(now)))
    differ = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if differ:
        words = [f"{key} was {before.get(key)} and is {now.get(key)}" for key in differ[:SHOWN]]
        more = f", and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        raise TrainingError(
            f"the run in {run_dir} was begun with other settings or data: {', '.join(words)}{more}; expected the same. "
            "Set them back, or begin a new run: give it another train.name, or set train.resume=never."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value
