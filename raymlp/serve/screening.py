"""What more is asked of a row than its types: the contract's ranges, categories and patterns, and that no value is absurd beside the
rows of training. Compiled once for a version. No Ray, no web framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from raymlp.core.errors import RequestError
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_row import Row, row_checker, value_checker
from raymlp.data.privacy import PrivacyKey
from raymlp.data.profile import ColumnProfile

if TYPE_CHECKING:
    from raymlp.model.predictor import Predictor

Test = Callable[[Any], str]
"""What is expected of a value that fails; empty for one that is well."""
LEAST_TEXT = 100
"""Characters that no text is absurd with."""
VALUE_RULES: Mapping[str, Any] = {"minimum": None, "maximum": None, "categories": (), "pattern": None}
"""A contract's rules on values, taken away."""


class Screen:
    """The guard of one version. `check` turns a row of a request into typed values, or raises RequestError, and tables are held against
    `contract`; `judged` looks at a typed row."""

    def __init__(
        self,
        contract: Contract,
        columns: Mapping[str, ColumnProfile],
        *,
        guard: Literal["reject", "flag", "off"],
        absurd_factor: float,
        key: PrivacyKey | None = None,
    ) -> None:
        absurd = {name: test for name, rule in contract.columns.items() if (test := _absurd(rule, columns.get(name), absurd_factor))}
        self.contract, self.key = contract, key
        self._is_strict = guard == "reject"
        self._tests: list[tuple[str, Test]] = list(absurd.items()) if guard == "reject" else []
        if guard != "reject":
            rules = {name: rule.model_copy(update=VALUE_RULES) for name, rule in contract.columns.items()}
            self.contract = contract.model_copy(update={"columns": rules})
        if guard == "flag":
            self._tests = [(name, test) for name, rule in contract.columns.items() for test in (_rules(rule), absurd.get(name)) if test]
        self.check: Callable[[Any, str], Row] = row_checker(self.contract, key=key)

    @classmethod
    def of(cls, predictor: Predictor, *, guard: Literal["reject", "flag", "off"], absurd_factor: float) -> Self:
        """The guard of a loaded version."""
        bundle = predictor.bundle
        return cls(predictor.contract, bundle.profile.columns, guard=guard, absurd_factor=absurd_factor, key=predictor.key)

    def judged(self, row: Row, where: str) -> tuple[str, ...]:
        """Fields of a typed row that are out of place. Raises RequestError for the first one where rows are rejected."""
        found: list[str] = []
        for name, test in self._tests:
            value = row[name]
            if value is not None and (expected := test(value)):
                if self._is_strict:
                    raise RequestError(f"{where}.{name}", "far from every row of training", expected)
                found.append(name)
        return tuple(dict.fromkeys(found))


def _rules(rule: ColumnContract) -> Test | None:
    """Whether a typed value keeps the contract's rules on values."""
    if rule.type not in ("int", "float", "string") or all(getattr(rule, name) == nothing for name, nothing in VALUE_RULES.items()):
        return None
    check = value_checker(rule)

    def test(value: Any) -> str:
        try:
            check(value)
        except (TypeError, ValueError, OverflowError):
            return "what the contract says"
        return ""

    return test


def _absurd(rule: ColumnContract, seen: ColumnProfile | None, factor: float) -> Test | None:
    """Timestamps are not judged, since time goes on; nor is what training saw no value of, or another type."""
    if seen is None or seen.type != rule.type or not seen.values:
        return None
    if rule.type in ("int", "float"):
        width = max(seen.maximum - seen.minimum, abs(seen.minimum), abs(seen.maximum), 1.0)
        low, high = seen.minimum - factor * width, seen.maximum + factor * width
        return lambda number: "" if low <= number <= high else f"a number from {low:g} to {high:g}"
    if rule.type == "string":
        longest = max(LEAST_TEXT, int(factor * seen.maximum))
        return lambda text: "" if len(text) <= longest else f"text of at most {longest:,} characters"
    return None
