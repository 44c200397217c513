"""Ray Train's list of the checkpoints of a run, kept a second time: it is written in place, so a full disk or a kill can cut it off."""

from __future__ import annotations

import json
import logging

from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as LIST

from raymlp.core.errors import TrainingError
from raymlp.core.files import Place, write_text
from raymlp.runtime.store import remove

log = logging.getLogger(__name__)
COPY = "checkpoints.json"


def keep(folder: Place) -> None:
    """Copy the list, as it was written after the last checkpoint."""
    write_text(folder / COPY, (folder / LIST).read_text())


def mend(folder: Place) -> None:
    """Before a start: put the copy in the place of a list that was cut off, and remove checkpoints that were never whole.

    Raises TrainingError when neither tells which checkpoint is whole.
    """
    if not (folder / LIST).exists():
        return
    found = {name: _named(folder / name) for name in (LIST, COPY)}
    if found[LIST] is None:
        if found[COPY] is None:
            raise TrainingError(
                f"{folder / LIST} was cut off when it was written, and has no copy; expected the list of checkpoints. "
                "Begin a new run: give it another train.name, or set train.resume=never."
            )
        write_text(folder / LIST, (folder / COPY).read_text())
        log.warning("%s was cut off when it was written; the run goes on from the checkpoint before it", folder / LIST)
    whole = found[LIST] or found[COPY] or set()
    for place in folder.glob("checkpoint_*"):
        if place.name not in {LIST, *whole}:
            remove(place)


def _named(path: Place) -> set[str] | None:
    """Folders of the checkpoints in a list; None when it is none, or one of them is gone."""
    try:
        names = {result["checkpoint_dir_name"] for result in json.loads(path.read_text())["checkpoint_results"]}
    except (OSError, ValueError, KeyError):
        return None
    return names if all((path.parent / name).exists() for name in names) else None
