"""What every section of the config has in common: frozen, strict, and documented field by field."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


def _as_text(value: Any) -> Any:
    """YAML reads 32 and true as a number and a boolean where text is meant."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


AsText = BeforeValidator(_as_text)
Text = Annotated[str, AsText]


class Section(BaseModel):
    """One part of the config. Unknown keys are refused; a built section never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


def import_path(path: str) -> str:
    """The path of a class, as it is. Raises ValueError when it is none."""
    if "." not in path or not all(name.isidentifier() for name in path.split(".")):
        raise ValueError(f"'{path}' is no import path; expected a module and a class, as mypackage.module.Name")
    return path


ImportPath = Annotated[str, AfterValidator(import_path)]
"""A module and a class in it."""
