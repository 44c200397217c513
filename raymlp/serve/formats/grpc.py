"""The Open Inference Protocol's gRPC service, as methods that Ray Serve's gRPC ingress calls.

A key comes in the metadata as `authorization: Bearer KEY`, the routing key as `x-routing-key` or as the parameter `routing_key`. Tensors
come typed or raw, and go back the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

import raymlp
from raymlp.config.access import Role
from raymlp.core.errors import RequestError
from raymlp.model.answers import columns_of
from raymlp.serve.formats.choice import binary_columns
from raymlp.serve.formats.messages import METHODS, PACKAGE, SERVICE, message_type
from raymlp.serve.formats.open_inference import Chosen, model_metadata_of, server_metadata
from raymlp.serve.formats.tensors import BYTES, Tensor, from_bytes, no_nan, require_datatype, rows_in, rows_of, to_bytes, told
from raymlp.serve.formats.wire import FALLBACK, Flags, Headers
from raymlp.serve.request import Request, routing_key_of

if TYPE_CHECKING:
    from raymlp.model.predictor import Prediction
    from raymlp.serve.app import ModelServer

CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", BYTES: "bytes_contents",
}  # fmt: skip
"""Where values of a datatype are that do not come raw; FP16 comes raw alone."""


def add_to_server(servicer: Any, server: Any) -> None:
    """Tell a gRPC server of the service: what Ray Serve is given as a servicer function."""
    import grpc

    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name),
            request_deserializer=message_type(f"{name}Request").FromString,
            response_serializer=message_type(f"{name}Response").SerializeToString,
        )
        for name in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"{PACKAGE}.{SERVICE}", handlers),))


class InferenceService:
    """The methods; a `ModelServer` has them. Ray Serve finds them by the protocol's names."""

    @property
    def _server(self) -> ModelServer:
        return cast("ModelServer", self)

    async def ServerLive(self, request: Any) -> Any:  # noqa: N802
        return message_type("ServerLiveResponse")(live=True)

    async def ServerReady(self, request: Any) -> Any:  # noqa: N802
        return message_type("ServerReadyResponse")(ready=self._server.is_ready)

    async def ModelReady(self, request: Any) -> Any:  # noqa: N802
        ready = request.name == self._server.name and (self._server.holds(request.version) if request.version else self._server.is_ready)
        return message_type("ModelReadyResponse")(ready=ready)

    async def ServerMetadata(self, request: Any) -> Any:  # noqa: N802
        return message_type("ServerMetadataResponse")(**server_metadata(raymlp.__version__))

    async def ModelMetadata(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802
        refused = self._server.admission.refused(_headers(grpc_context), "predict")
        response = message_type("ModelMetadataResponse")
        if refused is not None:
            return _refuse(grpc_context, refused.status, f"found {refused.found}; expected {refused.expected}", response)
        if request.name != self._server.name or (request.version and not self._server.holds(request.version)):
            return _refuse(grpc_context, 404, f"no model '{request.name[:60]}' of that version", response)
        told = model_metadata_of(self._server, request.version or None)
        return response(**told) if told else _refuse(grpc_context, 503, "not loaded", response)

    async def ModelInfer(self, request: Any, grpc_context: Any) -> Any:  # noqa: N802
        response = message_type("ModelInferResponse")
        if request.model_name != self._server.name or (request.model_version and not self._server.holds(request.model_version)):
            return _refuse(grpc_context, 404, f"no model '{request.model_name[:60]}' of that version", response)
        if request.ByteSize() > (most := self._server.admission.access.limits.body_bytes):
            return _refuse(grpc_context, 413, f"over {most:,} bytes; expected fewer rows a request", response)
        wire = GrpcInference(request, binary_columns(self._server.contract))
        status, body = await self._server.answering.answer(self._server.state, list(_headers(grpc_context).items()), _nothing, wire)
        return wire.response if status == 200 else _refuse(grpc_context, status, body.decode(), response)


class GrpcInference:
    """One ModelInfer call; `response` is there once it is answered."""

    headers: Headers = ()

    def __init__(self, request: Any, binary: frozenset[str]) -> None:
        """`binary` names the columns that hold bytes."""
        self.version: str | None = request.model_version or None
        self.role: Role = "operate" if self.version else "predict"
        self.response: Any = None
        self._request, self._binary = request, binary

    def read(self, content: bytes, *, max_rows: int) -> Request:
        request, raw = self._request, self._request.raw_input_contents
        if raw and len(raw) != len(request.inputs):
            raise RequestError("raw_input_contents", f"{len(raw):,} contents", f"{len(request.inputs):,}: one for each of inputs")
        tensors = [self._tensor(tensor, raw[place] if raw else None) for place, tensor in enumerate(request.inputs)]
        key = request.parameters["routing_key"].string_param if "routing_key" in request.parameters else None
        return Request(rows_of(tensors, max_rows=max_rows), routing_key_of(key))

    def write(self, answer: Prediction, *, label: str, digest: str, prediction_id: str, flags: Flags) -> bytes:
        chosen = Chosen(list(dict.fromkeys(output.name for output in self._request.outputs)))
        tensors = chosen.of(columns_of(answer, "", label, digest))
        response = message_type("ModelInferResponse")(model_name=self._request.model_name, model_version=label)
        response.id = self._request.id or prediction_id
        response.parameters["prediction_id"].string_param = prediction_id
        if label == FALLBACK:
            response.parameters["fallback"].bool_param = True
        for tensor in tensors:
            out = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=[len(tensor.values)])
            if self._request.raw_input_contents:
                response.raw_output_contents.append(to_bytes(tensor))
            else:
                getattr(out.contents, CONTENTS[tensor.datatype]).extend(_typed(tensor))
        self.response = response
        return b""

    def refuse(self, field: str, found: str, expected: str) -> bytes:
        return f"{field}: found {found}; expected {expected}".encode()

    def _tensor(self, tensor: Any, raw: bytes | None) -> Tensor:
        name, datatype = tensor.name, require_datatype(tensor.name, tensor.datatype)
        rows = rows_in(name, list(tensor.shape))
        if raw is not None:
            if tensor.HasField("contents") and tensor.contents.ByteSize():
                raise RequestError(f"inputs.{name[:60]}.contents", "contents beside raw_input_contents", "one of the two")
            return from_bytes(name, datatype, raw, rows, self._binary)
        field = CONTENTS.get(datatype)
        values = list(getattr(tensor.contents, field)) if field else []
        others = [part.name for part, _ in tensor.contents.ListFields() if part.name != field]
        if len(values) != rows or others:
            found = f"{len(values):,} values" if not others else f"values in {others[0]}"
            raise RequestError(f"inputs.{name[:60]}.contents", found, f"{rows:,} values in {field or 'raw_input_contents'}")
        if datatype == BYTES:
            return Tensor(name, datatype, [told(name, value, self._binary) for value in values])
        return Tensor(name, datatype, no_nan(values))


