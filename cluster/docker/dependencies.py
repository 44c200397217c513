"""Prints what raymlp needs, for the layer of the image that is made before the code is copied: python dependencies.py tabular gbdt ..."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def dependencies(project: Path, extras: list[str]) -> list[str]:
    """Requirements of the project and of some of its extras. Raises ValueError for an extra that it does not have."""
    content = tomllib.loads(project.read_text())["project"]
    optional: dict[str, list[str]] = content["optional-dependencies"]
    unknown = sorted(set(extras) - set(optional))
    if unknown:
        raise ValueError(f"extras are {', '.join(unknown)}; expected some of {', '.join(optional)}. Set EXTRAS.")
    return [*content["dependencies"], *(requirement for extra in extras for requirement in optional[extra])]


if __name__ == "__main__":
    print("\n".join(dependencies(Path("pyproject.toml"), sys.argv[1:])))
