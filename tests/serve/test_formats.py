"""Arrow and the Open Inference Protocol beside JSON rows, through the replica's own application."""

from __future__ import annotations

import random
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from raymlp.model.answers import columns_of
from raymlp.model.predictor import Prediction, Predictor
from raymlp.serve.formats.arrow import MEDIA_TYPE
from raymlp.serve.formats.open_inference import output_datatype
from raymlp.serve.formats.tensors import Tensor, datatype_of, from_bytes, to_bytes
from raymlp.serve.log import read_log
from tests.serve.bundles import SHOTS, json_rows, make_bundle, source_table
from tests.serve.in_process import OPERATOR, Replica, Reply, replica

PREDICT, INFER = "/v1/models/flights:predict", "/v2/models/flights/infer"
ARROW = MEDIA_TYPE.decode()
DATATYPES = {"delay": "FP64", "hours": "INT64", "carrier": "BYTES", "note": "BYTES", "shot": "BYTES", "held": "BOOL", "at": "BYTES"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    folder = tmp_path_factory.mktemp("formats")
    old, new = make_bundle(folder / "old", seed=1), make_bundle(folder / "new", seed=2)
    with replica(folder / "log", old) as made:
        made.reconfigure({"1": old, "2": new}, {"1": 0.5, "2": 0.5})
        yield made


def table(rows: int = 20) -> pa.Table:
    return source_table().slice(0, rows).drop(["late"])


def stream(content: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content)
    return bytes(sink.getvalue())


def arrow(here: Replica, body: bytes, **headers: str) -> Reply:
    return here.call("POST", PREDICT, body, Content_Type=ARROW, X_Routing_Key="mine", **headers)


def tensors(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": datatype, "shape": [len(rows)], "data": [row[name] for row in rows]}
        for name, datatype in DATATYPES.items()
    ]


def by_json(here: Replica, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return dict(here.post(PREDICT, {"instances": rows, "routing_key": "mine"}).json)


# ---------------------------------------------------------------- Arrow


def test_an_arrow_table_is_answered_as_its_rows_in_json(here: Replica) -> None:
    expected, reply = by_json(here, json_rows(20)), arrow(here, stream(table()))
    assert (reply.status, reply.headers["content-type"]) == (200, ARROW)
    answers = pa.ipc.open_stream(reply.body).read_all()
    assert answers.column("score").to_pylist() == [row["probability"] for row in expected["predictions"]]
    assert answers.column("label").to_pylist() == [row["label"] for row in expected["predictions"]]
    version = expected["model_version"]
    assert set(answers.column("model_version").to_pylist()) == {version}
    assert set(answers.column("model_digest").to_pylist()) == {here.server.state.loaded[version].facts["digest"]}  # type: ignore[union-attr]
    told = {name.decode(): value.decode() for name, value in answers.schema.metadata.items()}
    assert told == {"model_version": version, "prediction_id": reply.headers["x-prediction-id"]}


def test_other_types_of_the_same_values_and_left_out_nulls_are_the_same(here: Replica) -> None:
    content = table()
    same = content.set_column(1, "hours", content.column("hours").cast(pa.float32()))
    same = same.set_column(2, "carrier", same.column("carrier").cast(pa.large_string()))
    same = same.set_column(6, "at", same.column("at").cast(pa.timestamp("ms", tz="Asia/Tokyo")))
    assert scores(arrow(here, stream(same))) == scores(arrow(here, stream(content)))
    none = content.set_column(3, "note", pa.nulls(20, pa.string()))
    assert scores(arrow(here, stream(content.drop(["note"])))) == scores(arrow(here, stream(none)))


def scores(reply: Reply) -> list[float]:
    assert reply.status == 200, reply.body
    return list(pa.ipc.open_stream(reply.body).read_all().column("score").to_pylist())


def changed(name: str, values: Any, rows: int = 20) -> pa.Table:
    content = table(rows)
    return content.set_column(content.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (table().drop(["delay"]), "delay"),
        (table().append_column("dealy", pa.array([1.0] * 20)), "did you mean 'delay'"),
        (changed("delay", pa.array(["1.0"] * 20)), "column of type string"),
        (changed("delay", pa.array([float("nan")] * 20)), "not finite"),
        (changed("delay", pa.array([1e300] * 20)), "above"),
        (changed("delay", pa.nulls(20, pa.float64())), "delay is null"),
        (changed("hours", pa.array([1.5] * 20)), "not of type int"),
        (changed("hours", pa.array([2**64 - 1] * 20, pa.uint64())), "hours"),
        (changed("held", pa.array([1] * 20)), "column of type int64"),
        (changed("at", pa.array([2**62] * 20, pa.timestamp("us", tz="UTC"))), "without a date"),
        (changed("at", pa.array(["2013-01-01"] * 20)), "column of type string"),
        (changed("shot", pa.array([b"no image"] * 20)), "shot is"),
        (changed("carrier", pa.array(["x"] * 20).dictionary_encode()), "dictionary"),
        (changed("carrier", pa.array([["x"]] * 20)), "list"),
        (changed("carrier", pa.array(["x"] * 20, pa.string_view())), "string_view"),
        (changed("carrier", pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * 20, pa.binary(16)))), "carrier"),
        (pa.table({"delay": pa.array([], pa.float64())}), "without rows"),
        (pa.concat_tables([table(51)]), "over 50 rows"),
    ],
)
def test_a_table_that_breaks_the_contract_is_refused_in_words(here: Replica, content: pa.Table, words: str) -> None:
    reply = arrow(here, stream(content))
    assert reply.status == 422
    assert words in " ".join(reply.json["error"].values())


