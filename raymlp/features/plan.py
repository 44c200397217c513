"""The feature plan: which steps run, fitted from a profile, saved as JSON, run over Arrow batches or single rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from raymlp.config.features import Features
from raymlp.config.problem import Problem
from raymlp.config.section import Section
from raymlp.core.errors import BundleError, ConfigError
from raymlp.core.records import needs_target
from raymlp.data.profile import Profile
from raymlp.data.target import Target
from raymlp.features import target as target_encoding
from raymlp.features.ids import Buckets, Category, Hashed, IdStep
from raymlp.features.image import Picture
from raymlp.features.steps import Folds, Lookup, NumberStep, RowNumbers, Step, plain, plain_row
from raymlp.features.text import Ngrams, Subword, TextStep, learned_tokenizer, with_tokenizer

PACKED: dict[str, np.dtype[Any]] = {
    "numeric": np.dtype(np.float32), "categorical": np.dtype(np.int32), "text": np.dtype(np.int32), "image": np.dtype(np.uint8),
}  # fmt: skip
"""Type of each tensor while it waits or travels; ids are int64 only where a net takes them."""

Count = Callable[[Sequence[str], Sequence[tuple[IdStep, int]], Target], list[target_encoding.Sums]]


class FeaturePlan(Section):
    """Steps from columns to tensors.

    Output of the executors, B rows: `numeric` float32 (B, N), NaN where a number is left missing, and `categorical` int64 (B, C); where
    there are such steps also `text` int64 (B, L), the ids of the text columns side by side, and `image` uint8 (B, 3, H, W).
    """

    version: Literal[2] = 2
    """Format of the plan."""
    steps: tuple[Step, ...]
    """Steps, numbers first."""
    target: Target
    """How the answer is read."""
    reasons: dict[str, str] = {}
    """Why each column is, or is not, a feature, and what was chosen for it."""

    @classmethod
    def fit(
        cls,
        features: Features,
        problem: Problem,
        profile: Profile,
        *,
        files: Sequence[str] = (),
        count: Count = target_encoding.count,
        keeps_missing: bool = False,
    ) -> Self:
        """Choose and fit the steps from the profile of the training split.

        `files`, the Parquet files of that split, are read only where a column is target-encoded (once, out of fold, here or by the
        `count` of `raymlp.features.on_ray`), and a sample of them where a missing number is predicted from others, a tokenizer is
        learned, or a step of the user's own is fitted. `keeps_missing` says that the model takes NaN for a missing number, which
        is what `features.impute=auto` then gives.
        Raises ConfigError when a named column does not exist or has the wrong type, or a step of the user's own is not sound;
        DataError as `Target.fit`.
        """
        from raymlp.features.fit import fit_steps, only_lookups, only_untrained

        target = Target.fit(problem, profile)
        steps, reasons = fit_steps(features, problem, profile, files, keeps_missing=keeps_missing)
        waiting = only_lookups(steps)
        if waiting and not needs_target(problem.task):
            raise ConfigError(
                f"features.encoding is target with problem.task={problem.task}, which has none; expected another encoding. "
                "Set features.encoding=auto."
            )
        if waiting and not files:
            raise ConfigError("features.encoding=target reads the training rows, and only their profile is here. Use another encoding.")
        if waiting:
            rules = [features.rules(step.columns[0]) for step in waiting.values()]
            wanted = [(step.ids, rule.folds) for step, rule in zip(waiting.values(), rules, strict=True)]
            sums = count(files, wanted, target)
            for (place, step), rule, total in zip(waiting.items(), rules, sums, strict=True):
                steps[place] = total.encoded(step, target, rule.smoothing)
        for place, text in only_untrained(steps).items():
            if not files:
                raise ConfigError("features.text_encoding=subword learns from training rows, and only their profile is here. Use ngrams.")
            steps[place] = with_tokenizer(text, learned_tokenizer(files, text.column, features.rules(text.column)))
        return cls(steps=tuple(steps), target=target, reasons=reasons)

    @property
    def numbers(self) -> tuple[NumberStep, ...]:
        return tuple(step for step in self.steps if isinstance(step, NumberStep))

    @property
    def categories(self) -> tuple[IdStep, ...]:
        return tuple(step for step in self.steps if isinstance(step, Category | Buckets | Hashed))

    @property
    def texts(self) -> tuple[TextStep, ...]:
        return tuple(step for step in self.steps if isinstance(step, Ngrams | Subword))

    @property
    def image(self) -> Picture | None:
        return next((step for step in self.steps if isinstance(step, Picture)), None)

    @property
    def inputs(self) -> list[str]:
        """Columns the plan reads, each once, in the order of the steps."""
        return list(dict.fromkeys(name for step in self.steps for name in step.columns))

    @property
    def num_numeric(self) -> int:
        """N, the width of `numeric`."""
        return sum(len(step.names) for step in self.numbers)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of ids of each categorical output, C of them."""
        return tuple(step.size for step in self.categories)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row of each tensor."""
        found: dict[str, tuple[int, ...]] = {"numeric": (self.num_numeric,), "categorical": (len(self.categories),)}
        if self.texts:
            found["text"] = (sum(step.length for step in self.texts),)
        if self.image:
            found["image"] = (3, self.image.height, self.image.width)
        return found

    def rows_within(self, size_bytes: int, most: int) -> int:
        """Rows, from 1 to `most`, whose `text` and `image` take at most so many bytes on the way; a table has nothing of that size."""
        wide = [math.prod(shape) * PACKED[name].itemsize for name, shape in self.shapes.items() if name in ("text", "image")]
        return max(1, min(most, size_bytes // sum(wide))) if wide else most

    @property
    def sealed(self) -> Self:
        """The plan for rows that were not trained on: what only training rows need is left out."""
        steps = [step.model_copy(update={"out_of_fold": ()}) if isinstance(step, Lookup) else step for step in self.steps]
        return self.model_copy(update={"steps": tuple(steps)})

    def transform(self, table: pa.Table, *, folds: Folds = None) -> dict[str, NDArray[Any]]:
        """Arrow executor: the tensors of B rows. Training rows come with their `folds`, (B,). Raises DataError for a damaged image."""
        floats = [output for step in self.numbers for output in step.batch(table, folds)]
        ids = [step.batch(table) for step in self.categories]
        rows = table.num_rows
        tensors: dict[str, NDArray[Any]] = {
            "numeric": np.stack(floats, axis=1) if floats else np.zeros((rows, 0), np.float32),
            "categorical": np.stack(ids, axis=1) if ids else np.zeros((rows, 0), np.int64),
        }
        if self.texts:
            tensors["text"] = np.concatenate([step.batch(table) for step in self.texts], axis=1)
        if self.image:
            tensors["image"] = self.image.batch(table)
        return tensors

    def row_executor(self) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Single-row executor: a function from typed values (see `raymlp.data.contract_row`) to the tensors of one row: lists of N floats,
        of C ids and of L ids, and an array (3, H, W)."""
        number_runs: list[RowNumbers] = []
        for is_plain, group in groupby(self.numbers, plain):
            steps = list(group)
            number_runs += [plain_row(steps)] if is_plain else [step.row() for step in steps]  # type: ignore[arg-type]
        category_runs = [step.row() for step in self.categories]
        text_runs = [step.row() for step in self.texts]
        image = self.image.row() if self.image else None

        def run(row: Mapping[str, Any]) -> dict[str, Any]:
            floats: list[float] = []
            for number in number_runs:
                number(row, floats)  # type: ignore[arg-type]
            tensors: dict[str, Any] = {"numeric": floats, "categorical": [category(row) for category in category_runs]}  # type: ignore[arg-type]
            if text_runs:
                tensors["text"] = [number for text in text_runs for number in text(row)]  # type: ignore[arg-type]
            if image is not None:
                tensors["image"] = image(row)  # type: ignore[arg-type]
            return tensors

        return run

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises BundleError when the text is no plan of this format, or has a step of the user's own that is not trusted here."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise BundleError(f"the feature plan cannot be read: {error.errors()[0]['msg']}.") from None
