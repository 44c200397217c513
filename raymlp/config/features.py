"""Which columns become tensors, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from raymlp.config.section import ImportPath, Section
from raymlp.config.split import Names

DatePart = Literal["month", "day", "weekday", "hour", "minute", "dayofyear", "epoch_days"]
Impute = Literal["auto", "mean", "median", "most_frequent", "constant", "model"]
Scaling = Literal["auto", "none", "standard", "robust", "minmax", "quantile", "log", "yeo_johnson", "piecewise", "bucketise"]
Encoding = Literal["auto", "ordinal", "onehot", "frequency", "hash", "target"]
TextEncoding = Literal["length", "ngrams", "subword", "pretrained"]
ImageFit = Literal["pad", "crop", "stretch"]


class ColumnRules(Section):
    """How a column becomes numbers or an id."""

    impute: Impute = "auto"
    """Value that stands for a missing number; `auto` is the median, but where the model is trees, which take a missing number as
    it is. `constant` takes `fill`. `model` predicts it from the other numbers, the 25
    that correlate most with it, by a Bayesian ridge regression fitted on `sample_rows` training rows (van Buuren and
    Groothuis-Oudshoorn 2011, one round), within the column's training range. A missing category has an id of its own."""

    fill: float = 0.0
    """The constant of `impute: constant`."""

    missing_indicators: bool = True
    """Add a 0/1 column for every number that was ever missing in training, and is filled."""

    clip: tuple[float, float] | None = None
    """Shares of the training distribution, as [0.01, 0.99], beyond which a number is cut to the value there."""

    clip_deviations: float | None = Field(default=None, gt=0)
    """Standard deviations from the mean beyond which a number is cut."""

    scaling: Scaling = "standard"
    """`standard` is (x - mean) / deviation, `robust` (x - median) / interquartile range, `minmax` 0 to 1. `quantile` maps x
    through its training distribution to a normal one. `log` is sign(x) log(1 + |x|) and `yeo_johnson` the power that comes
    closest to a normal distribution (Yeo and Johnson 2000), both then standardised. `piecewise` spreads x over `bins`
    outputs, linear in its bin (Gorishniy et al. 2022). `bucketise` makes a category of the bin. `auto` chooses
    `standard`, `yeo_johnson` for a skewed column, or `quantile` for one with long tails."""

    quantiles: int = Field(default=100, ge=4, le=1000)
    """Knots of quantile scaling."""

    bins: int = Field(default=16, ge=2, le=256)
    """Bins of `piecewise` and `bucketise`, with equal shares of the training rows."""

    encoding: Encoding = "ordinal"
    """`ordinal` is an id, which the net embeds; `onehot` a 0/1 column a category; `frequency` its share of the training rows,
    standardised; `hash` an id out of `hash_size`, without a vocabulary; `target` the smoothed mean of the answer,
    out of fold in training (Micci-Barreca 2001). `auto` is `ordinal` up to `max_categories` distinct values, then `hash`."""

    max_categories: int = Field(default=256, ge=1)
    """Categories kept a column, most frequent first; the rest share the unseen slot."""

    min_count: int = Field(default=10, ge=1)
    """Rows a category must have in training to get a slot of its own."""

    hash_size: int = Field(default=1024, ge=2, le=1 << 22)
    """Ids that hashed categories and crosses are spread over."""

    smoothing: float = Field(default=20.0, ge=0)
    """Rows of the overall mean that target encoding mixes into each category."""

    folds: int = Field(default=5, ge=2, le=20)
    """Folds of target encoding: a training row is encoded from the other folds."""

    text_encoding: TextEncoding = "length"
    """What a column of `text` becomes. `length` is its number of characters. `ngrams` are the ids of its words and of runs of words,
    hashed, without a vocabulary (Joulin et al. 2017). `subword` are the ids of a tokenizer (needs raymlp[text]): byte-pair encoding
    learned from the training rows (Sennrich et al. 2016), which knows every text, or one that is given. `pretrained` are those of
    `tokenizer` with the marks that it puts around a text, as `model.kind=text_encoder` takes them."""

    text_length: int = Field(default=64, ge=1, le=4096)
    """Ids kept of each text, the first ones; of its characters the first 64 times as many are read."""

    text_hash_size: int = Field(default=1 << 16, ge=2, le=1 << 22)
    """Ids that n-grams are spread over."""

    word_ngrams: int = Field(default=1, ge=1, le=5)
    """Words of the longest run that gets an id: 2 takes words and pairs of neighbours, which help where rows are many."""

    char_ngrams: tuple[int, int] | None = None
    """Shortest and longest piece of a word that gets an id, too, as [3, 5] (Bojanowski et al. 2017): for misspelt words, and for
    languages that put no space between words. Raise `text_length` with it."""

    lowercase: bool = True
    """Whether `ngrams` and a learned tokenizer take capital letters as small ones."""

    vocabulary_size: int = Field(default=8_000, ge=300, le=200_000)
    """Most pieces of a learned tokenizer, which sees up to 100,000 training rows."""

    tokenizer: str | None = None
    """`subword`: a `tokenizer.json` of the library tokenizers to use in place of a learned one. `pretrained`: the folder or the name on
    the Hugging Face hub, as `model.source`. Its text is copied into the plan and the bundle."""

    @model_validator(mode="after")
    def _clip_is_a_range(self) -> Self:
        if self.clip is not None and not 0 <= self.clip[0] < self.clip[1] <= 1:
            raise ValueError(f"clip is {list(self.clip)}; expected two rising shares in [0, 1]")
        if self.clip is not None and self.clip_deviations is not None:
            raise ValueError("clip and clip_deviations are both set; expected one of them")
        return self

    @model_validator(mode="after")
    def _pieces_are_a_range(self) -> Self:
        if self.char_ngrams is not None and not 1 <= self.char_ngrams[0] <= self.char_ngrams[1] <= 10:
            raise ValueError(f"char_ngrams is {list(self.char_ngrams)}; expected two rising numbers from 1 to 10, as [3, 5]")
        return self


