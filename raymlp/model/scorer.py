"""What a bundle scores with: a net, trees, or clusters. Tensors in, outputs out; each kind knows its own files.

net.json, weights.safetensors     a net
xgboost.json, or lightgbm.txt     trees, as their library writes them (`raymlp.model.trees`)
clusters.safetensors              the centres of k-means (`raymlp.model.clusters`)
isolation_forest.safetensors      an isolation forest (`raymlp.model.isolation`)

Legend: B rows, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raymlp.core.errors import BundleError, ConfigError
from raymlp.features.plan import FeaturePlan
from raymlp.model import clusters, isolation
from raymlp.model.clusters import ClusterScorer
from raymlp.model.isolation import IsolationScorer
from raymlp.model.nets import NetShape, build_net
from raymlp.model.trees import FILES, TreeScorer

TAKEN: dict[str, np.dtype[Any]] = {
    "numeric": np.dtype(np.float32), "categorical": np.dtype(np.int64), "text": np.dtype(np.int64), "image": np.dtype(np.uint8),
}  # fmt: skip
"""Type of each tensor as a scorer takes it."""
NET, WEIGHTS = "net.json", "weights.safetensors"


def taken(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The tensors of a row or more in the types that a scorer takes."""
    return {name: values.astype(TAKEN[name], copy=False) for name, values in tensors.items()}


class Scorer(Protocol):
    """From the plan's tensors to one logit (binary), K logits (multiclass), one standardised value (regression), distances to K clusters
    (clustering), or one score (anomaly)."""

    def __call__(self, tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Floats (B, O) of B rows, one row included; the types are those of `TAKEN`."""

    def save(self, folder: Path) -> None:
        """Write its files into a folder."""


@dataclass(frozen=True)
class NetScorer:
    """A net and its weights, and where it runs: `cpu`, or a device as torch names it."""

    shape: NetShape
    weights: Mapping[str, Tensor]
    device: str = "cpu"

    @cached_property
    def net(self) -> nn.Module:
        """The net with its weights, in float32. Raises RuntimeError when they do not fit it."""
        net = build_net(self.shape)
        net.load_state_dict(dict(self.weights))
        if self.device != "cpu":  # full float32 there too, so that answers are those of a CPU
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        return net.eval().float().to(self.device)

    def __call__(self, tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        rows = len(next(iter(tensors.values())))
        if rows == 1 and self.device == "cpu":  # a request: microseconds count
            with torch.inference_mode():
                alone: NDArray[np.float32] = self.net({name: torch.from_numpy(values) for name, values in tensors.items()}).numpy()
            return alone
        step = self.shape.rows_at_once(max(rows, 1))
        with torch.inference_mode():
            parts = [
                self.net({name: torch.from_numpy(values[start : start + step]).to(self.device) for name, values in tensors.items()})
                .cpu()
                .numpy()
                for start in range(0, max(rows, 1), step)
            ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def save(self, folder: Path) -> None:
        (folder / NET).write_text(self.shape.model_dump_json(indent=2))
        save_file({name: value.detach().cpu().contiguous() for name, value in self.weights.items()}, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Raises BundleError when a file cannot be read, or the weights do not fit the net."""
        try:
            scorer = cls(NetShape.model_validate_json((folder / NET).read_text()), load_file(folder / WEIGHTS))
        except ValidationError as error:
            raise BundleError(f"{folder / NET} cannot be read: {error.errors()[0]['msg']}.") from None
        except (OSError, SafetensorError) as error:
            raise BundleError(f"{folder / WEIGHTS} cannot be read: {error}.") from None
        try:
            _ = scorer.net
        except RuntimeError as error:
            raise BundleError(f"{folder / WEIGHTS} does not fit {NET}: {error}") from None
        return scorer


def load_scorer(folder: Path, plan: FeaturePlan) -> Scorer:
    """The scorer whose files are in the folder. Raises BundleError naming the file when it cannot be read, or does not fit the plan."""
    others: dict[str, type[ClusterScorer] | type[IsolationScorer]] = {clusters.FILE: ClusterScorer, isolation.FILE: IsolationScorer}
    for name, kind in others.items():
        if (folder / name).is_file():
            return kind.load(folder / name, plan)
    for library, name in FILES.items():
        if (folder / name).is_file():
            return TreeScorer.load(library, folder / name, plan)
    return NetScorer.load(folder)


def placed(scorer: Scorer, device: str) -> Scorer:
    """The scorer with its net on a device, as torch names it, moved there when it is first used. Raises ConfigError for others on a GPU."""
    if device == "cpu":
        return scorer
    if not isinstance(scorer, NetScorer):
        raise ConfigError("the bundle holds no net, and is scored on CPUs; expected a net for a GPU. Set predict.gpus_per_worker=0.")
    return replace(scorer, device=device)
