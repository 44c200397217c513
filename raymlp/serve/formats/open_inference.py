"""Inference of the Open Inference Protocol (KServe V2) over REST, with its extension for binary tensor data.

Outputs are the columns that batch prediction writes. The routing key comes as the parameter `routing_key`, and the prediction's id goes
back as the parameter `prediction_id`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

from raymlp.config.access import Role
from raymlp.core.errors import RequestError
from raymlp.model.answers import columns_of, names_of
from raymlp.serve.formats.tensors import (
    BYTES,
    Tensor,
    from_bytes,
    inputs_of,
    outputs_of,
    require_datatype,
    rows_in,
    rows_of,
    to_bytes,
)
from raymlp.serve.formats.wire import FALLBACK, Flags, Headers
from raymlp.serve.request import Request, kind_of, routing_key_of

if TYPE_CHECKING:
    from raymlp.model.predictor import Prediction
    from raymlp.serve.app import ModelServer

EXTENSIONS = ("binary_tensor_data",)
JSON_LENGTH = b"inference-header-content-length"
"""Header of a body that goes on after its JSON: the length of the JSON in bytes."""
FIELDS = {"id", "parameters", "inputs", "outputs"}
JSON_TYPES: dict[str, tuple[type, ...]] = {"BOOL": (bool,), "FP": (float, int), "IN": (int,), "UI": (int,), "BY": (str,)}
"""What JSON may have, by the first letters of the datatype."""


def server_metadata(version: str) -> dict[str, Any]:
    """What `/v2` says."""
    return {"name": "raymlp", "version": version, "extensions": list(EXTENSIONS)}


def model_metadata_of(server: ModelServer, version: str | None) -> dict[str, Any] | None:
    """What `/v2/models/NAME` says, of a version that is loaded or of the champion: the tensors that go in, by the contract, and those that
    come out. None while there is nothing to tell of."""
    state, fallback = server.state, server.answering.fallback
    if state is not None:
        loaded = state.loaded[version or state.champion].predictor
        contract, target = loaded.contract, loaded.bundle.plan.target
        task, classes, labels = target.task, target.classes, list(state.loaded)
    elif fallback is not None:
        contract, task, classes, labels = fallback.contract, fallback.task, fallback.classes, []
    else:
        return None
    names = names_of(task, classes, "")[:-2]
    outputs = [{"name": column, "datatype": output_datatype(column), "shape": [-1]} for column in names]
    return {"name": server.name, "versions": labels, "platform": "raymlp", "inputs": inputs_of(contract), "outputs": outputs}


def output_datatype(column: str) -> str:
    """Datatype of an output by its name."""
    return {"label": BYTES, "flagged": "BOOL", "cluster": "INT64", "tokens": "INT64"}.get(column, "FP64")


def error_body(field: str, found: str, expected: str) -> bytes:
    """An error in the protocol's form."""
    return orjson.dumps({"error": f"{field}: found {found}; expected {expected}"})


