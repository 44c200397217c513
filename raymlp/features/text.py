"""Fitted steps that turn a text into a row of ids: hashed n-grams, or the pieces of a tokenizer.

Ids: 0 fills up, 1 stands for no text, 2 and up are pieces. Legend: B rows, L ids of each text.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from raymlp.config.features import ColumnRules
from raymlp.config.section import Section
from raymlp.core.errors import BundleError, ConfigError
from raymlp.data import parquet
from raymlp.features.hub import reaching
from raymlp.features.ids import BETWEEN, FIRST, MISSING, hash_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING = 0
CHARACTERS = 64
"""Characters that are read for each id that is kept, so that a huge text costs no more than a long one."""
WORD = re.compile(r"\w+|[^\w\s]")
"""A word, or one sign."""
REMEMBERED = 1 << 16
"""N-grams of a batch whose id is not worked out anew."""
SAMPLE_ROWS = 100_000
"""Training rows that a tokenizer learns from."""
TOKENIZER_BYTES = 64 << 20
Ids = NDArray[np.int64]
RowIds = Callable[[dict[str, Any]], list[int]]
Encode = Callable[[str], list[int]]


class _Text(Section):
    """What both kinds have in common."""

    column: str
    """Column read."""
    length: int = Field(ge=1)
    """L."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def _batch(self, table: pa.Table, encode: Encode) -> Ids:
        ids = np.full((table.num_rows, self.length), PADDING, dtype=np.int64)
        for place, text in enumerate(table.column(self.column).to_pylist()):
            found = [MISSING] if text is None else encode(text[: CHARACTERS * self.length])
            ids[place, : len(found)] = found
        return ids

    def _row(self, encode: Encode) -> RowIds:
        column, length = self.column, self.length

        def run(row: dict[str, Any]) -> list[int]:
            text = row[column]
            found = [MISSING] if text is None else encode(text[: CHARACTERS * length])
            return found + [PADDING] * (length - len(found))

        return run


class Ngrams(_Text):
    """Words, runs of words and pieces of words, hashed (BLAKE2b, 64 bits) in the order of the text."""

    kind: Literal["ngrams"] = "ngrams"
    buckets: int = Field(ge=2)
    """Ids that n-grams are spread over."""
    words: int = Field(ge=1)
    """Words of the longest run."""
    chars: tuple[int, int] | None = None
    """Shortest and longest piece of a word."""
    lowercase: bool = True
    """Whether capital letters are taken as small ones."""

    @property
    def name(self) -> str:
        return f"{self.column}_ngrams"

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.buckets + FIRST

    def batch(self, table: pa.Table) -> Ids:
        """int64 (B, L)."""
        return self._batch(table, self._encoder(lru_cache(REMEMBERED)(self._id)))

    def row(self) -> RowIds:
        return self._row(self._encoder(self._id))

    def _id(self, gram: str) -> int:
        return hash_id(gram, self.buckets)

    def _encoder(self, number: Callable[[str], int]) -> Encode:
        return lambda text: [number(gram) for gram in islice(self.grams(text), self.length)]

    def grams(self, text: str) -> Iterator[str]:
        """After each word the runs that end with it, shortest first, then its pieces with its ends marked: `<wo`, `rd>`."""
        recent: deque[str] = deque(maxlen=self.words)
        for found in WORD.finditer(text.lower() if self.lowercase else text):
            recent.append(found[0])
            run = list(recent)
            yield from (BETWEEN.join(run[-many:]) for many in range(1, len(run) + 1))
            if self.chars is not None:
                word = f"<{found[0]}>"
                sizes = range(self.chars[0], min(self.chars[1], len(word)) + 1)
                yield from (BETWEEN + word[start : start + size] for size in sizes for start in range(len(word) - size + 1))


class Subword(_Text):
    """The pieces of a tokenizer of the library tokenizers."""

    kind: Literal["subword"] = "subword"
    tokenizer: str
    """The tokenizer as JSON."""
    vocabulary: int = Field(ge=0)
    """Number of pieces."""
    marks: bool = False
    """Whether a text stands between the marks of its tokenizer, as a pretrained net has seen it; they count in L and are never cut off."""

    @property
    def name(self) -> str:
        return f"{self.column}_subword"

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.vocabulary + FIRST

    def batch(self, table: pa.Table) -> Ids:
        """int64 (B, L)."""
        return self._batch(table, self._encoder())

    def row(self) -> RowIds:
        return self._row(self._encoder())

    def _encoder(self) -> Encode:
        found, length, marks = read_tokenizer(self.tokenizer, self.length if self.marks else None), self.length, self.marks
        if _pieces(found) > self.vocabulary:
            raise BundleError(f"the tokenizer of '{self.column}' has {_pieces(found):,} pieces; expected at most {self.vocabulary:,}.")

        def encode(text: str) -> list[int]:
            return [piece + FIRST for piece in found.encode(text, add_special_tokens=marks).ids[:length]]

        return encode