def test_a_number_of_rows_that_takes_no_bytes_is_not_believed(here: Replica) -> None:
    small, claimed = stream(pa.table({"note": pa.nulls(3)})), struct.pack("<q", 2**40)
    reply = arrow(here, small.replace(struct.pack("<q", 3), claimed))
    assert small.count(struct.pack("<q", 3)) >= 2
    assert (reply.status, reply.json["error"]["found"]) == (422, "over 50 rows or 1,024 batches")


def test_compressed_buffers_are_refused_unread(here: Replica) -> None:
    for codec in ("zstd", "lz4"):
        reply = arrow(here, stream(table(), compression=codec))
        assert (reply.status, reply.json["error"]["found"]) == (422, "a stream with compressed buffers")


def test_damaged_streams_are_refused_and_nothing_breaks(here: Replica) -> None:
    whole, dice = stream(table(3)), random.Random(0)
    bodies = [whole[:size] for size in range(0, len(whole), 97)] + [b"\xff" * 64, b"\xff\xff\xff\xff\xff\xff\xff\x7f", whole[8:]]
    for _ in range(400):
        body = bytearray(whole)
        for _ in range(dice.choice((1, 2, 8, 32))):
            body[dice.randrange(len(body))] = dice.randrange(256)
        bodies.append(bytes(body))
    ends = range(0, min(len(whole), 1_500), 4)  # lengths and offsets of the metadata, as large as they can be said
    bodies += [whole[:place] + b"\xff\xff\xff\x7f" + whole[place + 4 :] for place in ends]
    statuses = [arrow(here, body).status for body in bodies]
    assert set(statuses) <= {200, 422}
    assert statuses.count(422) > len(bodies) / 2
    assert arrow(here, whole).status == 200


# ---------------------------------------------------------------- Open Inference Protocol


def test_tensors_are_answered_as_rows_in_json(here: Replica) -> None:
    expected = by_json(here, json_rows(20))
    reply = here.post(INFER, {"id": "q1", "inputs": tensors(json_rows(20)), "parameters": {"routing_key": "mine"}})
    assert reply.status == 200, reply.body
    answer = reply.json
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("flights", expected["model_version"], "q1")
    assert [(out["name"], out["datatype"], out["shape"]) for out in answer["outputs"]] == [
        ("score", "FP64", [20]),
        ("label", "BYTES", [20]),
    ]
    assert answer["outputs"][0]["data"] == [row["probability"] for row in expected["predictions"]]
    assert answer["outputs"][1]["data"] == [row["label"] for row in expected["predictions"]]
    assert len(answer["parameters"]["prediction_id"]) == 36