class Chosen:
    """Which outputs an answer is to have, from a request's `outputs`: all, or those that are named."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)

    def of(self, answers: pa.Table) -> list[Tensor]:
        """The tensors. Raises RequestError for a name that is none."""
        columns = answers.column_names[:-2]
        unknown = next((name for name in self._names if name not in columns), None)
        if unknown is not None:
            raise RequestError(f"outputs.{unknown[:60]}", "not an output", "some of " + ", ".join(columns))
        return outputs_of(answers.select(self._names or columns))


class OpenInference:
    """One request of `POST /v2/models/NAME/infer` and its answer."""

    def __init__(self, name: str, given: Mapping[bytes, bytes], binary: frozenset[str], *, version: str | None = None) -> None:
        """`binary` names the columns that hold bytes."""
        self.headers: Headers = ((b"content-type", b"application/json"),)
        self.role: Role = "predict" if version is None else "operate"
        self.version = version
        self._name, self._binary, self._json_length = name, binary, given.get(JSON_LENGTH)
        self._id = ""
        self._chosen, self._as_bytes, self._all_as_bytes = Chosen(()), dict[str, bool](), False

    def read(self, content: bytes, *, max_rows: int) -> Request:
        content, rest = self._parted(content)
        try:
            told = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise RequestError("body", f"no JSON ({error})", 'JSON in UTF-8: {"inputs": [{"name", "shape", "datatype", "data"}]}') from None
        if type(told) is not dict:
            raise RequestError("body", f"a JSON {kind_of(told)}", 'an object: {"inputs": [...]}')
        unknown = next((name for name in told if name not in FIELDS), None)
        if unknown is not None:
            raise RequestError(unknown[:60], "not a field", "only " + ", ".join(sorted(FIELDS)))
        inputs, parameters = told.get("inputs"), _object("parameters", told.get("parameters"))
        if type(inputs) is not list:
            raise RequestError("inputs", f"a JSON {kind_of(inputs)}", "a list of tensors")
        if type(told.get("id", "")) is not str:
            raise RequestError("id", f"a JSON {kind_of(told['id'])}", "text")
        self._id = told.get("id", "")
        self._all_as_bytes = parameters.get("binary_data_output") is True
        self._ask(told.get("outputs"))
        tensors = []
        for place, tensor in enumerate(inputs):
            read, rest = self._tensor(_object(f"inputs[{place}]", tensor), rest)
            tensors.append(read)
        if rest:
            raise RequestError("body", f"{len(rest):,} bytes that belong to no tensor", "the bytes of the tensors with binary_data_size")
        return Request(rows_of(tensors, max_rows=max_rows), routing_key_of(parameters.get("routing_key")))

    def write(self, answer: Prediction, *, label: str, digest: str, prediction_id: str, flags: Flags) -> bytes:
        parameters: dict[str, Any] = {"prediction_id": prediction_id} | ({"fallback": True} if label == FALLBACK else {})
        outputs, pieces = [], []
        for tensor in self._chosen.of(columns_of(answer, "", label, digest)):
            told: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": [len(tensor.values)]}
            if self._as_bytes.get(tensor.name, self._all_as_bytes):
                pieces.append(to_bytes(tensor))
                told["parameters"] = {"binary_data_size": len(pieces[-1])}
            else:
                told["data"] = tensor.values
            outputs.append(told)
        body = orjson.dumps(
            {
                "model_name": self._name,
                "model_version": label,
                "id": self._id or prediction_id,
                "parameters": parameters,
                "outputs": outputs,
            }
        )
        if pieces:
            self.headers = ((b"content-type", b"application/octet-stream"), (JSON_LENGTH, b"%d" % len(body)))
        return body + b"".join(pieces)

    def refuse(self, field: str, found: str, expected: str) -> bytes:
        return error_body(field, found, expected)

    def _parted(self, content: bytes) -> tuple[bytes, memoryview]:
        """The JSON, and the bytes after it."""
        if self._json_length is None:
            return content, memoryview(b"")
        length = int(self._json_length) if self._json_length.isdigit() and len(self._json_length) < 12 else -1
        if not 0 <= length <= len(content):
            found = self._json_length[:60].decode("latin-1")
            raise RequestError("Inference-Header-Content-Length", found, f"a number from 0 to the body's {len(content):,} bytes")
        return content[:length], memoryview(content)[length:]

    def _ask(self, outputs: Any) -> None:
        """Take down which outputs are wanted, and which of them as bytes."""
        if outputs is None:
            return
        if type(outputs) is not list:
            raise RequestError("outputs", f"a JSON {kind_of(outputs)}", "a list of outputs")
        for place, output in enumerate(outputs):
            told = _object(f"outputs[{place}]", output)
            name = told.get("name")
            if type(name) is not str:
                raise RequestError(f"outputs[{place}].name", f"a JSON {kind_of(name)}", "text")
            wanted = _object(f"outputs[{place}].parameters", told.get("parameters")).get("binary_data")
            self._as_bytes |= {name: wanted} if type(wanted) is bool else {}
        self._chosen = Chosen(list(dict.fromkeys(output["name"] for output in outputs)))

    def _tensor(self, told: dict[str, Any], rest: memoryview) -> tuple[Tensor, memoryview]:
        """A tensor of a request, and the bytes that are left."""
        name = told.get("name")
        if type(name) is not str:
            raise RequestError("inputs", "a tensor without a name", "the name of a column")
        datatype, rows = require_datatype(name, told.get("datatype")), rows_in(name, told.get("shape"))
        size = _object(f"inputs.{name[:60]}.parameters", told.get("parameters")).get("binary_data_size")
        if size is None:
            return Tensor(name, datatype, _values(name, datatype, told, rows)), rest
        if type(size) is not int or not 0 <= size <= len(rest) or "data" in told:
            raise RequestError(
                f"inputs.{name[:60]}.binary_data_size", str(size)[:60], f"a size of at most {len(rest):,} bytes, and no data"
            )
        return from_bytes(name, datatype, bytes(rest[:size]), rows, self._binary), rest[size:]


def _values(name: str, datatype: str, told: dict[str, Any], rows: int) -> list[Any]:
    """The values of a tensor's `data`, flat or with a list for each row."""
    field, values = f"inputs.{name[:60]}.data", told.get("data")
    if type(values) is not list:
        raise RequestError(field, f"a JSON {kind_of(values)}" if "data" in told else "missing", "a list of values")
    if len(told["shape"]) == 2 and values and all(type(value) is list and len(value) == 1 for value in values):
        values = [value[0] for value in values]
    if len(values) != rows:
        raise RequestError(field, f"{len(values):,} values", f"{rows:,}, as the shape says")
    types = JSON_TYPES[datatype if datatype == "BOOL" else datatype[:2]]
    wrong = next((value for value in values if value is not None and type(value) not in types), None)
    if wrong is not None:
        raise RequestError(field, f"a JSON {kind_of(wrong)}", f"values of {datatype}, or null")
    return values


def _object(field: str, value: Any) -> dict[str, Any]:
    if value is not None and type(value) is not dict:
        raise RequestError(field, f"a JSON {kind_of(value)}", "an object")
    return value or {}
