"""From the profile of the training split to fitted steps: what each column becomes, why, and with which numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import ndtri

from raymlp.config.features import ColumnRules, DatePart, Features
from raymlp.config.problem import Problem
from raymlp.config.quality import ID_SHARE
from raymlp.core.errors import ConfigError, nearest
from raymlp.core.trust import path_of
from raymlp.data import parquet
from raymlp.data.profile import ColumnProfile, Profile
from raymlp.features import custom
from raymlp.features.ids import Buckets, Category, Hashed
from raymlp.features.image import Picture
from raymlp.features.reading import SECONDS_PER_DAY
from raymlp.features.regression import Sample
from raymlp.features.scalers import Log, Piecewise, Quantile, Scaler, Standard, YeoJohnson, power_transform
from raymlp.features.steps import Cyclic, Lookup, Number, NumberStep, OneHot, Step
from raymlp.features.text import Subword, text_step

SKEWED = 0.5
"""Skewness by quantiles, ((q99 - q50) - (q50 - q1)) / (q99 - q1) in [-1, 1], from which `auto` straightens a column."""
LONG_TAILED = 15.0
"""Distance of the .1 % and 99.9 % quantiles in interquartile ranges from which `auto` maps a column by its quantiles; a
normal distribution has 4.6."""
GRID = (np.arange(1_000) + 0.5) / 1_000
"""Shares at which a distribution is looked at where a transform needs its shape."""
CYCLES: dict[DatePart, range] = {
    "month": range(1, 13),
    "day": range(1, 32),
    "weekday": range(7),
    "hour": range(24),
    "minute": range(60),
    "dayofyear": range(1, 367),
}
Floats = NDArray[np.float64]
Role = Literal["numeric", "categorical", "text", "image"] | tuple[DatePart, ...]


def fit_steps(
    features: Features, problem: Problem, profile: Profile, files: Sequence[str] = (), *, keeps_missing: bool = False
) -> tuple[list[Step], dict[str, str]]:
    """Steps, numbers first, and the reason for each column. A target encoding is still without its numbers, a tokenizer that is to be
    learned without its pieces. `keeps_missing` leaves a number missing where `impute` is `auto`.

    Raises ConfigError when a named column does not exist or has the wrong type.
    """
    roles, reasons = choose(features, problem, profile)
    own = [custom.made(target, f"features.steps.{i}") for i, target in enumerate(features.steps)]
    predictors = _predictors(features, profile, roles)
    rows = _training_rows(features, predictors, files)
    sample = Sample.of(rows, predictors, profile.columns) if rows is not None and predictors else None
    found: list[Step] = []
    for name, role in roles.items():
        column, rules = profile.columns[name], features.rules(name)
        if role == "numeric":
            step, how = number_step(name, column, rules)
            reasons[name] += how
            if isinstance(step, Number) and column.is_number and rules.impute == "model":
                step, how = _predicted(step, sample)
                reasons[name] += how
            found.append(step)
        elif role == "categorical":
            category, how = category_step(name, column, rules)
            found.append(category)
            reasons[name] += how
        elif role == "text":
            found.append(_scaled(name, "length", column, rules) if rules.text_encoding == "length" else text_step(name, rules))
        elif role == "image":
            height, width = features.image_size
            found.append(Picture(column=name, height=height, width=width, fit=features.image_fit))
        else:
            found += [_date_part(name, part, column, features) for part in role]
    if keeps_missing:
        found = [_kept_missing(step, features) for step in found]
    found += [_cross(names, features, profile) for names in features.crosses]
    for i, mine in enumerate(own):
        assert rows is not None
        fitted = custom.fit(mine, f"features.steps.{i}", profile, rows)
        taken = {name for step in found if isinstance(step, NumberStep) for name in step.names} & set(fitted.names)
        if taken:
            raise ConfigError(
                f"features.steps.{i} ({path_of(type(mine))}) names an output '{min(taken)}', which is there already; "
                "expected another name. Change the step's names."
            )
        found.append(fitted)
        reasons[f"{path_of(type(mine))}({', '.join(mine.columns)})"] = f"a step of your own: {', '.join(fitted.names)}"
    if not found:
        raise ConfigError("no column is left as a feature; expected one at least. Look at features.drop and problem.id_columns.")
    return sorted(found, key=lambda step: not isinstance(step, NumberStep)), reasons


# ---------------------------------------------------------------------- roles


def choose(features: Features, problem: Problem, profile: Profile) -> tuple[dict[str, Role], dict[str, str]]:
    """Role and reason of every column; a column that was named keeps its name's role, the others go by type."""
    named = {
        "features.numeric": features.numeric or (),
        "features.categorical": features.categorical or (),
        "features.dates": tuple(features.dates or {}),
        "features.text": features.text,
        "features.image": () if features.image is None else (features.image,),
        "features.drop": features.drop,
        "features.columns": tuple(features.columns),
        "features.crosses": tuple(name for cross in features.crosses for name in cross),
        "features.steps": tuple(name for target in features.steps for name in target.columns),
        "problem.id_columns": problem.id_columns,
    }
    for key, names in named.items():
        for name in names:
            if name not in profile.columns:
                raise ConfigError(f"{key} names '{name}', which the data does not have.{nearest(name, profile.columns)} Set {key}.")
    answer = next((name for name in named["features.steps"] if name in (problem.answer, *problem.known_after)), None)
    if answer is not None:
        raise ConfigError(
            f"features.steps reads '{answer}', which is known only with the answer; expected other columns. Set features.steps."
        )
    asked = {name for key in ("numeric", "categorical", "dates", "text", "image") for name in named[f"features.{key}"]}
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
    if name == problem.answer:
        return "the target" if problem.target else "the label"
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
    if problem.task == "language":
        return "a language model reads its text alone"
    if not column.values:
        return "no value in training"
    if column.is_constant:
        return "constant in training"
    if column.is_prose:
        return f"free text, {column.num_distinct} distinct values in {column.values} rows; features.text takes it"
    if column.type == "string" and column.is_id_like(ID_SHARE):
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
    if name in features.text:
        if column.type != "string":
            raise ConfigError(f"features.text names '{name}', which holds {column.type} values; expected text. Set features.text.")
        return "text", "named in features.text"
    if name == features.image:
        if column.type != "bytes":
            raise ConfigError(f"features.image names '{name}', which holds {column.type} values; expected bytes. Set features.image.")
        return "image", "named in features.image"
    if column.type == "bytes":
        return None, "bytes that features.image does not name"
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


