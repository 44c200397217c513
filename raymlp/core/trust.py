"""Whose code may run: a user's own classes, named by their import path.

Importing runs code, so what is read from a file imports only what is trusted: modules named in `RAYMLP_TRUSTED_MODULES`, and classes
that a config of this process has named.
"""

from __future__ import annotations

import importlib
import os
from typing import TypeVar

from raymlp.core.errors import ConfigError, nearest

TRUSTED = "RAYMLP_TRUSTED_MODULES"
"""Environment variable that names modules and packages whose classes a bundle may run, comma separated."""
Kind = TypeVar("Kind")
_named: set[str] = set()
"""Import paths that a config named in this process: their code has run already, or is about to."""


def path_of(kind: type) -> str:
    """Where a class is imported from."""
    return f"{kind.__module__}.{kind.__qualname__}"


def trusted_modules() -> tuple[str, ...]:
    """Modules and packages that the environment trusts."""
    return tuple(filter(None, (name.strip() for name in os.environ.get(TRUSTED, "").split(","))))


def name(*paths: str) -> None:
    """Trust these classes in this process, since a config of it names them."""
    _named.update(paths)


def is_trusted(path: str) -> bool:
    """Whether a file may make this process import a class from here."""
    return path in _named or serves(path)


def serves(path: str) -> bool:
    """Whether every process with this environment may import a class from here, those that serve among them."""
    return any(path.startswith(f"{module}.") for module in trusted_modules())


def class_of(path: str, base: type[Kind], *, noun: str, expected: str) -> type[Kind]:
    """Import a subclass of `base`. Raises ConfigError when there is none, which calls it a `noun` and names what was `expected`."""
    module, _, last = path.rpartition(".")
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise ConfigError(
            f"{module} cannot be imported ({type(error).__name__}: {error}). Install it, or put its folder on PYTHONPATH."
        ) from error
    kind = getattr(found, last, None)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        others = [other for other, value in vars(found).items() if isinstance(value, type) and issubclass(value, base)]
        what = f"is no {noun}" if hasattr(found, last) else "does not exist"
        raise ConfigError(f"{path} {what}; expected {expected}.{nearest(last, others)}")
    return kind
