"""Going on from the weights of another trial with other settings: what population based training asks of a checkpoint.

The optimizer keeps its moments and the schedule its place; the step size moves by the ratio of the new setting to the old.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from raymlp.config.train import Train
from raymlp.train.job import Job
from raymlp.train.loop import STATE

SETTINGS = "settings.json"
SIZES = ("lr", "initial_lr", "max_lr", "min_lr")
"""Step sizes of a parameter group, where the schedule keeps them."""
PLACES = ("base_lrs", "_last_lr")
"""Step sizes of a schedule, one a group."""


def note_settings(folder: Path, settings: Train) -> None:
    """Write down beside a checkpoint the settings that it was made with."""
    (folder / SETTINGS).write_text(json.dumps({"learning_rate": settings.learning_rate, "weight_decay": settings.weight_decay}))


def adopted(checkpoint: Path, job: Job, folder: Path) -> Path:
    """A copy of a checkpoint in `folder` that the job can go on from: its step size and weight decay."""
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    old, new = json.loads((folder / SETTINGS).read_text()), job.config.train
    state = torch.load(folder / STATE, weights_only=True)
    rescale(state, ratio=new.learning_rate / old["learning_rate"], old_decay=old["weight_decay"], new_decay=new.weight_decay)
    torch.save(state, folder / STATE)
    return folder


def rescale(state: dict[str, Any], *, ratio: float, old_decay: float, new_decay: float) -> None:
    """Change step sizes and weight decay inside a Lightning checkpoint. Groups with another decay than the setting's keep theirs."""
    for optimizer in state["optimizer_states"]:
        for group in optimizer["param_groups"]:
            group.update({name: group[name] * ratio for name in SIZES if name in group})
            if group.get("weight_decay") == old_decay:
                group["weight_decay"] = new_decay
    for schedule in state["lr_schedulers"]:
        schedule.update({name: [value * ratio for value in schedule[name]] for name in PLACES if name in schedule})
