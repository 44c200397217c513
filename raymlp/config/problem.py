"""What is predicted, from what, and what counts as good."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from raymlp.config.section import Section, Text
from raymlp.core.metrics import DEFAULT_METRIC, METRICS
from raymlp.core.records import Task


class Problem(Section):
    """The question the model answers."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")
    """Short name of the problem: the registered model and the endpoint carry it. Lower case, digits, `-`, `_`."""

    task: Task
    """`binary`, `multiclass` or `regression`."""

    target: str
    """Column that holds the answer."""

    positive_above: float | None = None
    """Binary only: the answer is positive when the target is greater than this number."""

    positive_class: Text | None = None
    """Binary only: the answer is positive when the target equals this value (compared as text)."""

    metric: str = ""
    """Metric that models are compared by; empty takes auc (binary), log_loss (multiclass) or rmse (regression)."""

    success_threshold: float | None = None
    """Value of the metric that the gate asks for at least (at most, for a loss); null asks only for the baselines."""

    time_column: str | None = None
    """Column that says when a row happened; the replay and `data.forward_fill` follow its order."""

    known_after: tuple[str, ...] = ()
    """Columns known only after the answer is: dropped, since a model that saw them would cheat."""

    id_columns: tuple[str, ...] = ()
    """Columns that name a row. Not features."""

    sensitive: tuple[str, ...] = ()
    """Columns that hold a sensitive attribute: always reported as slices, and features only when listed there."""

    slices: tuple[str, ...] = ()
    """Columns whose values the evaluation reports one by one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.task != "binary" and (self.positive_above is not None or self.positive_class is not None):
            raise ValueError("positive_above and positive_class apply to task=binary only")
        if self.positive_above is not None and self.positive_class is not None:
            raise ValueError("set positive_above or positive_class, not both")
        if self.metric and self.metric not in METRICS[self.task]:
            raise ValueError(f"metric '{self.metric}' is not one of {sorted(METRICS[self.task])} for task={self.task}")
        return self

    @property
    def main_metric(self) -> str:
        """The metric that models are compared by."""
        return self.metric or DEFAULT_METRIC[self.task]
