"""The endpoint's OpenAPI document, with the real columns of the contract in place of "any object"."""

from __future__ import annotations

from typing import Any

import raymlp
from raymlp.core.records import Task
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.pattern import MAX_TEXT
from raymlp.data.privacy import makes_text
from raymlp.model.answers import names_of
from raymlp.serve.formats.arrow import MEDIA_TYPE
from raymlp.serve.formats.tensors import DATATYPES, inputs_of
from raymlp.serve.probe import example_row
from raymlp.serve.request import MAX_KEY_CHARACTERS

Json = dict[str, Any]
ARROW = MEDIA_TYPE.decode()
TYPES: dict[str, Json] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer", "format": "int64"},
    "float": {"type": "number", "format": "double"},
    "string": {"type": "string"},
    "timestamp": {"type": "string", "format": "date-time"},
    "bytes": {"type": "string", "format": "byte", "contentEncoding": "base64"},
}
ANSWERS: dict[Task, Json] = {
    "binary": {"probability": {"type": "number", "minimum": 0, "maximum": 1}, "label": {"type": "string"}},
    "multiclass": {"probabilities": {"type": "object", "additionalProperties": {"type": "number"}}, "label": {"type": "string"}},
    "regression": {"value": {"type": "number"}},
    "clustering": {"cluster": {"type": "integer", "minimum": 0}, "distance": {"type": "number", "minimum": 0}},
    "anomaly": {"score": {"type": "number", "description": "Higher for what is more unusual"}, "flagged": {"type": "boolean"}},
    "language": {
        "log_likelihood": {"type": "number", "maximum": 0, "description": "Of all tokens together, in nats"},
        "tokens": {"type": "integer", "minimum": 0},
        "token_loss": {"type": ["number", "null"], "minimum": 0, "description": "Negative log-likelihood of a token, in nats"},
        "perplexity": {"type": ["number", "null"], "minimum": 1},
    },
}

HEARING = ("401", "408", "413", "503")
"""Refusals of the registry's messages."""


def openapi(name: str, contract: Contract, task: Task, *, max_rows: int, needs_key: bool, classes: tuple[str, ...] = ()) -> Json:
    """The OpenAPI 3.1 document of one model's endpoint."""
    security: list[Json] = [{"key": []}] if needs_key else []
    model, versioned = f"/v2/models/{name}", f"/v2/models/{name}/versions/{{version}}"
    routing: Json = {
        "name": "X-Routing-Key",
        "in": "header",
        "description": "The same key gets the same version.",
        "schema": {"type": "string"},
    }
    version: Json = {"name": "version", "in": "path", "required": True, "description": "A version that is loaded.", "schema": _text()}
    infer: Json = {
        "tags": ["Open Inference Protocol"],
        "security": security,
        "requestBody": {"required": True, "content": _json_of("InferRequest")},
        "responses": {
            "200": _answer("One tensor for each output", _json_of("InferAnswer")),
            **_refusals("InferError", needs_key=needs_key),
        },
    }
    feedback: Json = {
        "summary": "Tell what came true",
        "description": "For keys with the role feedback. The first answer to a row stays; ids are not looked up.",
        "operationId": "feedback",
        "tags": ["Predictions"],
        "security": security,
        "requestBody": {"required": True, "content": _json_of("Feedback")},
        "responses": {
            "202": {"description": "How many rows were taken; they are written within seconds"},
            **_refusals("Error", needs_key=needs_key),
        },
    }
    named: tuple[tuple[str, list[Json]], ...] = ((model, []), (versioned, [version]))
    read: Json = {"tags": ["Open Inference Protocol"]}
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": raymlp.__version__, "description": "Predictions of one model, by the contract of its columns."},
        "servers": [{"url": "/"}],
        "tags": [{"name": "Predictions"}, {"name": "Open Inference Protocol"}, {"name": "Endpoint"}],
        "components": {
            "schemas": _schemas(contract, task, classes, max_rows=max_rows),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "One of the endpoint's API keys"}},
        },
        "paths": {
            f"/v1/models/{name}:predict": {
                "post": {
                    "summary": "Predict rows",
                    "description": "Rows as JSON, or a table as an Arrow stream, which is answered as a table.",
                    "operationId": "predict",
                    "tags": ["Predictions"],
                    "security": security,
                    "parameters": [routing],
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": _schema("Request") | {"example": _example(contract)}, ARROW: {}},
                    },
                    "responses": {
                        "200": _answer("One prediction a row", _json_of("Answer") | {ARROW: {}}),
                        **_refusals("Error", needs_key=needs_key),
                    },
                }
            },
            f"/v1/models/{name}:feedback": {"post": feedback},
            f"/v1/models/{name}:registry": {
                "post": {
                    "summary": "Hear from MLflow that an alias was moved",
                    "description": "A webhook of MLflow, signed with the secret that both hold; keys open nothing here.",
                    "operationId": "registry",
                    "tags": ["Endpoint"],
                    "requestBody": {"required": True, "content": {"application/json": {}}},
                    "responses": {
                        "202": {"description": "The registry is looked at, if the alias is one of this model"},
                        **{status: answer for status, answer in _refusals("Error", needs_key=True).items() if status in HEARING},
                    },
                }
            },
            f"/v1/models/{name}": {
                "get": _page("Versions, weights and protocols", "Endpoint", security)
                | {"responses": {**_ok("application/json"), **(_locked("Error") if needs_key else {})}}
            },
            f"{model}/infer": {"post": infer | {"summary": "Predict rows as tensors", "operationId": "infer", "parameters": [routing]}},
            f"{versioned}/infer": {
                "post": infer
                | {
                    "summary": "Ask one version, past its share of traffic",
                    "description": "For keys with the role operate; such answers are no evidence of a rollout.",
                    "operationId": "inferByVersion",
                    "parameters": [version, routing],
                    "responses": infer["responses"] | _absent([version]),
                }
            },
            **{
                path: {
                    "get": read
                    | _page("The model's tensors", "Open Inference Protocol", security)
                    | {"parameters": parameters}
                    | {"responses": _ok("application/json") | (_locked("InferError") if needs_key else {}) | _absent(parameters)}
                }
                for path, parameters in named
            },
            **{
                f"{path}/ready": {
                    "get": read
                    | {"summary": "The model is loaded", "parameters": parameters}
                    | {"responses": _ok("application/json") | _loading() | _absent(parameters)}
                }
                for path, parameters in named
            },
            "/v2": {"get": read | {"summary": "The server's name and extensions", "responses": _ok("application/json")}},
            "/v2/health/live": {"get": read | {"summary": "The process answers", "responses": _ok("application/json")}},
            "/v2/health/ready": {"get": read | {"summary": "A model is loaded", "responses": _ok("application/json") | _loading()}},
            "/healthz": {"get": _page("The process answers", "Endpoint") | {"responses": _ok("application/json")}},
            "/readyz": {"get": _page("A model is loaded", "Endpoint") | {"responses": _ok("application/json") | _loading()}},
            "/metrics": {"get": _page("Prometheus text of one replica", "Endpoint") | {"responses": _ok("text/plain")}},
            "/": {"get": _page("A form to try the endpoint", "Endpoint") | {"responses": _ok("text/html")}},
        },
    }


