"""The feature plan: which steps run, fitted from a profile, saved as JSON, run over Arrow batches or single rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.special import ndtri

from raymlp.config.features import DatePart, Features
from raymlp.config.problem import Problem
from raymlp.config.section import Section
from raymlp.core.errors import BundleError, ConfigError, nearest
from raymlp.data.profile import ColumnProfile, Profile
from raymlp.data.target import Target
from raymlp.features.steps import Category, Number, Quantile, Scaler, Standard, Step

ID_LIKE = 0.9
"""A text column with more distinct values than this share of its rows names rows rather than describing them."""
CYCLES: dict[DatePart, range] = {
    "month": range(1, 13),
    "day": range(1, 32),
    "weekday": range(7),
    "hour": range(24),
    "minute": range(60),
}


class FeaturePlan(Section):
    """Steps from columns to tensors.

    Output of the executors, B rows: `numeric` float32 (B, N) and `categorical` int64 (B, C).
    """

    version: Literal[1] = 1
    """Format of the plan."""
    steps: tuple[Step, ...]
    """Steps, numbers before categories."""
    target: Target
    """How the answer is read."""
    reasons: dict[str, str] = {}
    """Why each column is, or is not, a feature."""

    @classmethod
    def fit(cls, features: Features, problem: Problem, profile: Profile) -> Self:
        """Choose and fit the steps from the profile of the training split.

        Raises ConfigError when a named column does not exist or has the wrong type, DataError as `Target.fit`.
        """
        target = Target.fit(problem, profile)
        roles, reasons = _choose(features, problem, profile)
        numbers: list[Number] = []
        categories: list[Category] = []
        for name, role in roles.items():
            column = profile.columns[name]
            if role == "numeric":
                numbers.append(_number(name, column, features))
            elif role == "categorical":
                categories.append(_category(name, column, features))
            else:
                for part in role:
                    if part in CYCLES:
                        categories.append(Category(column=name, part=part, vocabulary=tuple(map(str, CYCLES[part]))))
                    else:
                        numbers.append(_calendar(name, part, column))
        if not numbers and not categories:
            raise ConfigError("no column is left as a feature; expected one at least. Look at features.drop and problem.id_columns.")
        return cls(steps=(*numbers, *categories), target=target, reasons=reasons)

    @property
    def numbers(self) -> tuple[Number, ...]:
        return tuple(step for step in self.steps if isinstance(step, Number))

    @property
    def categories(self) -> tuple[Category, ...]:
        return tuple(step for step in self.steps if isinstance(step, Category))

    @property
    def inputs(self) -> list[str]:
        """Columns the plan reads, each once, in the order of the steps."""
        return list(dict.fromkeys(step.column for step in self.steps))

    @property
    def num_numeric(self) -> int:
        """N, the width of `numeric`."""
        return sum(len(step.names) for step in self.numbers)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of ids of each categorical output, C of them."""
        return tuple(step.size for step in self.categories)

    def transform(self, table: pa.Table) -> dict[str, NDArray[Any]]:
        """Arrow executor: `numeric` float32 (B, N), `categorical` int64 (B, C)."""
        floats = [output for step in self.numbers for output in step.batch(table)]
        ids = [step.batch(table) for step in self.categories]
        rows = table.num_rows
        return {
            "numeric": np.stack(floats, axis=1) if floats else np.zeros((rows, 0), np.float32),
            "categorical": np.stack(ids, axis=1) if ids else np.zeros((rows, 0), np.int64),
        }

    def row_executor(self) -> Callable[[Mapping[str, Any]], tuple[list[float], list[int]]]:
        """Single-row executor: a function from typed values (see `Contract.row_checker`) to N floats and C ids."""
        number_runs = [step.row() for step in self.numbers]
        category_runs = [step.row() for step in self.categories]

        def run(row: Mapping[str, Any]) -> tuple[list[float], list[int]]:
            floats: list[float] = []
            for number in number_runs:
                number(row, floats)  # type: ignore[arg-type]
            return floats, [category(row) for category in category_runs]  # type: ignore[arg-type]

        return run

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises BundleError when the text is no plan of this format."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise BundleError(f"the feature plan cannot be read: {error.errors()[0]['msg']}.") from None


Role = Literal["numeric", "categorical"] | tuple[DatePart, ...]


