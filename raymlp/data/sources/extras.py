"""Optional packages, imported where a source needs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from raymlp.core.errors import ConfigError


def load(module: str, extra: str) -> Any:
    """The module. Raises ConfigError that names the extra when it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"This data.source needs {module} ({error}). Install it: pip install 'raymlp[{extra}]'.") from None