def _typed(tensor: Tensor) -> list[Any]:
    if tensor.datatype == BYTES:
        return [("" if value is None else str(value)).encode() for value in tensor.values]
    return [np.nan if value is None else value for value in tensor.values]


def _headers(context: Any) -> dict[bytes, bytes]:
    """A call's metadata as HTTP has headers."""
    metadata: Mapping[str, Any] = dict(context.invocation_metadata())
    return {name.encode(): value if isinstance(value, bytes) else value.encode() for name, value in metadata.items()}


def _refuse(context: Any, status: int, words: str, response: Any) -> Any:
    """An empty response under gRPC's code for a status of HTTP."""
    import grpc

    codes = {
        401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED, 404: grpc.StatusCode.NOT_FOUND,
        422: grpc.StatusCode.INVALID_ARGUMENT, 413: grpc.StatusCode.INVALID_ARGUMENT, 429: grpc.StatusCode.RESOURCE_EXHAUSTED,
        503: grpc.StatusCode.UNAVAILABLE,
    }  # fmt: skip
    context.set_code(codes.get(status, grpc.StatusCode.INTERNAL))
    context.set_details(words[:1_000])
    return response()


async def _nothing() -> dict[str, Any]:
    """A body for a request that has none: gRPC read it already."""
    return {"type": "http.request", "body": b""}
