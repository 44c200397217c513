"""The record of a study: a folder that is all there is to go on from. JSON alone; nothing in it is ever unpickled.

study.json     what the study is: space, searcher, objectives, snapshot, settings
trials.jsonl   one line a trial that ended, appended and synchronised; in an object store a file a trial, `trials/000012.json`
best.yaml      the best settings as an overlay     study.html  the page
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raymlp.config.schema import Config
from raymlp.core.errors import ConfigError, RaymlpError
from raymlp.core.files import Place, digest_of, make_folder, to_json, write_text
from raymlp.runtime.claim import Claim
from raymlp.runtime.store import StorePlace
from raymlp.tune.space import fits
from raymlp.tune.trials import Trial, ranked

log = logging.getLogger(__name__)
FORMAT = 1
HEADER, TRIALS, ONE_EACH = "study.json", "trials.jsonl", "trials"
FREE = ("study", "num_samples", "minutes", "trial_minutes", "max_concurrent", "max_failures")
"""Settings of `tune` that may change while a study goes on."""
FIRST_TRIED = 3
"""Best settings of an earlier study that are tried first."""


class Study:
    """An open study. `trials` are those that have ended; `resumed` tells whether there were any when it was opened."""

    def __init__(self, folder: Place, facts: Mapping[str, Any], trials: Sequence[Trial]) -> None:
        self.folder, self.facts = folder, facts
        self.trials = list(trials)
        self.resumed = bool(trials)

    @classmethod
    @contextmanager
    def open(cls, config: Config, *, root: Place, snapshot: str) -> Iterator[Study]:
        """The study of the config's name, made where there is none, and held so that no other process goes on with it, too.

        Raises ConfigError when it was made with other settings or data, RaymlpError when another process holds it.
        """
        name = config.tune.study or f"{config.problem.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
        folder = make_folder(root / name)
        facts = facts_of(config, snapshot)
        with _held(folder):
            if (folder / HEADER).exists():
                _refuse_other(folder, facts)
            else:
                write_text(folder / HEADER, to_json(facts))
            if isinstance(folder, Path):
                _mend(folder / TRIALS)
            yield cls(folder, facts, _read(folder))

    def add(self, trial: Trial) -> None:
        """Append a trial: on the disk, or in the store, when this returns."""
        text = to_json(asdict(trial), indent=None) + "\n"
        if isinstance(self.folder, Path):
            with (self.folder / TRIALS).open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        else:
            write_text(self.folder / ONE_EACH / f"{trial.number:06d}.json", text)
        self.trials.append(trial)


def facts_of(config: Config, snapshot: str) -> dict[str, Any]:
    """What must be the same for a study to go on."""
    plain = config.model_dump(mode="json")
    tune = {name: value for name, value in plain["tune"].items() if name not in FREE}
    sections = {name: plain[name] for name in ("problem", "features", "model", "train")}
    return {"format": FORMAT, "snapshot": snapshot, "settings": digest_of(sections), "problem": config.problem.name, **tune}


def earlier(config: Config, *, root: Place, snapshot: str) -> tuple[list[Trial], list[Mapping[str, Any]]]:
    """What the studies of `tune.warm_start` have for this one: trials whose values count here, too, and points to try first.

    Values count where snapshot, objectives and epochs are the same and the searcher learns from them. Trials whose settings are no
    draw of this space are left out. Raises ConfigError when there is no such study, or it is of another problem.
    """
    told: list[Trial] = []
    points: list[Mapping[str, Any]] = []
    here = facts_of(config, snapshot)
    for name in config.tune.warm_start:
        folder = root / name
        if not (folder / HEADER).exists():
            known = sorted(path.parent.name for path in root.glob(f"*/{HEADER}"))
            raise ConfigError(f"tune.warm_start has {name}; expected a study in {root}: {', '.join(known) or 'there is none'}.")
        facts = json.loads((folder / HEADER).read_text())
        if facts["problem"] != config.problem.name:
            raise ConfigError(f"tune.warm_start has {name}, a study of {facts['problem']}; expected one of {config.problem.name}.")
        trials = [trial for trial in _read(folder) if fits(config.tune.space, trial.draw)]
        if config.tune.searcher.kind == "tpe" and all(facts[key] == here[key] for key in ("snapshot", "objectives", "epochs")):
            told += trials
        else:
            points += [trial.draw for trial in ranked(trials, facts["objectives"][0])[:FIRST_TRIED]]
    return told, points


def _refuse_other(folder: Place, facts: Mapping[str, Any]) -> None:
    found = json.loads((folder / HEADER).read_text())
    for key in {**facts, **found}:
        if found.get(key) != facts.get(key):
            what = {"settings": "the sections problem, features, model and train", "snapshot": "the snapshot"}.get(key, f"tune.{key}")
            shown = "" if key in ("settings", "snapshot") else f" ({json.dumps(found.get(key))}, now {json.dumps(facts.get(key))})"
            raise ConfigError(
                f"{folder} is a study in which {what} was another{shown}; expected the same to go on. "
                f"Set another tune.study, and tune.warm_start=[{folder.name}] to use what it found."
            )


def _read(folder: Place) -> list[Trial]:
    """The trials of a study by number. A line that was cut off when its writer died is as if it were not there."""
    path = folder / TRIALS
    if isinstance(path, Path):
        text = path.read_text() if path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
    else:
        lines = [file.read_text() for file in (folder / ONE_EACH).glob("*.json")]
    return sorted((Trial.from_dict(json.loads(line)) for line in lines), key=lambda trial: trial.number)


def _mend(path: Path) -> None:
    """Take away a last line that was cut off, so that the next one begins a line of its own."""
    text = path.read_bytes() if path.exists() else b""
    if not text.endswith(b"\n") and text:
        os.truncate(path, text.rfind(b"\n") + 1)
        log.warning("the last line of %s was cut off; its trial runs again", path)


@contextmanager
def _held(folder: Place) -> Iterator[None]:
    refusal = RaymlpError(f"{folder} is in the hands of another process; expected to be the only one. Wait, or set tune.study.")
    if isinstance(folder, StorePlace):
        with Claim(folder / ".claim.json").held(refusal):
            yield
        return
    assert isinstance(folder, Path)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise refusal from None
        yield