def test_nested_data_a_column_of_one_and_chosen_outputs(here: Replica) -> None:
    rows = json_rows(3)
    inputs = [{**tensor, "shape": [3, 1], "data": [[value] for value in tensor["data"]]} for tensor in tensors(rows)]
    reply = here.post(INFER, {"inputs": inputs, "outputs": [{"name": "label"}], "parameters": {"routing_key": "mine"}})
    assert [out["data"] for out in reply.json["outputs"]] == [[row["label"] for row in by_json(here, rows)["predictions"]]]


def test_tensors_as_bytes_in_and_out(here: Replica) -> None:
    shot = b64encode(SHOTS[0]).decode()
    rows = [{**row, "note": row["note"] or "none", "shot": row["shot"] or shot} for row in json_rows(20)]
    parts, inputs = [], []
    for name, usual in DATATYPES.items():
        datatype = "FP64" if name == "hours" else usual  # whole numbers have no null, which is NaN in others
        values = [row[name] for row in rows]
        raw = to_bytes(Tensor(name, datatype, values))
        if name == "shot":
            pictures = [b64decode(value) for value in values]
            raw = b"".join(len(picture).to_bytes(4, "little") + picture for picture in pictures)
        parts.append(raw)
        inputs.append({"name": name, "datatype": datatype, "shape": [20], "parameters": {"binary_data_size": len(raw)}})
    assert None in [row["hours"] for row in rows]
    head = orjson.dumps({"inputs": inputs, "parameters": {"routing_key": "mine", "binary_data_output": True}})
    reply = here.call("POST", INFER, head + b"".join(parts), Inference_Header_Content_Length=str(len(head)))
    assert reply.status == 200, reply.body
    size = int(reply.headers["inference-header-content-length"])
    answer, rest = orjson.loads(reply.body[:size]), reply.body[size:]
    sizes = [output["parameters"]["binary_data_size"] for output in answer["outputs"]]
    score, label = from_bytes("score", "FP64", rest[: sizes[0]], 20, ()), from_bytes("label", "BYTES", rest[sizes[0] :], 20, ())
    expected = by_json(here, rows)["predictions"]
    assert (score.values, label.values) == ([row["probability"] for row in expected], [row["label"] for row in expected])


ONE = tensors(json_rows(1))