def _schemas(contract: Contract, task: Task, classes: tuple[str, ...], *, max_rows: int) -> Json:
    row = {
        "type": "object",
        "properties": {column: _column(rule, contract.describe(column)) for column, rule in contract.columns.items()},
        "required": [column for column, rule in contract.columns.items() if not rule.nullable],
        "additionalProperties": False,
    }
    rows = {"type": "array", "items": {"$ref": "#/components/schemas/Row"}, "minItems": 1, "maxItems": max_rows}
    key = {"type": ["string", "null"], "maxLength": MAX_KEY_CHARACTERS, "description": "The same key gets the same version."}
    answer = {
        "predictions": {"type": "array", "items": _record(ANSWERS[task])},
        "model_version": _text("What answered; `fallback` when no version could"),
        "prediction_id": {"type": "string", "format": "uuid"},
        "fallback": {"const": True, "description": "There when no version could answer, and the declared fallback did"},
        "flags": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "string"}},
            "description": "Fields out of place, a list a row; there when serve.guard is flag and a row has some",
        },
    }
    return {
        "Row": row,
        "Feedback": _feedback(max_rows),
        "Request": _record({"instances": rows, "routing_key": key}, required=["instances"]) | {"additionalProperties": False},
        "Answer": _record(answer, required=["predictions", "model_version", "prediction_id"]),
        "Error": _record({"error": _record({part: _text() for part in ("field", "found", "expected")})}),
        **_tensors(contract, task, classes, max_rows=max_rows),
    }


def _feedback(max_rows: int) -> Json:
    told = _record(
        {
            "prediction_id": {"type": "string", "minLength": 1, "maxLength": 128},
            "row": {"type": "integer", "minimum": 0, "maximum": max_rows - 1, "description": "Place in the request; the first without it"},
            "label": {"type": ["string", "number", "boolean", "null"], "description": "The true answer, as the source has it"},
        },
        required=["prediction_id"],
    ) | {"additionalProperties": {"type": "number"}, "description": "A label, named numbers of the business, or both"}
    rows = {"type": "array", "items": told, "minItems": 1, "maxItems": max_rows}
    return _record({"feedback": rows}) | {
        "additionalProperties": False,
        "examples": [{"feedback": [{"prediction_id": "0b5c", "revenue": 1}]}],
    }


