"""A net as an ONNX graph, run by ONNX Runtime: the same numbers within a tolerance, without torch's cost for each layer of a small net.

Nets for tables can be exported, and nets of a user's own where torch can trace them. What a text or image encoder of Hugging Face, or a
language model, computes depends on the length of each text, which no graph says: those stay with torch.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raymlp.config.encoder import ImageEncoder, TextEncoder
from raymlp.config.model import Decoder
from raymlp.model.scorer import NetScorer

TOLERANCE = 1e-5
"""Largest difference of an output from torch's, relative to the output where that is above one."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PIECE = 1_024
"""Rows that are scored at a time."""


class NotExportable(Exception):
    """A net has no ONNX graph, or one that computes something else; the message says why."""


def missing_package() -> str | None:
    """The first package of the extra `onnx` that is not here."""
    return next((name for name in PACKAGES if importlib.util.find_spec(name) is None), None)


class _ByPosition(nn.Module):
    """A net whose tensors come one by one, as an exporter gives them."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, *tensors: Tensor) -> Tensor:
        out: Tensor = self.net(dict(zip(self.names, tensors, strict=True)))
        return out


def export(scorer: NetScorer, tensors: Mapping[str, NDArray[Any]], file: Path) -> None:
    """Write a net's graph, for any number of rows. `tensors` are those of two rows or more. Raises NotExportable."""
    if isinstance(scorer.shape.model, TextEncoder | ImageEncoder | Decoder):
        raise NotExportable(f"a net of kind {scorer.shape.model.kind} is not exported: its work depends on what it reads")
    names = tuple(tensors)
    net, rows = _ByPosition(scorer.net, names).eval(), tuple(torch.from_numpy(values) for values in tensors.values())
    try:
        with _quiet():
            any_rows = tuple({0: torch.export.Dim("rows")} for _ in names)
            # Traced strictly: a net that asks a tensor for its length would else have the graph of that many rows.
            traced = torch.export.export(net, rows, dynamic_shapes={"tensors": any_rows}, strict=True)
            program = torch.onnx.export(traced, input_names=list(names), output_names=["outputs"], dynamo=True, verbose=False)
            assert program is not None
            program.save(file)
    except Exception as error:
        words = str(error).strip().partition("\n")[0]
        raise NotExportable(f"torch cannot trace the net: {type(error).__name__}: {words}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its steps, and which packages it does without."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@dataclass(frozen=True)
class OnnxScorer:
    """A net's graph in ONNX Runtime, on one thread: the replicas are what runs beside one another. `net` is what it was made of."""

    net: NetScorer
    file: Path

    @cached_property
    def session(self) -> Any:
        """Raises NotExportable when the file is no graph that can be run."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            return onnxruntime.InferenceSession(str(self.file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own errors have no common base but this
            raise NotExportable(f"ONNX Runtime cannot load {self.file}: {str(error).partition(chr(10))[0]}") from error

    @cached_property
    def _inputs(self) -> list[str]:
        return [part.name for part in self.session.get_inputs()]

    def __call__(self, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        rows = len(next(iter(tensors.values())))
        names, run = self._inputs, self.session.run
        if rows <= PIECE:
            outputs: NDArray[np.float32] = run(None, {name: tensors[name] for name in names})[0]
            return outputs
        starts = range(0, rows, PIECE)
        return np.concatenate([run(None, {name: tensors[name][start : start + PIECE] for name in names})[0] for start in starts])

    def save(self, folder: Path) -> None:
        self.net.save(folder)


def difference(scorer: OnnxScorer, tensors: Mapping[str, NDArray[Any]]) -> float:
    """Largest difference from torch over these rows, alone and together, relative to the output where that is above one.

    Raises NotExportable when the graph does not run, or gives another shape.
    """
    rows = len(next(iter(tensors.values())))
    parts = [(0, rows), *((place, place + 1) for place in range(rows))]
    worst = 0.0
    for start, end in parts:
        piece = {name: values[start:end] for name, values in tensors.items()}
        expected = scorer.net(piece)
        try:
            found = scorer(piece)
        except NotExportable:
            raise
        except Exception as error:
            raise NotExportable(f"the graph does not run for {end - start} rows: {str(error).partition(chr(10))[0]}") from error
        if found.shape != expected.shape:
            raise NotExportable(f"the graph gives outputs {found.shape} for {end - start} rows; expected {expected.shape}")
        off = np.abs(found - expected) / np.maximum(1, np.abs(expected))
        off = np.where((found == expected) | (np.isnan(found) & np.isnan(expected)), 0, off)
        worst = max(worst, float(np.nan_to_num(off, nan=np.inf).max(initial=0)))
    return worst
