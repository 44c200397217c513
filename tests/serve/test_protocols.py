"""The other ways to ask, for real: gRPC, tensors and Arrow through Ray Serve and HAProxy, and requests made to break it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pyarrow as pa
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from raymlp.config.fallback import Rule
from raymlp.config.runtime import Runtime
from raymlp.core.errors import ServingError
from raymlp.core.records import Version
from raymlp.runtime.ports import free_port
from raymlp.serve.deploy import deploy, undeploy
from raymlp.serve.formats.messages import PACKAGE, SERVICE, message_type
from tests.serve.bundles import json_rows, make_bundle, make_config
from tests.serve.fuzzing import broken_requests, by_document, by_hand, example_body, raw
from tests.serve.test_endpoint import KEY, PREDICT, Place
from tests.serve.test_formats import ARROW, INFER, stream, table, tensors
from tests.serve.test_grpc import filled, infer_request

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def place(ray_runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    bundle = make_bundle(tmp_path_factory.mktemp("bundles") / "one", seed=1)
    settings: dict[str, Any] = {"port": free_port(), "grpc_port": free_port(), "fallback": Rule()}
    config = make_config(ray_runtime, max_replicas=1, max_rows_per_request=50, cpus_per_replica=0.1, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYMLP_API_KEYS", KEY)
        yield Place(config, deploy(config, Version("1", str(bundle))), bundle, bundle)
    undeploy("flights")


def ask(place: Place, method: str, request: Any, key: str | None = KEY) -> Any:
    metadata = [("authorization", f"Bearer {key}")] if key else []
    with grpc.insecure_channel(f"127.0.0.1:{place.config.serve.grpc_port}") as channel:
        call = channel.unary_unary(
            f"/{PACKAGE}.{SERVICE}/{method}",
            request_serializer=message_type(f"{method}Request").SerializeToString,
            response_deserializer=message_type(f"{method}Response").FromString,
        )
        return call(request, metadata=metadata, timeout=30, wait_for_ready=True)


def test_grpc_through_the_ingress(place: Place) -> None:
    rows = filled(5)
    expected = place.predict(*rows)[1]["predictions"]
    assert ask(place, "ServerLive", message_type("ServerLiveRequest")(), None).live
    assert ask(place, "ModelReady", message_type("ModelReadyRequest")(name="flights"), None).ready
    assert ask(place, "ModelMetadata", message_type("ModelMetadataRequest")(name="flights")).name == "flights"
    for is_raw in (False, True):
        answer = ask(place, "ModelInfer", infer_request(rows, raw=is_raw))
        assert answer.model_version == "1"
        score = answer.raw_output_contents[0] if is_raw else list(answer.outputs[0].contents.fp64_contents)
        found = memoryview(score).cast("d").tolist() if is_raw else score
        assert found == [row["probability"] for row in expected]


def test_a_grpc_server_tells_its_messages(place: Place) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{place.config.serve.grpc_port}") as channel:
        told = ProtoReflectionDescriptorDatabase(channel)
        assert f"{PACKAGE}.{SERVICE}" in told.get_services()
        request = DescriptorPool(told).FindMessageTypeByName(f"{PACKAGE}.ModelInferRequest")
    assert request.fields_by_name["raw_input_contents"].number == 7


def test_grpc_refuses_in_its_own_codes(place: Place) -> None:
    for key, request, code in (
        (None, infer_request(filled(1), raw=False), grpc.StatusCode.UNAUTHENTICATED),
        (KEY, message_type("ModelInferRequest")(model_name="flights"), grpc.StatusCode.INVALID_ARGUMENT),
        (KEY, message_type("ModelInferRequest")(model_name="other"), grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            ask(place, "ModelInfer", request, key)
        assert refused.value.code() == code
    assert place.predict(*json_rows(1))[0] == 200


def test_a_message_that_is_too_long_is_refused_unread(place: Place) -> None:
    large = infer_request(filled(1), raw=False)
    large.inputs[2].contents.bytes_contents[0] = b"x" * (18 << 20)
    with pytest.raises(grpc.RpcError) as refused:
        ask(place, "ModelInfer", large, None)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_tensors_and_arrow_through_the_ingress(place: Place) -> None:
    expected = place.predict(*json_rows(20))[1]["predictions"]
    body = json.dumps({"inputs": tensors(json_rows(20))}).encode()
    code, answer, _ = place.call("POST", INFER, body)
    assert (code, answer["outputs"][0]["data"]) == (200, [row["probability"] for row in expected])
    import urllib.request

    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": ARROW}
    request = urllib.request.Request(f"{place.endpoint.url}{PREDICT}", stream(table()), headers)
    with urllib.request.urlopen(request) as reply:
        found = pa.ipc.open_stream(reply.read()).read_all()
    assert found.column("score").to_pylist() == [row["probability"] for row in expected]


def test_the_page_of_the_model_lists_protocols(place: Place) -> None:
    told = place.call("GET", "/v1/models/flights")[1]
    assert told["protocols"] == ["rest-v1", "arrow", "open-inference-rest", "open-inference-grpc"]
    assert told["fallback"] is True


def test_the_document_holds_for_whatever_is_sent(place: Place) -> None:
    before = place.report()["pid"]
    counts = by_document(place.endpoint.url, KEY, cases=100, version="1")
    assert {status for _, status in counts} <= {200, 202, 401, 404, 422}, "401: it leaves the key out too; 202 is of feedback"
    assert {status for label, status in counts if "predict" in label} >= {200, 422}
    assert place.report()["pid"] == before


def test_no_body_and_no_broken_request_kills_a_replica(place: Place) -> None:
    before, url = place.report()["pid"], place.endpoint.url
    good = example_body(url)
    assert place.call("POST", PREDICT, good)[0] == 200
    counts = by_hand(url, KEY, 120)
    assert {status for _, status in counts} <= {200, 422}
    for what, head, body, hang_up in broken_requests(PREDICT, KEY, good):
        assert raw(url, head, body, then_close=hang_up) in (0, 400, 408, 422, 431), what
    assert place.predict(*json_rows(1))[0] == 200
    assert place.report()["pid"] == before


def test_another_grpc_port_than_the_running_one_is_refused(place: Place) -> None:
    config = make_config(place.config.runtime, port=place.config.serve.port)
    with pytest.raises(ServingError, match=r"serve\.grpc_port is None"):
        deploy(config, Version("1", str(place.old)))
