"""Embeddings of numbers: which of a plan's numbers are embedded, where their bins lie, and the layers.

Legend: B rows, N numbers, E embedded numbers, D numbers that stand for one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raymlp.config.model import LinearNumbers, Numbers, Periodic, PiecewiseLinear, PlainNumbers
from raymlp.data.digest import Digest
from raymlp.data.profile import Profile
from raymlp.features.plan import FeaturePlan
from raymlp.features.reading import SECONDS_PER_DAY
from raymlp.features.scalers import Piecewise
from raymlp.features.steps import Number

DEFAULT_WIDTH = {"linear": 32, "piecewise_linear": 16, "periodic": 24}
"""D as the authors recommend it."""


def embedded(plan: FeaturePlan) -> dict[int, Number]:
    """Place among the N numbers, and step, of each that is embedded: scaled values, not 0/1 outputs, bins, sines or encodings."""
    found, place = {}, 0
    for step in plan.numbers:
        if isinstance(step, Number) and not isinstance(step.scaler, Piecewise):
            found[place] = step
        place += len(step.names)
    return found


def edges_of(plan: FeaturePlan, profile: Profile, bins: int) -> tuple[tuple[float, ...], ...]:
    """Rising edges of at most so many bins for each embedded number, E of them, in the unit of the plan's output.

    From the profile of the training split, without another look at the rows. Bins have equal shares of them (Gorishniy et al. 2022),
    save for values that are a bin's share on their own: each of those is one edge, and the bins are spread over the other rows.
    A number with one value has one bin of width 1.
    """
    found = []
    for step in embedded(plan).values():
        column = profile.columns[step.column]
        if step.part == "dayofyear":
            values = np.linspace(1, 366, bins + 1)
        elif column.type == "bool":
            values = np.array([0.0, 1.0])
        elif column.values:
            values = _edges(column.digest, bins) / (SECONDS_PER_DAY if step.part == "epoch_days" else 1)
        else:
            values = np.array([step.fill])
        if step.low is not None or step.high is not None:
            values = np.clip(values, step.low, step.high)
        scaled = np.unique(step.scaler.batch(values).astype(np.float32))
        if len(scaled) < 2:
            scaled = np.array([scaled[0], scaled[0] + 1], np.float32)
        found.append(tuple(map(float, scaled)))
    return tuple(found)


def _edges(digest: Digest, bins: int) -> NDArray[np.float64]:
    heavy = digest.pure & (digest.weights * bins >= digest.rows)
    edges = digest.means[heavy]
    rest = Digest(digest.means[~heavy], digest.weights[~heavy], digest.pure[~heavy])
    if not rest.rows:
        return edges
    shares = np.linspace(0, 1, max(2, bins + 1 - len(edges)))
    return np.concatenate([edges, [rest.quantile(share) for share in shares]])


class NumberEmbeddings(nn.Module):
    """Embedded numbers, (B, E, D), beside those that are not. `places` (E,) say which of the N are, `edges` where their bins lie."""

    _places: Tensor
    _others: Tensor

    def __init__(
        self, numbers: Numbers, num_numeric: int, places: Sequence[int], edges: Sequence[Sequence[float]], *, width: int | None, relu: bool
    ) -> None:
        """`width` is D, or null for the recommended one; `relu` puts a ReLU behind linear and periodic embeddings."""
        super().__init__()
        self.width = 0 if isinstance(numbers, PlainNumbers) else width or numbers.width or DEFAULT_WIDTH[numbers.kind]
        self.count = len(places) if self.width else 0
        rest = sorted(set(range(num_numeric)) - set(places if self.count else ()))
        self.rest = len(rest)
        self.register_buffer("_places", torch.tensor(places, dtype=torch.int64), persistent=False)
        self.register_buffer("_others", torch.tensor(rest, dtype=torch.int64), persistent=False)
        self.layer = _layer(numbers, self.count, edges, self.width, relu=relu) if self.count else None

    def forward(self, numeric: Tensor) -> tuple[Tensor | None, Tensor]:
        """Float (B, N) to (B, E, D), or None where nothing is embedded, and the others (B, N - E)."""
        if self.layer is None:
            return None, numeric
        return self.layer(numeric[:, self._places]), numeric[:, self._others]


def _layer(numbers: Numbers, count: int, edges: Sequence[Sequence[float]], width: int, *, relu: bool) -> nn.Module:
    """The authors' layers. The bins are buffers, so that they travel with the weights."""
    import rtdl_num_embeddings as authors

    layer: nn.Module
    match numbers:
        case LinearNumbers():
            layer = (authors.LinearReLUEmbeddings if relu else authors.LinearEmbeddings)(count, width)
        case Periodic(frequencies=frequencies, deviation=deviation):
            layer = authors.PeriodicEmbeddings(
                count, width, n_frequencies=frequencies, frequency_init_scale=deviation, activation=relu, lite=False
            )
        case PiecewiseLinear():
            with warnings.catch_warnings(), torch.device("cpu"):  # also where a net is only counted: bins are compared
                warnings.simplefilter("ignore")  # of a number with one bin, which is as well linear
                layer = authors.PiecewiseLinearEmbeddings([torch.tensor(row) for row in edges], width, activation=False, version="B")
        case PlainNumbers():
            raise AssertionError("plain numbers have no layer")
    return layer