def _choose(features: Features, problem: Problem, profile: Profile) -> tuple[dict[str, Role], dict[str, str]]:
    """Role and reason of every column; a column that was named keeps its name's role, the others go by type."""
    named = {
        "features.numeric": features.numeric or (),
        "features.categorical": features.categorical or (),
        "features.dates": tuple(features.dates or {}),
        "features.drop": features.drop,
        "problem.id_columns": problem.id_columns,
    }
    for key, names in named.items():
        for name in names:
            if name not in profile.columns:
                raise ConfigError(f"{key} names '{name}', which the data does not have.{nearest(name, profile.columns)} Set {key}.")
    asked = {*named["features.numeric"], *named["features.categorical"], *named["features.dates"]}
    roles: dict[str, Role] = {}
    reasons: dict[str, str] = {}
    for name, column in profile.columns.items():
        left_out = _left_out(name, column, features, problem, asked)
        if left_out:
            reasons[name] = f"left out: {left_out}"
            continue
        role, reason = _role(name, column, features)
        if role is None:
            reasons[name] = f"left out: {reason}"
        else:
            roles[name], reasons[name] = role, reason
    return roles, reasons


def _left_out(name: str, column: ColumnProfile, features: Features, problem: Problem, asked: set[str]) -> str:
    if name == problem.target:
        return "the target"
    if name in problem.known_after:
        return "known only after the answer (problem.known_after)"
    if name in features.drop:
        return "named in features.drop"
    if name in problem.id_columns and name not in asked:
        return "names a row (problem.id_columns)"
    if name in problem.sensitive and name not in asked:
        return "sensitive (problem.sensitive)"
    if name in asked:
        return ""
    if not column.values:
        return "no value in training"
    if column.num_distinct <= 1 and not column.nulls:
        return "constant in training"
    if column.type == "string" and column.num_distinct > ID_LIKE * column.values and column.values > 100:
        return f"id-like: {column.num_distinct} distinct values in {column.values} rows"
    return ""


def _role(name: str, column: ColumnProfile, features: Features) -> tuple[Role | None, str]:
    if name in (features.numeric or ()):
        if column.type in ("string", "bytes"):
            raise ConfigError(f"features.numeric names '{name}', which holds text; expected numbers. Set features.numeric.")
        return "numeric", "named in features.numeric"
    if name in (features.categorical or ()):
        if column.type in ("float", "timestamp", "bytes"):
            raise ConfigError(f"features.categorical names '{name}', which holds {column.type} values; expected text, bool or int.")
        return "categorical", "named in features.categorical"
    if column.type == "bytes":
        return None, "bytes: no step takes them"
    if column.type == "timestamp":
        if features.dates is None:
            return ("weekday", "hour"), "timestamp: weekday and hour"
        parts = features.dates.get(name, ())
        return (parts, "named in features.dates") if parts else (None, "not named in features.dates")
    if name in (features.dates or {}):
        raise ConfigError(f"features.dates names '{name}', which holds {column.type} values; expected timestamps. Set data.source.types.")
    if column.type in ("int", "float"):
        return ("numeric", f"type {column.type}") if features.numeric is None else (None, "not named in features.numeric")
    if features.categorical is None or column.type == "bool":
        return "categorical", f"type {column.type}"
    return None, "not named in features.categorical"


def _number(name: str, column: ColumnProfile, features: Features) -> Number:
    if column.type == "bool":
        return Number(
            column=name, fill=0.0, scaler=Standard(mean=0.0, scale=1.0), indicator=features.missing_indicators and column.nulls > 0
        )
    fill = column.mean if features.impute == "mean" else column.quantile(0.5)
    return Number(
        column=name,
        fill=fill,
        scaler=_scaler(column, features),
        indicator=features.missing_indicators and column.nulls > 0,
    )


def _scaler(column: ColumnProfile, features: Features) -> Scaler:
    if features.scaling == "standard":
        return Standard(mean=column.mean, scale=column.std or 1.0)
    shares = (np.arange(features.quantiles) + 0.5) / features.quantiles
    values = np.array([column.quantile(share) for share in shares])
    knots, group = np.unique(values, return_inverse=True)
    heights = np.bincount(group, weights=ndtri(shares)) / np.bincount(group)
    return Quantile(knots=tuple(map(float, knots)), heights=tuple(map(float, heights)))


def _calendar(name: str, part: DatePart, column: ColumnProfile) -> Number:
    if part == "dayofyear":
        return Number(column=name, part=part, fill=183.0, scaler=Standard(mean=183.0, scale=105.0))
    days, spread = column.mean / 86_400, column.std / 86_400
    return Number(column=name, part=part, fill=days, scaler=Standard(mean=days, scale=spread or 1.0))


def _category(name: str, column: ColumnProfile, features: Features) -> Category:
    frequent = [value for value, count in column.counts().items() if count >= features.min_count]
    return Category(column=name, vocabulary=tuple(frequent[: features.max_categories]))
