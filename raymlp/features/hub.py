"""Where pretrained parts come from: a folder, or a name on the Hugging Face hub. Training alone reads them, on the driver; a bundle is
complete without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from raymlp.core.errors import ConfigError


class Address(NamedTuple):
    """A folder or a hub name, and what of it: a branch, tag or commit; None is the newest."""

    name: str
    revision: str | None


@contextmanager
def reaching(source: str, setting: str) -> Iterator[Address]:
    """Read from `source`, written as a folder, `name` or `name@revision`, inside. Raises ConfigError that names the setting when
    nothing can be read from there, or the library is not installed."""
    name, _, revision = source.partition("@")
    address = Address(source, None) if Path(source).is_dir() else Address(name, revision or None)
    try:
        with _quiet():
            yield address
    except ImportError:
        raise ConfigError(f"{setting} is '{source}', which needs transformers. Run: pip install 'raymlp[text]'") from None
    except (OSError, ValueError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"{setting} is '{source}', which cannot be read ({reason}); expected a folder of this machine, or a name on the Hugging Face "
            f"hub that can be reached or was fetched before. Where there is no way to the hub, run elsewhere: hf download {address.name} "
            f"--local-dir FOLDER, and set {setting}=FOLDER."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars and reports on the screen."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
