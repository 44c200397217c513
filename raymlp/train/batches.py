"""Batches from blocks: shuffled by seed and epoch for training, in order for validation.

Legend: B rows.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymlp.train.blocks import Block, Source, grouped, joined
from raymlp.train.distil import SOFT
from raymlp.train.imbalance import Resampler

VALID_ROWS = 8_192
VALID_BYTES = 4 << 20
"""Bytes of text ids and pixels that are looked at in one validation step; what a net makes of them takes some twenty times as much."""
BUFFER_BYTES = 1 << 30
"""Bytes of text ids and pixels in the buffer that batches are drawn from, whatever `train.shuffle_rows` says."""
TAKEN = {np.dtype(np.int32): np.int64}
"""Types that a net takes as another one."""


class Batch:
    """What a step takes: the plan's `tensors` as a net takes them (see `raymlp.model.nets`), `target` float32 (B,) and, where a teacher
    was asked, its `soft` targets float32 (B, O).

    No dict itself, on purpose: Lightning's reduced precisions would round the answers inside one.
    """

    __slots__ = ("soft", "target", "tensors")

    def __init__(self, tensors: Mapping[str, Tensor], target: Tensor, soft: Tensor | None = None) -> None:
        self.tensors, self.target, self.soft = tensors, target, soft

    def __len__(self) -> int:
        return len(self.target)

    def with_image(self, image: Tensor) -> Batch:
        """The same rows with other images; what a teacher said of them stays what it was."""
        return Batch({**self.tensors, "image": image}, self.target, self.soft)

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The same batch on a device."""
        tensors = {name: part.to(device, non_blocking=non_blocking) for name, part in self.tensors.items()}
        soft = None if self.soft is None else self.soft.to(device, non_blocking=non_blocking)
        return Batch(tensors, self.target.to(device, non_blocking=non_blocking), soft)


def batch_of(block: Block, rows: NDArray[np.int64] | slice) -> Batch:
    """Copy some rows of a block into tensors; ids become int64."""
    tensors = {name: torch.from_numpy(np.array(values[rows], TAKEN.get(values.dtype))) for name, values in block.tensors.items()}
    soft = tensors.pop(SOFT, None)
    return Batch(tensors, torch.from_numpy(np.array(block.target[rows])), soft)


class TrainBatches:
    """The training batches of one worker. Each epoch draws another order from the seed, the epoch and the rank.

    Rows wait in a buffer of `buffer_rows`, and batches are drawn from it; 0 keeps the order. The last batch is smaller.
    `rows` counts those of an epoch, after resampling where that is asked for.
    """

    def __init__(
        self,
        source: Source,
        *,
        rows: int,
        batch_size: int,
        buffer_rows: int,
        seed: tuple[int, int],
        epoch: Callable[[], int],
        shuffle_labels: bool = False,
        resample: Resampler | None = None,
    ) -> None:
        self._source, self._rows, self._batch_size, self._buffer_rows = source, rows, batch_size, buffer_rows
        self._seed, self._epoch, self._shuffle_labels, self._resample = seed, epoch, shuffle_labels, resample
        self._running: Iterator[Batch] | None = None
        self.skip = 0
        """Batches of the next pass that were seen before the run was cut off."""
        self.waited_s = 0.0
        """Seconds spent making batches since the last `reset_clock`."""

    def __len__(self) -> int:
        return math.ceil(self._rows / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self._running is not None:
            self._running.close()  # type: ignore[attr-defined]
        self._running = self._timed()
        return self._running

    def reset_clock(self, waited_s: float = 0.0) -> None:
        self.waited_s = waited_s

    def _timed(self) -> Iterator[Batch]:
        skip, self.skip = self.skip, 0
        batches = itertools.islice(self._batches(), skip, None)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _batches(self) -> Iterator[Batch]:
        rng = np.random.default_rng([*self._seed, self._epoch()])
        blocks = self._source(rng if self._buffer_rows else None)
        if self._resample:
            blocks = self._resample(map(joined, grouped(blocks)), rng, keep_order=not self._buffer_rows)
        waiting: list[Block] = []
        for group in grouped(blocks, max(self._buffer_rows, self._batch_size)):
            buffer = self._mixed(joined([*waiting, *group]), rng)
            left = len(buffer) % self._batch_size
            yield from self._cut(buffer, len(buffer) - left)
            waiting = [buffer.slice(len(buffer) - left, len(buffer))] if left else []
        if waiting:
            yield from self._cut(waiting[0], left)

    def _mixed(self, buffer: Block, rng: np.random.Generator) -> Block:
        order = rng.permutation(len(buffer)) if self._buffer_rows else np.arange(len(buffer))
        told = rng.permutation(len(buffer)) if self._shuffle_labels else order
        return Block({name: values[told if name == SOFT else order] for name, values in buffer.tensors.items()}, buffer.target[told])

    def _cut(self, buffer: Block, rows: int) -> Iterator[Batch]:
        for start in range(0, rows, self._batch_size):
            yield batch_of(buffer, slice(start, min(start + self._batch_size, rows)))


class ValidBatches:
    """The validation batches of one worker, in order. Empty ones fill up, so that all workers take as many steps."""

    def __init__(self, source: Source, *, steps: int, batch_rows: int = VALID_ROWS) -> None:
        self._source, self._steps, self._batch_rows = source, steps, batch_rows

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        last: Block | None = None
        given = 0
        for group in grouped(self._source(None), self._batch_rows):
            last = joined(group)
            yield batch_of(last, slice(None))
            given += 1
        assert last is not None, "a worker without validation rows"
        for _ in range(self._steps - given):
            yield batch_of(last, slice(0, 0))
