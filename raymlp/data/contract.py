"""What a column may hold. Inferred from a profile, edited by a person, enforced at ingestion (`contract_batch`) and at the
endpoint (`contract_row`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError, model_validator

from raymlp.config.privacy import Rule
from raymlp.config.section import Section
from raymlp.config.sources import ColumnType
from raymlp.config.split import Duration
from raymlp.core.errors import ConfigError, nearest
from raymlp.data.pattern import MAX_TEXT, matches, whole
from raymlp.data.pictures import FORMATS
from raymlp.data.privacy import KEY_VARIABLE, PrivacyKey, key_for, makes_text, needs_key
from raymlp.data.profile import Profile


class ColumnContract(Section):
    """What one column may hold."""

    type: ColumnType
    """Type after reading."""
    nullable: bool = True
    """Whether a value may be missing."""
    minimum: float | None = None
    """Smallest number allowed; timestamps are not ranged."""
    maximum: float | None = None
    """Largest number allowed."""
    categories: tuple[str, ...] = ()
    """Values allowed, as text; empty allows any. Only a person closes a set of categories; inference leaves it open."""
    pattern: str | None = Field(default=None, max_length=1_000)
    """Regular expression that the whole text must match, in the syntax of RE2: no look-around and no back-references, which
    in return takes time linear in the text."""
    unique: bool = False
    """Whether each value may occur once in a snapshot; later rows go to quarantine. Null may repeat, and single requests are
    not compared."""
    max_pixels: int | None = Field(default=None, ge=1)
    """The bytes are an image that can be read, of at most this many pixels; null takes any bytes."""
    example: bool | int | float | str | None = None
    """A typical value, shown in the endpoint's documentation."""
    privacy: Rule | None = None
    """What is done to a raw value before anything else; the rest of the contract speaks of the result."""
    privacy_key: str = ""
    """Check value of the key that `privacy` needs, so that another key is refused."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum is {self.minimum:g}; expected at most maximum ({self.maximum:g})")
        if self.privacy is not None and makes_text(self.privacy) and self.type != "string":
            raise ValueError(f"type is {self.type} with privacy {self.privacy.kind}; expected string")
        if self.max_pixels is not None and self.type != "bytes":
            raise ValueError(f"max_pixels is set on a column of type {self.type}; expected type bytes")
        return self

    @model_validator(mode="after")
    def _pattern_works(self) -> Self:
        if self.pattern is None:
            return self
        if self.type != "string":
            raise ValueError(f"pattern is set on a column of type {self.type}; expected type string")
        for expression in (self.pattern, whole(self.pattern)):
            try:
                pc.match_substring_regex(pa.array([""]), expression)
            except pa.ArrowInvalid as error:
                raise ValueError(f"pattern is '{self.pattern}', which RE2 does not take ({error})") from None
        if self.example is None and not self.nullable:
            raise ValueError("pattern needs an example that matches it, since a row must be there to try a model on")
        if self.example is not None and not matches(pa.array([str(self.example)]), self.pattern)[0]:
            raise ValueError(f"example is '{self.example}', which does not match the pattern '{self.pattern}'")
        return self


class Contract(Section):
    """Columns by name. Other columns are refused by the endpoint and dropped at ingestion."""

    version: Literal[1] = 1
    """Format of this file."""
    columns: dict[str, ColumnContract] = Field(min_length=1)
    """What each column may hold."""
    unique_keys: tuple[tuple[str, ...], ...] = ()
    """Columns that together may occur once in a snapshot, as [[origin, time_hour], ...]; later rows go to quarantine. A row with
    a null among them is not compared."""
    min_rows: int | None = Field(default=None, ge=0)
    """Fewest good rows of a snapshot, all splits together."""
    max_rows: int | None = Field(default=None, ge=1)
    """Most good rows of a snapshot."""
    freshness: dict[str, Duration] = {}
    """Age that the newest value of a timestamp column may have when the data is prepared: `{time_hour: 3d}`."""

    @model_validator(mode="after")
    def _names_columns(self) -> Self:
        named = {"unique_keys": [name for key in self.unique_keys for name in key], "freshness": list(self.freshness)}
        for rule, names in named.items():
            unknown = next((name for name in names if name not in self.columns), None)
            if unknown is not None:
                raise ValueError(f"{rule} names '{unknown}', which is no column of the contract.{nearest(unknown, self.columns)}")
        untimed = next((name for name in self.freshness if self.columns[name].type != "timestamp"), None)
        if untimed:
            raise ValueError(f"freshness names '{untimed}', a column of type {self.columns[untimed].type}; expected a timestamp")
        if self.min_rows is not None and self.max_rows is not None and self.min_rows > self.max_rows:
            raise ValueError(f"min_rows is {self.min_rows}; expected at most max_rows ({self.max_rows})")
        return self

    @property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        """Every set of columns that may not repeat."""
        return (*((name,) for name, rule in self.columns.items() if rule.unique), *self.unique_keys)

    @classmethod
    def infer(cls, profile: Profile) -> Self:
        """A contract that the profiled rows keep.

        Numbers may go beyond the seen range by its own width on either side, since tomorrow is not like yesterday;
        a column without nulls must stay without; categories stay open.
        """
        columns = {}
        for name, column in profile.columns.items():
            low = high = None
            example: Any = None
            if column.type in ("int", "float") and column.values:
                width = max(column.maximum - column.minimum, abs(column.maximum), 1.0)
                low, high = column.minimum - width, column.maximum + width
                median = column.quantile(0.5)
                example = round(median) if column.type == "int" else round(median, 4)
            elif column.type == "timestamp" and column.values:
                example = datetime.fromtimestamp(round(column.quantile(0.5)), UTC).isoformat()
            elif column.values:
                example = next(iter(column.counts()), None)
                example = example == "true" if column.type == "bool" else example
            columns[name] = ColumnContract(
                type=column.type, nullable=column.nulls > 0 or not column.values, minimum=low, maximum=high, example=example
            )
        return cls(columns=columns)

    def only(self, names: list[str]) -> Contract:
        """The rules of some columns, in the given order; what concerns a whole snapshot is left out."""
        return Contract(columns={name: self.columns[name] for name in names})

    def with_privacy(self, rules: Mapping[str, Rule], key: PrivacyKey | None) -> Contract:
        """The same with privacy rules on some columns. A value of a person is no example."""
        columns = dict(self.columns)
        for name, rule in rules.items():
            if name in columns:
                changes: dict[str, Any] = {"privacy": rule, "privacy_key": key.check if key is not None and needs_key(rule) else ""}
                if rule.kind != "keep":
                    changes["example"] = None
                if makes_text(rule):
                    changes |= {"type": "string", "minimum": None, "maximum": None}
                columns[name] = columns[name].model_copy(update=changes)
        return self.model_copy(update={"columns": columns})

    def with_images(self, names: Collection[str], max_pixels: int) -> Contract:
        """The same with some columns held to be images; a limit that is there stays. Raises ConfigError for a column of another type."""
        columns = dict(self.columns)
        for name in names:
            if name in columns and columns[name].type != "bytes":
                raise ConfigError(f"data.images names '{name}', which holds {columns[name].type} values; expected bytes. Set data.images.")
            if name in columns and columns[name].max_pixels is None:
                columns[name] = columns[name].model_copy(update={"max_pixels": max_pixels})
        return self.model_copy(update={"columns": columns})

    def without_privacy(self) -> Contract:
        """The same for rows that are already transformed."""
        return self._changed(privacy=None)

    def without_examples(self) -> Contract:
        """The same without values of rows."""
        return self._changed(example=None)

    def key(self, given: PrivacyKey | None = None) -> PrivacyKey | None:
        """The key that the rules need: the given one, or the environment's. Raises ConfigError when it is missing or another."""
        rules = {name: rule.privacy for name, rule in self.columns.items() if rule.privacy is not None}
        if not any(map(needs_key, rules.values())):
            return None
        key = given or key_for(rules)
        for name, rule in self.columns.items():
            if key is not None and rule.privacy_key and rule.privacy_key != key.check:
                raise ConfigError(
                    f"{KEY_VARIABLE} is another key than the one that '{name}' was transformed with: its check value is {key.check}; "
                    f"expected {rule.privacy_key}. Set {KEY_VARIABLE} to the key of the training data."
                )
        return key

    def _changed(self, **rules: Any) -> Contract:
        columns = {name: rule.model_copy(update=rules) for name, rule in self.columns.items()}
        return self.model_copy(update={"columns": columns})

    def without(self, names: Collection[str]) -> Contract:
        """The contract without some columns and the rules that name them."""
        kept: dict[str, Any] = {
            "columns": {name: rule for name, rule in self.columns.items() if name not in names},
            "unique_keys": tuple(key for key in self.unique_keys if not set(key) & set(names)),
            "freshness": {name: age for name, age in self.freshness.items() if name not in names},
        }
        return self.model_copy(update=kept)

    def to_yaml(self) -> str:
        import yaml

        plain = self.model_dump(mode="json", exclude_defaults=True)
        for name, rule in self.columns.items():
            if rule.privacy is not None:
                plain["columns"][name]["privacy"] = rule.privacy.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "contract") -> Self:
        """Raises ConfigError that names `source` when the text is no contract."""
        import yaml

        try:
            return cls.model_validate(yaml.safe_load(text))
        except (ValidationError, yaml.YAMLError) as error:
            detail = error.errors()[0] if isinstance(error, ValidationError) else None
            where = ".".join(map(str, detail["loc"])) if detail else "the file"
            raise ConfigError(f"{source}: {where} is wrong: {detail['msg'] if detail else error}.") from None

    def describe(self, name: str) -> str:
        """What a column expects, for people: `a number from 0 to 23`."""
        rule = self.columns[name]
        noun = {"bool": "true or false", "int": "a whole number", "float": "a number", "string": "text", "bytes": "base64 text"}
        words = noun.get(rule.type, "a timestamp in ISO 8601, as 2013-07-01T09:00:00Z")
        if rule.privacy is not None and makes_text(rule.privacy):
            words = "text or a whole number"
        if rule.categories:
            words = "one of " + ", ".join(rule.categories)
        elif rule.pattern:
            words = f"text of at most {MAX_TEXT:,} characters that matches {rule.pattern}"
        elif rule.max_pixels is not None:
            words = f"base64 text of an image ({', '.join(FORMATS)}) of at most {rule.max_pixels:,} pixels"
        if rule.minimum is not None or rule.maximum is not None:
            words += f" from {_number(rule.minimum, '-inf')} to {_number(rule.maximum, 'inf')}"
        return words + (" or null" if rule.nullable else "")


def _number(value: float | None, default: str) -> str:
    return default if value is None else f"{value:g}"
