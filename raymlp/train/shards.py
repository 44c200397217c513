"""How Ray Train's workers share streamed rows. Kept small: Ray Train loads this file into three processes of its own."""

from __future__ import annotations

from ray.data import ExecutionOptions
from ray.train import DataConfig


class Shards(DataConfig):
    """The same rows in the same order at every start: training rows are divided in order, and validation rows are passed over by every
    worker, which keeps its own."""

    def __init__(self) -> None:
        super().__init__(datasets_to_split=["train"], execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False)
