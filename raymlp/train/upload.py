"""Checkpoints on their way to storage: written to a folder of the node, and copied from there while training goes on."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.collective import barrier, broadcast_from_rank_zero

from raymlp.train.disk import size_of, writing

WHAT = "a checkpoint"


class Uploads:
    """The checkpoints of one worker. `pending` is true while the last one is on its way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0

    def pending(self) -> bool:
        return self._waiting > 0

    def report(self, metrics: dict[str, float], save: Callable[[Path], None] | None) -> None:
        """Give metrics to Ray Train and, in the background, a checkpoint, written to one folder a node. All workers must call it."""
        if save is None:
            ray.train.report(metrics, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        context = ray.train.get_context()
        mine = tempfile.mkdtemp(prefix="raymlp-checkpoint-") if context.get_world_rank() == 0 else ""
        folder = Path(broadcast_from_rank_zero(mine))
        folder.mkdir(exist_ok=True)
        with writing(folder, WHAT, clear=lambda: shutil.rmtree(folder, ignore_errors=True)):
            save(folder)
        barrier()
        checkpoint = Checkpoint.from_directory(folder) if context.get_local_rank() == 0 else None
        if checkpoint is not None:
            with self._lock:
                self._waiting += 1
        ray.train.report(
            metrics, checkpoint=checkpoint, checkpoint_upload_mode=CheckpointUploadMode.ASYNC, checkpoint_upload_fn=self._upload
        )

    def _upload(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        """Called by Ray Train in a thread of its own. What could not be written whole is taken away again."""
        storage = ray.train.get_context().get_storage()
        place = storage.build_checkpoint_path_from_name(name)
        try:
            with writing(place, WHAT, size=size_of(Path(checkpoint.path)), clear=lambda: _remove(storage.storage_filesystem, place)):
                return storage.persist_current_checkpoint(checkpoint, name)
        finally:
            with self._lock:
                self._waiting -= 1


def _remove(filesystem: Any, place: str) -> None:
    try:
        filesystem.delete_dir(place)
    except OSError:
        return
