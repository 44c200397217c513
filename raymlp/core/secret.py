"""Secrets of this process, from its environment."""

from __future__ import annotations

import os

from raymlp.core.errors import ConfigError

MIN_CHARACTERS = 32


def environment_secret(variable: str, reason: str) -> str:
    """The secret in a variable. Raises ConfigError that names the variable, and why it is needed, when it is missing or short."""
    secret = os.environ.get(variable, "")
    if len(secret) < MIN_CHARACTERS:
        found = f"has {len(secret)} characters" if secret else "is not set"
        raise ConfigError(
            f"{variable} {found}, and {reason}; expected a secret of at least {MIN_CHARACTERS} characters. "
            f"Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))', keep it safe, and set {variable}."
        )
    return secret
