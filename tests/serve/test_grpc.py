"""The gRPC service's methods on a replica, with the protocol's messages; the way through Ray Serve is in `test_protocols`."""

from __future__ import annotations

import pickle
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from ray import cloudpickle

from raymlp.serve.formats.messages import MESSAGES, METHODS, message_type
from raymlp.serve.formats.tensors import Tensor, from_bytes, to_bytes
from tests.serve.bundles import json_rows, make_bundle
from tests.serve.in_process import KEY, OPERATOR, Replica, replica
from tests.serve.test_formats import DATATYPES, PREDICT

FIELDS = {"FP64": "fp64_contents", "INT64": "int64_contents", "BYTES": "bytes_contents", "BOOL": "bool_contents"}


class Call:
    """What Ray Serve hands to a method beside the message."""

    def __init__(self, key: str | None = KEY, **metadata: str) -> None:
        self._metadata = {**({"authorization": f"Bearer {key}"} if key else {}), **metadata}
        self.code: Any = None
        self.details = ""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(self._metadata.items())

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    folder = tmp_path_factory.mktemp("grpc")
    old, new = make_bundle(folder / "old", seed=1), make_bundle(folder / "new", seed=2)
    with replica(folder / "log", old) as made:
        made.reconfigure({"1": old, "2": new}, {"1": 0.5, "2": 0.5})
        yield made


def filled(rows: int) -> list[dict[str, Any]]:
    """Rows without null, which typed contents cannot say."""
    return [row for row in json_rows(60) if None not in row.values()][:rows]


def infer_request(rows: list[dict[str, Any]], *, raw: bool, **more: Any) -> Any:
    request = message_type("ModelInferRequest")(model_name="flights", **more)
    request.parameters["routing_key"].string_param = "mine"
    for name, datatype in DATATYPES.items():
        values = [row[name] for row in rows]
        tensor = request.inputs.add(name=name, datatype=datatype, shape=[len(rows)])
        texts = [b64decode(value) if name == "shot" else str(value).encode() for value in values]
        if raw and datatype == "BYTES":
            request.raw_input_contents.append(b"".join(len(text).to_bytes(4, "little") + text for text in texts))
        elif raw:
            request.raw_input_contents.append(to_bytes(Tensor(name, datatype, values)))
        else:
            getattr(tensor.contents, FIELDS[datatype]).extend(texts if datatype == "BYTES" else values)
    return request


def infer(here: Replica, request: Any, call: Call | None = None) -> tuple[Any, Call]:
    call = call or Call()
    return here.run(here.server.ModelInfer(request, call)), call


@pytest.mark.parametrize("raw", [False, True])
def test_tensors_are_answered_as_rows_in_json(here: Replica, raw: bool) -> None:
    rows = filled(5)
    expected = here.post(PREDICT, {"instances": rows, "routing_key": "mine"}).json
    response, call = infer(here, infer_request(rows, raw=raw, id="q7"))
    assert call.code is None, call.details
    assert (response.model_name, response.model_version, response.id) == ("flights", expected["model_version"], "q7")
    assert len(response.parameters["prediction_id"].string_param) == 36
    probabilities, labels = ([row[name] for row in expected["predictions"]] for name in ("probability", "label"))
    score, label = response.outputs
    assert (score.name, score.datatype, list(score.shape), label.datatype) == ("score", "FP64", [5], "BYTES")
    if raw:
        found = [
            from_bytes(out.name, out.datatype, content, 5, ())
            for out, content in zip(response.outputs, response.raw_output_contents, strict=True)
        ]
        assert [tensor.values for tensor in found] == [probabilities, labels]
    else:
        assert list(score.contents.fp64_contents) == probabilities
        assert list(label.contents.bytes_contents) == [text.encode() for text in labels]


def test_who_is_not_let_in_and_what_does_not_fit(here: Replica) -> None:
    code, good = grpc.StatusCode, filled(2)

    def refused(request: Any, key: str | None = KEY) -> tuple[Any, str]:
        response, call = infer(here, request, Call(key))
        assert not response.outputs
        return call.code, call.details

    assert refused(infer_request(good, raw=False), None)[0] == code.UNAUTHENTICATED
    assert refused(infer_request(good, raw=False), "wrong")[0] == code.UNAUTHENTICATED
    assert refused(infer_request(good, raw=False, model_version="2"))[0] == code.PERMISSION_DENIED
    assert refused(infer_request(good, raw=False, model_version="9"), OPERATOR)[0] == code.NOT_FOUND
    assert refused(message_type("ModelInferRequest")(model_name="other"))[0] == code.NOT_FOUND
    assert refused(message_type("ModelInferRequest")(model_name="flights")) == (
        code.INVALID_ARGUMENT,
        "inputs: found empty; expected one tensor for each column",
    )
    mixed = infer_request(good, raw=True)
    mixed.inputs[0].contents.fp64_contents.append(1.0)
    assert "one of the two" in refused(mixed)[1]
    short = infer_request(good, raw=True)
    short.raw_input_contents[0] = short.raw_input_contents[0][:-1]
    assert "15 bytes" in refused(short)[1]
    fewer = infer_request(good, raw=True)
    del fewer.raw_input_contents[1]
    assert "raw_input_contents" in refused(fewer)[1]
    other = infer_request(good, raw=False)
    other.inputs[0].datatype = "INT64"
    assert "values in" in refused(other)[1]
    large = infer_request(good, raw=False)
    large.inputs[2].contents.bytes_contents[0] = b"x" * (16 << 20)
    assert refused(large)[0] == code.INVALID_ARGUMENT


def test_one_version_by_its_name(here: Replica) -> None:
    for label in "12":
        response, call = infer(here, infer_request(filled(1), raw=False, model_version=label), Call(OPERATOR))
        assert (call.code, response.model_version) == (None, label)


def test_health_and_metadata(here: Replica) -> None:
    server = here.server

    def ready(name: str, version: str) -> bool:
        return bool(here.run(server.ModelReady(message_type("ModelReadyRequest")(name=name, version=version))).ready)

    assert here.run(server.ServerLive(None)).live
    assert here.run(server.ServerReady(None)).ready
    assert [ready("flights", ""), ready("flights", "2"), ready("flights", "9"), ready("other", "")] == [True, True, False, False]
    assert list(here.run(server.ServerMetadata(None)).extensions) == ["binary_tensor_data"]
    told = here.run(server.ModelMetadata(message_type("ModelMetadataRequest")(name="flights"), Call()))
    assert {tensor.name: tensor.datatype for tensor in told.inputs} == DATATYPES
    call = Call(None)
    here.run(server.ModelMetadata(message_type("ModelMetadataRequest")(name="flights"), call))
    assert call.code == grpc.StatusCode.UNAUTHENTICATED


def test_every_method_has_its_messages() -> None:
    for method in METHODS:
        assert {f"{method}Request", f"{method}Response"} <= set(MESSAGES)
    request = infer_request(filled(1), raw=False)
    assert message_type("ModelInferRequest").FromString(request.SerializeToString()) == request
    for again in (pickle.loads(pickle.dumps(request)), cloudpickle.loads(cloudpickle.dumps(request))):
        assert again == request, "Ray Serve's own proxy pickles it"
