"""How Ray Train's workers share the rows. Kept small: Ray Train loads this file into three processes of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray.data import ExecutionOptions
from ray.train import DataConfig


class Shards(DataConfig):
    """The same rows in the same order for every worker at every start.

    Rows that are held come as one dataset for each rank. Streamed training rows go through `streaming_split` in order;
    streamed validation rows are passed over by every worker, which keeps its own.
    """

    def __init__(self, held: Mapping[str, Sequence[Any]] | None = None) -> None:
        super().__init__(datasets_to_split=["train"], execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False)
        self._held = held

    def configure(self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Called by Ray Train: an iterator for each worker and dataset."""
        if self._held is None:
            streamed: list[dict[str, Any]] = super().configure(datasets, world_size, *args, **kwargs)
            return streamed
        return [{name: self._held[name][rank].iterator() for name in datasets} for rank in range(world_size)]
