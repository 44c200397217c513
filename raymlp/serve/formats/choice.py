"""Which format a request comes in, by its path and content type."""

from __future__ import annotations

from starlette.types import Scope

from raymlp.data.contract import Contract
from raymlp.serve.formats.arrow import MEDIA_TYPE, ArrowTable
from raymlp.serve.formats.open_inference import OpenInference
from raymlp.serve.formats.wire import JSON_ROWS, Wire


def wire_of(scope: Scope, predict_path: str, contract: Contract | None) -> Wire | None:
    """The format of a POST request; None for one that asks for no prediction. `predict_path` ends with `/NAME:predict`."""
    path = scope["path"]
    if path == predict_path:
        for name, value in scope["headers"]:
            if name == b"content-type":
                return ArrowTable() if value.partition(b";")[0].strip().lower() == MEDIA_TYPE else JSON_ROWS
        return JSON_ROWS
    name = predict_path.rpartition("/")[2].removesuffix(":predict")
    match path.split("/"):
        case ["", "v2", "models", found, "infer"] if found == name:
            version = None
        case ["", "v2", "models", found, "versions", version, "infer"] if found == name and version:
            pass
        case _:
            return None
    return OpenInference(name, dict(scope["headers"]), binary_columns(contract), version=version)


def binary_columns(contract: Contract | None) -> frozenset[str]:
    """Columns that hold bytes."""
    columns = contract.columns.items() if contract else ()
    return frozenset(name for name, rule in columns if rule.type == "bytes")