def _tensors(contract: Contract, task: Task, classes: tuple[str, ...], *, max_rows: int) -> Json:
    """Schemas of the Open Inference Protocol."""
    length = {"type": "integer", "minimum": 1, "maximum": max_rows}
    shape = {"type": "array", "prefixItems": [length, {"const": 1}], "minItems": 1, "maxItems": 2, "items": False}
    tensor = _record(
        {
            "name": {"enum": list(contract.columns)},
            "shape": shape,
            "datatype": {"enum": list(DATATYPES)},
            "parameters": _record({"binary_data_size": {"type": "integer", "minimum": 0}}, required=[]),
            "data": {"type": "array", "items": {}, "description": "N values, or N lists of one"},
        },
        required=["name", "shape", "datatype"],
    )
    asked = _record(
        {
            "id": _text("Given back as it is"),
            "parameters": _record(
                {"routing_key": _text("The same key gets the same version."), "binary_data_output": _flag()}, required=[]
            ),
            "inputs": {"type": "array", "items": tensor, "minItems": 1},
            "outputs": {
                "type": "array",
                "items": _record(
                    {
                        "name": {"enum": list(names_of(task, classes, "")[:-2])},
                        "parameters": _record({"binary_data": _flag()}, required=[]),
                    },
                    required=["name"],
                ),
            },
        },
        required=["inputs"],
    )
    inputs = [
        {"name": tensor["name"], "shape": [1], "datatype": tensor["datatype"], "data": [example_row(contract)[tensor["name"]]]}
        for tensor in inputs_of(contract)
    ]
    output = {"name": _text(), "datatype": _text(), "shape": {"type": "array", "items": {"type": "integer"}}, "data": {"type": "array"}}
    answer = {
        "model_name": _text(),
        "model_version": _text("What answered; `fallback` when no version could"),
        "id": _text(),
        "parameters": _record(
            {"prediction_id": {"type": "string", "format": "uuid"}, "fallback": {"const": True}}, required=["prediction_id"]
        ),
        "outputs": {"type": "array", "items": _record(output, required=["name", "datatype", "shape"])},
    }
    return {
        "InferRequest": asked | {"additionalProperties": False, "examples": [{"inputs": inputs}]},
        "InferAnswer": _record(answer),
        "InferError": _record({"error": _text()}),
    }


def _example(contract: Contract) -> Json:
    return {"instances": [example_row(contract)]}


def _refusals(error: str, *, needs_key: bool) -> Json:
    """Every status of a request for predictions that is not answered."""
    later = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 0}}}
    return {
        **(_locked(error) if needs_key else {}),
        "408": {"description": "The body did not come in time, or the answer took longer than the client allows"},
        "413": _answer("The body is too long", _json_of(error)),
        "422": _answer("The request does not fit the contract", _json_of(error)),
        "429": {"description": "Too many requests; try again later", "headers": later},
        "500": _answer("The model failed; the replica's log has the cause", _json_of(error)),
        "503": {"description": "No model is ready, or too many requests wait; try again later", "headers": later},
    }


def _locked(error: str) -> Json:
    asks = {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}}
    return {
        "401": _answer("The key is missing, wrong or expired", _json_of(error)) | {"headers": asks},
        "403": _answer("The key has not the role", _json_of(error)),
    }


def _absent(parameters: list[Json]) -> Json:
    return {"404": _answer("The version is not loaded", _json_of("InferError"))} if parameters else {}


def _loading() -> Json:
    return {"503": {"description": "It is loading"}}


def _page(summary: str, tag: str, security: list[Json] | None = None) -> Json:
    return {"summary": summary, "tags": [tag], **({"security": security} if security is not None else {})}


def _column(rule: ColumnContract, description: str) -> Json:
    kind = dict(TYPES[rule.type])
    if rule.privacy is not None and makes_text(rule.privacy):
        return {"type": ["string", "integer", *(["null"] if rule.nullable else [])], "description": description}
    if rule.nullable:
        kind["type"] = [kind["type"], "null"]
    kind |= {part: value for part, value in (("minimum", rule.minimum), ("maximum", rule.maximum)) if value is not None}
    if rule.categories and rule.type == "string":
        kind["enum"] = [*rule.categories, *([None] if rule.nullable else [])]
    if rule.pattern:
        kind |= {"pattern": f"^(?:{rule.pattern})$", "maxLength": MAX_TEXT}
    if rule.example is not None:
        kind["examples"] = [rule.example]
    return {**kind, "description": description}


def _record(properties: Json, *, required: list[str] | None = None) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required}


def _text(description: str = "") -> Json:
    return {"type": "string", **({"description": description} if description else {})}


def _flag() -> Json:
    return {"type": "boolean"}


def _schema(name: str) -> Json:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _json_of(name: str) -> Json:
    return {"application/json": _schema(name)}


def _answer(description: str, content: Json) -> Json:
    return {"description": description, "content": content}


def _ok(media_type: str) -> Json:
    return {"200": {"description": "OK", "content": {media_type: {}}}}