# ---------------------------------------------------------------------- numbers


def number_step(name: str, column: ColumnProfile, rules: ColumnRules) -> tuple[Number | Buckets, str]:
    """The step of a numeric column, and what was chosen for it."""
    if column.type == "bool":
        indicator = rules.missing_indicators and column.nulls > 0
        return Number(column=name, fill=0.0, scaler=Standard(mean=0.0, scale=1.0), indicator=indicator), ""
    if rules.scaling == "bucketise":
        return Buckets(column=name, edges=_edges(column, rules.bins)[1:-1]), f"; {rules.bins} bins of equal shares"
    chosen, why = _auto_scaling(column) if rules.scaling == "auto" else (rules.scaling, "")
    step = _scaled(name, None, column, rules.model_copy(update={"scaling": chosen}))
    return step, f"; {chosen} scaling: {why}" if why else ""


def _scaled(name: str, part: Literal["length"] | None, column: ColumnProfile, rules: ColumnRules) -> Number:
    low, high = _limits(column, rules)
    return Number(
        column=name,
        part=part,
        fill=_fill(name, column, rules),
        low=low,
        high=high,
        scaler=_scaler(column, rules, low, high),
        indicator=rules.missing_indicators and column.nulls > 0,
    )


def _kept_missing(step: Step, features: Features) -> Step:
    """The step without a value for missing numbers, where none was asked for."""
    if not isinstance(step, Number) or features.rules(step.column).impute != "auto":
        return step
    return step.model_copy(update={"fill": None, "indicator": False})


def _predictors(features: Features, profile: Profile, roles: Mapping[str, Role]) -> list[str]:
    """The numbers that a missing one is predicted from; none where no column asks for it."""
    numbers = [name for name, role in roles.items() if role == "numeric" and profile.columns[name].is_number]
    return numbers if any(features.rules(name).impute == "model" for name in numbers) else []


def _training_rows(features: Features, predictors: Sequence[str], files: Sequence[str]) -> pa.Table | None:
    """A sample of what is fitted on more than the profile; None when nothing is."""
    columns = list(dict.fromkeys([*predictors, *(name for target in features.steps for name in target.columns)]))
    if columns and not files:
        setting = "features.impute=model" if predictors else "features.steps"
        raise ConfigError(f"{setting} reads the training rows, and only their profile is here; expected their files. Leave it out.")
    return parquet.sample(files, features.sample_rows, columns) if columns else None


