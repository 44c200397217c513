"""What is predicted, from what, and what counts as good."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from raymlp.config.section import Section, Text
from raymlp.core.metrics import DEFAULT_METRIC, METRICS
from raymlp.core.records import Task, needs_target


class Problem(Section):
    """The question the model answers."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")
    """Short name of the problem: the registered model and the endpoint carry it. Lower case, digits, `-`, `_`."""

    task: Task
    """`binary`, `multiclass` or `regression`, which learn an answer; `clustering` or `anomaly`, which learn from the rows alone;
    `language`, which learns to foretell a text piece by piece."""

    target: str | None = None
    """Column that holds the answer; null for a task that has none."""

    label: str | None = None
    """Anomaly only: column that says which rows are known anomalies, read by `positive_above` or `positive_class`. It judges a model in
    evaluation and monitoring and is never learned from; rows without a value are fine. Null judges without."""

    positive_above: float | None = None
    """The answer is positive when the target (or the label of anomalies) is greater than this number."""

    positive_class: Text | None = None
    """The answer is positive when the target (or the label of anomalies) equals this value (compared as text)."""

    metric: str = ""
    """Metric that models are compared by; empty takes auc (binary, and anomaly with a label), log_loss (multiclass), rmse (regression),
    silhouette (clustering), shuffled_auc (anomaly) or perplexity (language)."""

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
        self._has_its_answer()
        if not self._has_positives and (self.positive_above is not None or self.positive_class is not None):
            raise ValueError("positive_above and positive_class apply to task=binary, and to the label of task=anomaly, only")
        if self.positive_above is not None and self.positive_class is not None:
            raise ValueError("set positive_above or positive_class, not both")
        if self.metric and self.metric not in METRICS[self.task]:
            raise ValueError(f"metric '{self.metric}' is not one of {sorted(METRICS[self.task])} for task={self.task}")
        if self.task == "anomaly" and self.metric in METRICS["binary"] and self.label is None:
            raise ValueError(
                f"metric is {self.metric}, which needs known anomalies; expected their column. Set label, or metric=shuffled_auc"
            )
        return self

    def _has_its_answer(self) -> None:
        if needs_target(self.task) and self.target is None:
            raise ValueError(f"target is null with task={self.task}, which learns an answer; expected its column. Set target")
        if not needs_target(self.task) and self.target is not None:
            known = "; a column of known anomalies goes in label" if self.task == "anomaly" else ""
            raise ValueError(
                f"target is '{self.target}' with task={self.task}, which has none; expected null{known}. Set target=null, or another task"
            )
        if self.label is not None and self.task != "anomaly":
            raise ValueError(
                f"label is '{self.label}' with task={self.task}; expected null, since it judges anomalies alone. Set label=null"
            )
        if self.label is not None and self.positive_above is None and self.positive_class is None:
            raise ValueError(f"label is '{self.label}' without the value of an anomaly; expected it. Set positive_class or positive_above")

    @property
    def _has_positives(self) -> bool:
        return self.task == "binary" or (self.task == "anomaly" and self.label is not None)

    @property
    def answer_kind(self) -> str:
        """What the column of the answer is: the `target`, or the `label` that is never learned from."""
        return "label" if self.target is None else "target"

    @property
    def answer(self) -> str | None:
        """Column of what is learned, or judged by, and so is no feature; None where there is none."""
        return self.target if needs_target(self.task) else self.label

    @property
    def main_metric(self) -> str:
        """The metric that models are compared by."""
        return self.metric or ("auc" if self.label else DEFAULT_METRIC[self.task])