class ColumnFeatures(ColumnRules):
    """What differs for one column; the rest is as for all."""

    @model_serializer(mode="wrap")
    def _only_what_was_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


class StepTarget(Section):
    """A step of your own. What stands beside `_target_` and `columns` are its settings."""

    model_config = ConfigDict(extra="allow")

    target: ImportPath = Field(alias="_target_")
    """Import path of a subclass of `raymlp.CustomStep`, as `mypackage.steps.LogRatio`."""

    columns: Names = Field(min_length=1)
    """Columns it reads. They are features of their own, too, unless they are named in `features.drop`."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the path."""
        return {"columns": self.columns, **(self.model_extra or {})}

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {"_target_": self.target, **self.settings}


class Features(ColumnRules):
    """Null lists are filled by column type and profile; the plan writes down the reason of each choice."""

    numeric: tuple[str, ...] | None = None
    """Columns taken as numbers; null takes every numeric column not named elsewhere."""

    categorical: tuple[str, ...] | None = None
    """Columns taken as categories, also integers; null takes every text and boolean column."""

    dates: dict[str, tuple[DatePart, ...]] | None = None
    """Timestamp columns and the parts to take from each (in UTC); null takes weekday and hour of every one."""

    date_encoding: Literal["ordinal", "cyclic"] = "ordinal"
    """Parts that come round (month, day, weekday, hour, minute, dayofyear) as an id each, or as sine and cosine."""

    text: tuple[str, ...] = ()
    """Text columns that are read rather than taken as categories; `text_encoding` says how."""

    image: str | None = None
    """Column of encoded images, checked by `data.images`: it becomes pixels. A missing image is black."""

    image_size: tuple[Annotated[int, Field(ge=8, le=1024)], Annotated[int, Field(ge=8, le=1024)]] = (32, 32)
    """Height and width that images are brought to, in pixels."""

    image_fit: ImageFit = "pad"
    """What happens to an image of another shape: `pad` keeps all of it between black bars, `crop` its middle, `stretch` bends it."""

    crosses: tuple[tuple[str, ...], ...] = ()
    """Categories that count together, as [[origin, dest]]; each cross is hashed into `hash_size` ids."""

    steps: tuple[StepTarget, ...] = ()
    """Steps of your own, as [{_target_: mypackage.steps.LogRatio, columns: [a, b]}]; each gives numbers. Its code runs wherever the
    model does, so a bundle with one is loaded only where RAYMLP_TRUSTED_MODULES names the module."""

    sample_rows: int = Field(default=20_000, ge=100)
    """Training rows, evenly spaced, that `impute: model` and steps of your own are fitted on."""

    drop: tuple[str, ...] = ()
    """Columns that stay in the snapshot but are no features."""

    columns: dict[str, ColumnFeatures] = {}
    """What differs for single columns: `{temp: {scaling: robust, clip: [0.01, 0.99]}}`."""

    def rules(self, column: str) -> ColumnRules:
        """The rules of one column."""
        given = self.columns.get(column)
        return self if given is None else self.model_copy(update={name: getattr(given, name) for name in given.model_fields_set})