def _predicted(step: Number, sample: Sample | None) -> tuple[Number, str]:
    """The step with its regression. A column that was never missing in training gets one, too: it has the most rows to learn from,
    and when it fails at the endpoint its neighbours say more than its median."""
    found = sample.regression(step.column) if sample else None
    if found is None:
        return step, "; a missing value is the median: the sample has no other number, or too few values of this one, to predict it from"
    regression, explained, rows = found
    how = f"a regression on {len(regression.terms)} numbers, which explains {explained:.0%} of the variance of {rows:,} sampled rows"
    return step.model_copy(update={"regression": regression}), f"; a missing value is predicted by {how}"


def _auto_scaling(column: ColumnProfile) -> tuple[Literal["standard", "yeo_johnson", "quantile"], str]:
    far_low, low, quarter, middle, three_quarters, high, far_high = (
        column.quantile(share) for share in (0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.999)
    )
    core, width = three_quarters - quarter, high - low
    if core > 0 and (far_high - far_low) / core > LONG_TAILED:
        return "quantile", f"tails of {(far_high - far_low) / core:.0f} interquartile ranges"
    skewness = ((high - middle) - (middle - low)) / width if width > 0 else 0.0
    if abs(skewness) > SKEWED:
        return "yeo_johnson", f"skewness {skewness:.2f}"
    return "standard", f"skewness {skewness:.2f}"


def _fill(name: str, column: ColumnProfile, rules: ColumnRules) -> float:
    if rules.impute == "constant":
        return rules.fill
    if rules.impute == "mean" or not column.values:
        return column.mean
    if rules.impute in ("auto", "median", "model"):
        return column.quantile(0.5)
    weights = np.where(column.digest.pure, column.digest.weights, 0.0)
    if weights.max() < 2:
        raise ConfigError(
            f"features.columns.{name}.impute is most_frequent, and no value comes twice in training; expected one that does. "
            "Use median or mean."
        )
    return float(column.digest.means[int(weights.argmax())])


def _limits(column: ColumnProfile, rules: ColumnRules) -> tuple[float | None, float | None]:
    if rules.clip is not None and column.values:
        return column.quantile(rules.clip[0]), column.quantile(rules.clip[1])
    if rules.clip_deviations is not None:
        width = rules.clip_deviations * column.std
        return column.mean - width, column.mean + width
    return None, None


def _scaler(column: ColumnProfile, rules: ColumnRules, low: float | None, high: float | None) -> Scaler:
    cut = low is not None and high is not None
    kind = rules.scaling if column.values else "none"
    if kind == "none":
        return Standard(mean=0.0, scale=1.0)
    if kind == "minmax":
        bottom, top = (low, high) if low is not None and high is not None else (column.minimum, column.maximum)
        return Standard(mean=bottom, scale=(top - bottom) or 1.0)
    if kind == "robust":
        return Standard(mean=column.quantile(0.5), scale=(column.quantile(0.75) - column.quantile(0.25)) or 1.0)
    if kind == "quantile":
        return _quantile_scaler(column, rules.quantiles, low, high)
    if kind == "piecewise":
        return Piecewise(edges=_edges(column, rules.bins, low, high))
    if kind == "standard" and not cut:
        return Standard(mean=column.mean, scale=column.std or 1.0)
    grid = _grid(column, low, high)
    if kind == "log":
        logs = np.sign(grid) * np.log1p(np.abs(grid))
        return Log(mean=float(logs.mean()), scale=float(logs.std()) or 1.0)
    if kind == "yeo_johnson":
        return _yeo_johnson(grid)
    return Standard(mean=float(grid.mean()), scale=float(grid.std()) or 1.0)


def _grid(column: ColumnProfile, low: float | None, high: float | None) -> Floats:
    """The training distribution as a thousand equally likely values, cut as the step cuts them."""
    values = np.array([column.quantile(share) for share in GRID])
    return values if low is None else np.clip(values, low, high)


def _yeo_johnson(grid: Floats) -> Scaler:
    from scipy.stats import yeojohnson_normmax

    if grid[0] == grid[-1]:
        return Standard(mean=float(grid[0]), scale=1.0)
    power = float(np.clip(yeojohnson_normmax(grid), -5, 5))
    powers = power_transform(grid, power)
    return YeoJohnson(power=power, mean=float(powers.mean()), scale=float(powers.std()) or 1.0)


