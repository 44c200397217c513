"""A step of the user's own: the base class to write one from, and the record that carries it in a plan.

A plan holds the import path of the class and its fitted settings as plain JSON. One that is read from a file imports only what is
trusted (`raymlp.core.trust`). A plan that travels between processes of one job carries the live step and needs no trust.

Legend: B rows, W outputs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError

from raymlp.config.features import StepTarget
from raymlp.config.section import Section
from raymlp.config.sources import ColumnType
from raymlp.core import trust
from raymlp.core.errors import BundleError, ConfigError
from raymlp.core.trust import TRUSTED, is_trusted, path_of
from raymlp.data import parquet
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_row import table_of
from raymlp.data.profile import Profile
from raymlp.features.scalers import LARGEST

CHECKED_ROWS = 32
"""Training rows on which both executors of a new step are compared."""
CLOSE = 1e-6
"""Difference allowed between them, absolute and relative."""
Outputs = Sequence[NDArray[Any]]
RowOutputs = Callable[[Mapping[str, Any]], Sequence[float]]


class CustomStep(Section):
    """Base of a step of your own: a frozen pydantic model whose fields are its settings and what it learned, as plain JSON.

        class LogRatio(CustomStep):
            @property
            def names(self):
                return ("log_ratio",)

            def batch(self, table):
                a, b = (table.column(name).to_numpy() for name in self.columns)
                return [np.log1p(a) - np.log1p(b)]

    A setting of `features.steps` beside `_target_` is a field of the same name. Outputs are numbers as the net takes them, so scale
    them here; NaN becomes 0 and what float32 cannot hold is cut. Values are null where they may be missing.
    """

    columns: tuple[str, ...] = Field(min_length=1)
    """Columns read, from the config; a step sees no others."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, W of them."""

    def fitted(self, profile: Profile, sample: pa.Table) -> Self:
        """The step with what it learned, as `self.model_copy(update={...})`; itself when there is nothing to learn.

        `profile` is that of the training split, `sample` about `features.sample_rows` evenly spaced rows of its `columns`.
        """
        return self

    @abstractmethod
    def batch(self, table: pa.Table) -> Outputs:
        """W arrays of numbers (B,), from the `columns` of B rows."""

    def row(self) -> RowOutputs | None:
        """A function from the typed values of one row to W numbers: bool, int, float, str, bytes, datetime in UTC, or None.

        Without one a row goes through `batch` as a table, which takes about a tenth of a millisecond instead of a microsecond.
        """
        return None


def _live(found: Any) -> Any:
    """The step itself, or the one that a file describes. Raises BundleError for what is not trusted or cannot be built."""
    if isinstance(found, CustomStep):
        return found
    if not (isinstance(found, dict) and isinstance(found.get("path"), str)):
        raise ValueError("a step of the user's own has no import path")
    path = found["path"]
    if not is_trusted(path):
        raise BundleError(
            f"the feature plan runs the step {path}, whose module is not trusted; expected one named in {TRUSTED}. "
            f"If you trust its code, set {TRUSTED}={path.partition('.')[0]}."
        )
    try:
        return class_of(path).model_validate(found.get("settings"))
    except (ConfigError, ValidationError) as error:
        raise BundleError(f"the step {path} of the feature plan cannot be made: {_first(error)}") from error


def _plain(step: CustomStep) -> dict[str, Any]:
    return {"path": path_of(type(step)), "settings": step.model_dump(mode="json")}


class Custom(Section):
    """A user's step in a plan."""

    kind: Literal["custom"] = "custom"
    step: Annotated[CustomStep, BeforeValidator(_live), PlainSerializer(_plain, return_type=dict[str, Any])]
    """The step; in JSON its import path and settings."""
    types: dict[str, ColumnType]
    """Type of each column it reads."""

    @property
    def columns(self) -> tuple[str, ...]:
        return self.step.columns

    @property
    def names(self) -> tuple[str, ...]:
        return self.step.names

    def batch(self, table: pa.Table, folds: NDArray[np.int64] | None = None) -> list[NDArray[np.float32]]:
        """W arrays float32 (B,), finite."""
        return [_finite(output) for output in self.step.batch(table.select(self.columns))]

    def row(self) -> Callable[[dict[str, Any], list[float]], None]:
        read = self.step.row() or self._through_batch()

        def run(row: dict[str, Any], out: list[float]) -> None:
            for value in read(row):
                if -LARGEST <= value <= LARGEST:
                    out.append(float(value))
                else:
                    out.append(0.0 if math.isnan(value) else math.copysign(LARGEST, value))

        return run

    def _through_batch(self) -> RowOutputs:
        types = Contract(columns={name: ColumnContract(type=kind) for name, kind in self.types.items()})
        return lambda row: [float(output[0]) for output in self.step.batch(table_of([dict(row)], types))]