TextStep = Annotated[Ngrams | Subword, Field(discriminator="kind")]


def text_step(column: str, rules: ColumnRules) -> Ngrams | Subword:
    """The step of a text column; a tokenizer that is to be learned is still empty. Raises ConfigError for a tokenizer that is none."""
    if rules.text_encoding == "ngrams":
        return Ngrams(
            column=column, length=rules.text_length, buckets=rules.text_hash_size, words=rules.word_ngrams, chars=rules.char_ngrams,
            lowercase=rules.lowercase,
        )  # fmt: skip
    waiting = Subword(column=column, length=rules.text_length, tokenizer="", vocabulary=0, marks=rules.text_encoding == "pretrained")
    if waiting.marks:
        if rules.tokenizer is None:
            raise ConfigError(
                f"features.text_encoding of '{column}' is pretrained, and no tokenizer is named; expected a folder or a name on the "
                "Hugging Face hub, the same as model.source. Set features.tokenizer."
            )
        return with_tokenizer(waiting, pretrained_tokenizer(rules.tokenizer), rules.tokenizer)
    return waiting if rules.tokenizer is None else with_tokenizer(waiting, _text_of(Path(rules.tokenizer)), rules.tokenizer)


def with_tokenizer(step: Subword, text: str, source: str = "the tokenizer") -> Subword:
    """The step with its tokenizer. Raises ConfigError that names `source` when the text is none, or its marks fill all of the length."""
    try:
        found = read_tokenizer(text)
    except BundleError as error:
        raise ConfigError(f"{source}: {error} Set features.tokenizer.") from None
    own = found.num_special_tokens_to_add(False) if step.marks else 0
    if step.length <= own:
        raise ConfigError(
            f"features.text_length is {step.length}, and the tokenizer adds {own} marks; expected more. Set features.text_length."
        )
    return step.model_copy(update={"tokenizer": text, "vocabulary": _pieces(found)})


def pretrained_tokenizer(source: str) -> str:
    """The JSON of the tokenizer in a folder or on the Hugging Face hub. Runs no code from there. Raises ConfigError as `reaching`."""
    with reaching(source, "features.tokenizer") as (name, revision):
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
        if not found.is_fast:
            raise ValueError(f"{type(found).__name__} has no form that the library tokenizers knows")
        return str(found.backend_tokenizer.to_str())


@lru_cache(maxsize=8)
def read_tokenizer(text: str, length: int | None = None) -> Tokenizer:
    """A tokenizer from its JSON, without padding, which cuts a text to so many pieces with its marks, or not at all. JSON names parts
    of a closed set and can bring no code.

    Raises BundleError when the text is no tokenizer, ConfigError when the library is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ConfigError("features.text_encoding is subword, which needs tokenizers. Run: pip install 'raymlp[text]'") from None
    try:
        found = Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower type
        raise BundleError(f"a tokenizer cannot be read ({error}).") from None
    found.no_padding()
    found.no_truncation() if length is None else found.enable_truncation(length)
    return found


def learned_tokenizer(files: Sequence[str], column: str, rules: ColumnRules) -> str:
    """The JSON of a byte-level BPE tokenizer that has learned from the first training rows of each file, `SAMPLE_ROWS` at most. The same
    rows give the same JSON (which WordPiece of that library does not)."""
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    except ImportError:
        raise ConfigError("features.text_encoding is subword, which needs tokenizers. Run: pip install 'raymlp[text]'") from None
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel()
    found.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if rules.lowercase else [])])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=rules.vocabulary_size, min_frequency=2, show_progress=False, initial_alphabet=alphabet)
    found.train_from_iterator(_sample(files, column, CHARACTERS * rules.text_length), trainer)
    return str(found.to_str())


def _sample(files: Sequence[str], column: str, characters: int) -> Iterator[str]:
    each = -(-SAMPLE_ROWS // len(files))
    for file in files:
        rows = (text for table in parquet.batches(file, [column], rows=min(each, 8_192)) for text in table.column(column).to_pylist())
        yield from (text[:characters] for text in islice(rows, each) if text is not None)


def _pieces(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > TOKENIZER_BYTES:
            raise ConfigError(
                f"features.tokenizer is '{path}', which has more than 64 MiB; expected a tokenizer.json. Set features.tokenizer."
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"features.tokenizer is '{path}', which cannot be read ({error}). Set features.tokenizer.") from None