def without(place: int, **changes: Any) -> dict[str, Any]:
    return {"inputs": [{**tensor, **changes} if at == place else tensor for at, tensor in enumerate(ONE)]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "a JSON list"),
        ({}, "inputs: found a JSON null"),
        ({"inputs": []}, "inputs: found empty"),
        ({"inputs": [1]}, "inputs[0]: found a JSON number"),
        ({"inputs": ONE, "more": 1}, "more: found not a field"),
        ({"inputs": [*ONE, ONE[0]]}, "there twice"),
        ({"inputs": ONE[1:]}, "instances[0].delay: found missing"),
        ({"inputs": ONE, "outputs": [{"name": "scoer"}]}, "scoer: found not an output"),
        ({"inputs": ONE, "parameters": {"routing_key": 1}}, "routing_key"),
        (without(0, datatype="FP128"), "datatype: found FP128"),
        (without(0, datatype="BOOL"), "values of BOOL"),
        (without(0, shape=[2]), "2, as the shape says"),
        (without(0, shape=[-1]), "[N] or [N, 1]"),
        (without(0, shape=[2**60]), "as the shape says"),
        (without(0, shape=[1, 2]), "[N] or [N, 1]"),
        (without(0, shape=[2], data=[1.0, 2.0]), "as delay has"),
        (without(0, data="x"), "a list of values"),
        (without(0, data=[None]), "delay: found null"),
        (without(0, name="dealy"), "instances[0].delay: found missing"),
        (without(0, parameters={"binary_data_size": 8}), "binary_data_size"),
        (without(2, datatype="FP64", data=[1.0]), "carrier"),
        ({"inputs": [{**tensor, "shape": [51], "data": tensor["data"] * 51} for tensor in ONE]}, "1 to 50 rows"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_in_the_protocols_form(here: Replica, content: Any, words: str) -> None:
    reply = here.post(INFER, content)
    assert reply.status == 422
    assert list(reply.json) == ["error"]
    assert words in reply.json["error"]


@pytest.mark.parametrize("length", ["-1", "x", "999999", "9" * 30, ""])
def test_a_wrong_length_of_the_json_is_refused(here: Replica, length: str) -> None:
    reply = here.call("POST", INFER, orjson.dumps({"inputs": ONE}), Inference_Header_Content_Length=length)
    assert reply.status == 422
    assert "Inference-Header-Content-Length" in reply.json["error"]


def test_bytes_that_no_tensor_takes_are_refused(here: Replica) -> None:
    head = orjson.dumps({"inputs": ONE})
    reply = here.call("POST", INFER, head + b"\x00" * 9, Inference_Header_Content_Length=str(len(head)))
    assert "9 bytes that belong to no tensor" in reply.json["error"]


def test_a_version_by_its_name_is_for_those_who_operate_and_no_evidence(here: Replica) -> None:
    path, content = "/v2/models/flights/versions/2/infer", {"inputs": ONE}
    assert here.post(path, content).status == 403
    reply = here.post(path, content, key=OPERATOR)
    assert (reply.status, reply.json["model_version"]) == (200, "2")
    assert here.post("/v2/models/flights/versions/9/infer", content, key=OPERATOR).status == 404
    here.server.log.flush()
    logged = {row["prediction_id"]: row for row in read_log(here.server.log.folder).to_pylist()}
    row = logged[reply.json["parameters"]["prediction_id"]]
    assert (row["version"], row["routes"]) == ("2", ""), "rows without routes belong to no rollout"


def test_health_and_metadata(here: Replica) -> None:
    assert here.call("GET", "/v2", key=None).json["extensions"] == ["binary_tensor_data"]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/flights/ready", "/v2/models/flights/versions/2/ready"):
        assert here.call("GET", path, key=None).status == 200
    assert here.call("GET", "/v2/models/flights/versions/9/ready").status == 404
    assert here.call("GET", "/v2/models/flights", key=None).status == 401
    told = here.call("GET", "/v2/models/flights").json
    assert (told["name"], told["versions"], told["platform"]) == ("flights", ["1", "2"], "raymlp")
    assert {tensor["name"]: tensor["datatype"] for tensor in told["inputs"]} == DATATYPES
    assert told["outputs"] == [{"name": "score", "datatype": "FP64", "shape": [-1]}, {"name": "label", "datatype": "BYTES", "shape": [-1]}]
    assert here.call("GET", "/v2/models/other").json == {
        "error": "path: found GET /v2/models/other; expected POST /v1/models/flights:predict, or a page of /openapi.json"
    }


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "clustering", "anomaly", "language"])
def test_metadata_tells_the_datatypes_that_outputs_have(task: Any) -> None:
    wide = {"multiclass": 2, "clustering": 2, "language": 3}.get(task)
    answers = columns_of(Prediction(task, ("a", "b"), np.ones((4, wide)) if wide else np.ones(4)), "", "1", "d")
    for name in answers.column_names[:-2]:
        assert output_datatype(name) == datatype_of(answers.schema.field(name).type), name


@pytest.mark.parametrize("path", [PREDICT, INFER])
def test_no_format_is_read_without_a_key(here: Replica, path: str) -> None:
    for content_type in ("application/json", ARROW):
        reply = here.call("POST", path, b"", key="wrong", Content_Type=content_type)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")


def test_a_body_that_is_too_long_is_413_in_every_format(here: Replica) -> None:
    body = b" " * ((16 << 20) + 1)
    for path, content_type in ((PREDICT, "application/json"), (PREDICT, ARROW), (INFER, "application/json")):
        assert here.call("POST", path, body, Content_Type=content_type).status == 413


def test_the_predictor_agrees(here: Replica) -> None:
    state = here.server.state
    assert state is not None
    expected = {label: Predictor.load(loaded.path).predict(json_rows(20)).scores for label, loaded in state.loaded.items()}
    reply = arrow(here, stream(table()))
    assert scores(reply) == pytest.approx(expected[reply.headers["x-model-version"]], abs=1e-6)