def class_of(path: str) -> type[CustomStep]:
    """Import a step's class. Raises ConfigError when there is none."""
    return trust.class_of(path, CustomStep, noun="step", expected="a subclass of raymlp.CustomStep")  # type: ignore[type-abstract]


def made(target: StepTarget, key: str) -> CustomStep:
    """The step that a config asks for, not yet fitted; from now on its class is trusted in this process. Raises ConfigError that
    names `key`, as `features.steps.0`."""
    try:
        kind = class_of(target.target)
        step = kind.model_validate(target.settings)
    except ConfigError as error:
        raise ConfigError(f"{key}._target_: {error}") from error
    except ValidationError as error:
        known = ", ".join(kind.model_fields)
        raise ConfigError(f"{key}: {_first(error)}; expected the settings of {target.target}: {known}. Set {key}.") from error
    except TypeError as error:
        raise ConfigError(f"{key}._target_: {target.target} is not finished: {error}.") from error
    trust.name(target.target, path_of(kind))
    return step


def fit(step: CustomStep, key: str, profile: Profile, sample: pa.Table) -> Custom:
    """The step as a plan carries it, after it was tried on training rows. Raises ConfigError, naming `key`, when its executors do not
    agree, an output has another shape than its names say, or it does not come back from JSON as it was."""
    where = f"{key} ({path_of(type(step))})"
    table = sample.select(step.columns)
    try:
        fitted = Custom(step=step.fitted(profile, table), types={name: profile.columns[name].type for name in step.columns})
        _try(fitted, profile, table)
        if Custom.model_validate_json(fitted.model_dump_json()) != fitted:
            raise ValueError("its fields are not the same after JSON; expected plain, finite values")
    except Exception as error:
        words = str(error) if type(error) is ValueError else f"{type(error).__name__}: {_first(error)}"
        raise ConfigError(f"{where}: {words}. Mend the step.") from error
    return fitted


def _try(custom: Custom, profile: Profile, table: pa.Table) -> None:
    """Both executors on some training rows, and on one in which everything is missing that ever was. Raises ValueError."""
    rows = table.take(pa.array(parquet.spread(table.num_rows, CHECKED_ROWS))).to_pylist()
    rows.append({name: None if profile.columns[name].nulls else value for name, value in rows[0].items()})
    types = Contract(columns={name: ColumnContract(type=kind) for name, kind in custom.types.items()})
    typed, names = table_of(rows, types), custom.names
    shapes = [np.shape(output) for output in custom.step.batch(typed)]
    if shapes != [(len(rows),)] * len(names):
        raise ValueError(f"batch gives arrays of shapes {shapes} for {len(rows)} rows; expected one (B,) for each of {', '.join(names)}")
    outputs, run = custom.batch(typed), custom.row()
    for place, row in enumerate(rows):
        found: list[float] = []
        run(row, found)
        if len(found) != len(names):
            raise ValueError(f"row gives {len(found)} numbers; expected one for each of {', '.join(names)}")
        for name, output, value in zip(names, outputs, found, strict=True):
            if not math.isclose(output[place], np.float32(value), rel_tol=CLOSE, abs_tol=CLOSE):
                raise ValueError(
                    f"'{name}' of a training row is {output[place]:g} from batch and {value:g} from row; expected equal numbers"
                )


def _finite(output: NDArray[Any]) -> NDArray[np.float32]:
    return np.clip(np.nan_to_num(np.asarray(output, np.float64)), -LARGEST, LARGEST).astype(np.float32)


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        detail = error.errors()[0]
        return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
    return str(error)
