"""How Ray Train's workers share the rows. Kept small: Ray Train loads this file into three processes of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.data import ExecutionOptions
from ray.train import DataConfig


class Shards(DataConfig):
    """The same rows in the same order for every worker at every start, divided anew when there are more workers, or fewer.

    Rows that are held come as one dataset for each rank; `held` counts them by split. Streamed training rows go through
    `streaming_split` in order; streamed validation rows are passed over by every worker, which keeps its own.
    """

    def __init__(self, held: Mapping[str, int] | None = None) -> None:
        super().__init__(datasets_to_split=["train"], execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False)
        self._held = held

    def configure(self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Called by Ray Train: an iterator for each worker and dataset."""
        if self._held is None:
            streamed: list[dict[str, Any]] = super().configure(datasets, world_size, *args, **kwargs)
            return streamed
        parts = {name: self._cut(name, dataset, world_size) for name, dataset in datasets.items()}
        return [{name: shards[rank].iterator() for name, shards in parts.items()} for rank in range(world_size)]

    def _cut(self, name: str, dataset: Any, world_size: int) -> list[Any]:
        """Training rows in equal parts, less up to `world_size - 1`; all validation rows."""
        assert self._held is not None
        rows = self._held[name]
        each = rows // world_size
        ends = [each * rank if name == "train" else rows * rank // world_size for rank in range(1, world_size + (name == "train"))]
        return list(dataset.split_at_indices(ends))[:world_size] if ends else [dataset]