def _quantile_scaler(column: ColumnProfile, knots: int, low: float | None, high: float | None) -> Quantile:
    shares = (np.arange(knots) + 0.5) / knots
    values = np.array([column.quantile(share) for share in shares])
    values = values if low is None else np.clip(values, low, high)
    distinct, group = np.unique(values, return_inverse=True)
    heights = np.bincount(group, weights=ndtri(shares)) / np.bincount(group)
    return Quantile(knots=tuple(map(float, distinct)), heights=tuple(map(float, heights)))


def _edges(column: ColumnProfile, bins: int, low: float | None = None, high: float | None = None) -> tuple[float, ...]:
    """Rising edges of bins with equal shares of the training rows; fewer where values are shared by many."""
    values = np.array([column.quantile(share) for share in np.linspace(0, 1, bins + 1)])
    distinct = np.unique(values if low is None else np.clip(values, low, high))
    if len(distinct) < 2:
        distinct = np.array([distinct[0], distinct[0] + 1.0]) if len(distinct) else np.array([0.0, 1.0])
    return tuple(map(float, distinct))


# ---------------------------------------------------------------------- categories


def category_step(name: str, column: ColumnProfile, rules: ColumnRules) -> tuple[Category | Hashed | OneHot | Lookup, str]:
    """The step of a category, and what was chosen for it."""
    encoding, how = rules.encoding, ""
    if encoding == "auto":
        many = column.num_distinct > rules.max_categories
        encoding = "hash" if many else "ordinal"
        how = f"; {encoding}: {column.num_distinct:,} distinct values, {rules.max_categories} kept at most"
    if encoding == "hash":
        return Hashed(columns=(name,), buckets=rules.hash_size), how
    frequent = [value for value, count in column.counts().items() if count >= rules.min_count]
    category = Category(column=name, vocabulary=tuple(frequent[: rules.max_categories]))
    if encoding == "onehot":
        return OneHot(ids=category), how
    if encoding == "frequency":
        return _frequency(category, column), how
    if encoding == "target":
        return Lookup(ids=category, labels=("target",), values=()), how
    return category, how


def _frequency(category: Category, column: ColumnProfile) -> Lookup:
    """Shares of the training rows, standardised over them."""
    counts = column.counts()
    kept = [counts[value] for value in category.vocabulary]
    weights = np.array([column.values - sum(kept), column.nulls, *kept], dtype=np.float64)
    shares = weights / max(column.rows, 1)
    shares[0] = 0.0
    mean = float(np.average(shares, weights=weights)) if weights.sum() else 0.0
    spread = float(np.sqrt(np.average((shares - mean) ** 2, weights=weights))) if weights.sum() else 0.0
    return Lookup(ids=category, labels=("frequency",), values=tuple((float((share - mean) / (spread or 1.0)),) for share in shares))


def _cross(names: tuple[str, ...], features: Features, profile: Profile) -> Hashed:
    if len(set(names)) < 2:
        raise ConfigError(f"features.crosses holds [{', '.join(names)}]; expected two or more different columns. Set features.crosses.")
    for name in names:
        kind = profile.columns[name].type
        if kind in ("float", "timestamp", "bytes"):
            raise ConfigError(f"features.crosses names '{name}', which holds {kind} values; expected text, bool or int.")
    return Hashed(columns=names, buckets=features.hash_size)


# ---------------------------------------------------------------------- dates


def _date_part(name: str, part: DatePart, column: ColumnProfile, features: Features) -> NumberStep | Category:
    if features.date_encoding == "cyclic" and part in CYCLES:
        return Cyclic(column=name, part=part, first=CYCLES[part].start, period=len(CYCLES[part]))
    if part in CYCLES and part != "dayofyear":
        return Category(column=name, part=part, vocabulary=tuple(map(str, CYCLES[part])))
    mean, scale = (183.0, 105.0) if part == "dayofyear" else (column.mean / SECONDS_PER_DAY, column.std / SECONDS_PER_DAY or 1.0)
    return Number(column=name, part=part, fill=mean, scaler=Standard(mean=mean, scale=scale))


def only_lookups(steps: list[Step]) -> Mapping[int, Lookup]:
    """Target encodings that still need their numbers, by their place among the steps."""
    return {place: step for place, step in enumerate(steps) if isinstance(step, Lookup) and not step.values}


def only_untrained(steps: list[Step]) -> Mapping[int, Subword]:
    """Tokenizers that are still to be learned, by their place among the steps."""
    return {place: step for place, step in enumerate(steps) if isinstance(step, Subword) and not step.tokenizer}
