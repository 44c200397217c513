"""Patterns of texts in the syntax of RE2, which takes time linear in the text: for batches and for single values."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MAX_TEXT = 1_000
"""Characters of a text that a pattern is tried on; a longer text does not match."""


def whole(pattern: str) -> str:
    """The expression for a text that matches from its first character to its last."""
    return rf"\A(?:{pattern})\z"


def matches(texts: pa.Array, pattern: str) -> Any:
    """Mask of the texts that match as a whole, by RE2; null does not."""
    fits = pc.less_equal(pc.utf8_length(texts), MAX_TEXT)
    return pc.and_(fits, pc.match_substring_regex(texts, whole(pattern))).fill_null(False).to_numpy(zero_copy_only=False)
