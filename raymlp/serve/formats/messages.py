"""Messages of the Open Inference Protocol's gRPC service, by the protocol's names and field numbers.

They are built when this module is imported, from the table below: code that protoc generates asks for a Protobuf at least as new as itself,
which Ray and MLflow have a say in as well. Clients take the protocol's own .proto file, or ask the server (gRPC reflection).
"""

from __future__ import annotations

import copyreg
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE, SERVICE = "inference", "GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
"""Each takes METHODRequest and gives METHODResponse."""

TENSOR = "name: string = 1; datatype: string = 2; shape: *int64 = 3; parameters: @InferParameter = 4; contents: InferTensorContents = 5"
MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live: bool = 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready: bool = 1",
    "ModelReadyRequest": "name: string = 1; version: string = 2",
    "ModelReadyResponse": "ready: bool = 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name: string = 1; version: string = 2; extensions: *string = 3",
    "ModelMetadataRequest": "name: string = 1; version: string = 2",
    "ModelMetadataResponse": "name: string = 1; versions: *string = 2; platform: string = 3; "
    "inputs: *ModelMetadataResponse.TensorMetadata = 4; outputs: *ModelMetadataResponse.TensorMetadata = 5",
    "ModelMetadataResponse.TensorMetadata": "name: string = 1; datatype: string = 2; shape: *int64 = 3",
    "InferParameter": "bool_param: |bool = 1; int64_param: |int64 = 2; string_param: |string = 3; double_param: |double = 4; "
    "uint64_param: |uint64 = 5",
    "InferTensorContents": "bool_contents: *bool = 1; int_contents: *int32 = 2; int64_contents: *int64 = 3; uint_contents: *uint32 = 4; "
    "uint64_contents: *uint64 = 5; fp32_contents: *float = 6; fp64_contents: *double = 7; bytes_contents: *bytes = 8",
    "ModelInferRequest": "model_name: string = 1; model_version: string = 2; id: string = 3; parameters: @InferParameter = 4; "
    "inputs: *ModelInferRequest.InferInputTensor = 5; outputs: *ModelInferRequest.InferRequestedOutputTensor = 6; "
    "raw_input_contents: *bytes = 7",
    "ModelInferRequest.InferInputTensor": TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": "name: string = 1; parameters: @InferParameter = 2",
    "ModelInferResponse": "model_name: string = 1; model_version: string = 2; id: string = 3; parameters: @InferParameter = 4; "
    "outputs: *ModelInferResponse.InferOutputTensor = 5; raw_output_contents: *bytes = 6",
    "ModelInferResponse.InferOutputTensor": TENSOR,
}
"""Fields by message, as `name: type = number`: `*` is repeated, `@` a map from text, `|` one of the message's only choice."""

FIELD = descriptor_pb2.FieldDescriptorProto
PLAIN = {
    "bool": FIELD.TYPE_BOOL, "int32": FIELD.TYPE_INT32, "int64": FIELD.TYPE_INT64, "uint32": FIELD.TYPE_UINT32, "uint64": FIELD.TYPE_UINT64,
    "float": FIELD.TYPE_FLOAT, "double": FIELD.TYPE_DOUBLE, "string": FIELD.TYPE_STRING, "bytes": FIELD.TYPE_BYTES,
}  # fmt: skip


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="raymlp/open_inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for name, fields in MESSAGES.items():
        parent, _, own = name.rpartition(".")
        message = made[name] = (made[parent].nested_type if parent else file.message_type).add(name=own)
        for text in filter(None, fields.split("; ")):
            _add_field(message, name, *text.replace(":", "").replace("= ", "").split())
    service = file.service.add(name=SERVICE)
    for method in METHODS:
        service.method.add(name=method, input_type=f".{PACKAGE}.{method}Request", output_type=f".{PACKAGE}.{method}Response")
    return file


def _add_field(message: Any, owner: str, name: str, kind: str, number: str) -> None:
    mark, kind = (kind[0], kind[1:]) if kind[0] in "*@|" else ("", kind)
    label = FIELD.LABEL_REPEATED if mark in ("*", "@") and mark else FIELD.LABEL_OPTIONAL
    field = message.field.add(name=name, number=int(number), label=label)
    if mark == "@":
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=FIELD.LABEL_OPTIONAL, type=FIELD.TYPE_STRING)
        entry.field.add(name="value", number=2, label=FIELD.LABEL_OPTIONAL, type=FIELD.TYPE_MESSAGE, type_name=f".{PACKAGE}.{kind}")
        field.type, field.type_name = FIELD.TYPE_MESSAGE, f".{PACKAGE}.{owner}.{entry.name}"
    elif kind in PLAIN:
        field.type = PLAIN[kind]
    else:
        field.type, field.type_name = FIELD.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    if mark == "|":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0


def _pool() -> Any:
    """The default pool, where gRPC reflection looks, with the messages in it; another package's of the same names do as well."""
    pool = descriptor_pool.Default()
    try:
        pool.FindMessageTypeByName(f"{PACKAGE}.ModelInferRequest")
    except KeyError:
        pool.AddSerializedFile(_file().SerializeToString())
    return pool


POOL = _pool()


def _parsed(name: str, content: bytes) -> Any:
    return message_type(name).FromString(content)


def _reduced(message: Any) -> tuple[Any, tuple[str, bytes]]:
    return _parsed, (message.DESCRIPTOR.name, message.SerializeToString())


def message_type(name: str) -> Any:
    """The class of a message."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


for _method in METHODS:
    copyreg.pickle(message_type(f"{_method}Request"), _reduced)  # Ray Serve's own proxy hands requests on by pickle
