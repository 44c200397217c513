"""The endpoint's OpenAPI page, with the real columns of the contract in place of "any object"."""

from __future__ import annotations

from typing import Any

from raymlp.core.records import Task
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.pattern import MAX_TEXT
from raymlp.data.privacy import makes_text

Json = dict[str, Any]
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


def openapi(name: str, contract: Contract, task: Task, *, max_rows: int, needs_key: bool) -> Json:
    """The OpenAPI 3.1 document of one model's endpoint."""
    row = {
        "type": "object",
        "properties": {column: _column(rule, contract.describe(column)) for column, rule in contract.columns.items()},
        "required": [column for column, rule in contract.columns.items() if not rule.nullable],
        "additionalProperties": False,
    }
    request = _record(
        {
            "instances": {"type": "array", "items": {"$ref": "#/components/schemas/Row"}, "minItems": 1, "maxItems": max_rows},
            "routing_key": {"type": "string", "description": "The same key gets the same version; X-Routing-Key does the same."},
        },
        required=["instances"],
    )
    answer = _record(
        {
            "predictions": {"type": "array", "items": _record(ANSWERS[task])},
            "model_version": {"type": "string"},
            "prediction_id": {"type": "string", "format": "uuid"},
            "flags": {
                "type": "array",
                "items": {"type": "array", "items": {"type": "string"}},
                "description": "Fields out of place, a list a row; there when serve.guard is flag and a row has some",
            },
        },
        required=["predictions", "model_version", "prediction_id"],
    )
    told = _record(
        {
            "prediction_id": {"type": "string", "maxLength": 128},
            "row": {"type": "integer", "minimum": 0, "maximum": max_rows - 1, "description": "Place in the request; the first without it"},
            "label": {"type": ["string", "number", "boolean"], "description": "The true answer, as the source has it"},
        },
        required=["prediction_id"],
    ) | {"additionalProperties": {"type": "number"}, "description": "A label, named numbers of the business, or both"}
    feedback = _record({"feedback": {"type": "array", "items": told, "minItems": 1, "maxItems": max_rows}})
    error = _record({"error": _record({part: {"type": "string"} for part in ("field", "found", "expected")})})
    security: list[Json] = [{"key": []}] if needs_key else []
    refused: Json = {"429": {"description": "Over the caller's limit; try again after the seconds in Retry-After"}}
    unread: Json = {"408": _refers("The body did not come in time", "Error"), "413": _refers("The body is too long", "Error")}
    if needs_key:
        refused |= {"401": _refers("The key is missing, wrong or expired", "Error"), "403": _refers("The key has not the role", "Error")}
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": "1"},
        "components": {
            "schemas": {"Row": row, "Request": request, "Answer": answer, "Feedback": feedback, "Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "paths": {
            f"/v1/models/{name}:predict": {
                "post": {
                    "summary": "Predict rows",
                    "security": security,
                    "requestBody": {"required": True, "content": _content("Request")},
                    "responses": {
                        "200": _refers("One prediction a row", "Answer"),
                        **refused,
                        **unread,
                        "422": _refers("The request does not fit the contract", "Error"),
                        "503": {"description": "Too many requests wait; try again after the seconds in Retry-After"},
                    },
                }
            },
            f"/v1/models/{name}:feedback": {
                "post": {
                    "summary": "Tell what came true",
                    "security": security,
                    "requestBody": {"required": True, "content": _content("Feedback")},
                    "responses": {
                        "202": {"description": "How many rows were taken; they are written within seconds"},
                        **refused,
                        **unread,
                        "422": _refers("A row is none, or its label is not one of the model", "Error"),
                        "503": {"description": "Too much waits for the disk, or no model is loaded; try again later"},
                    },
                }
            },
            f"/v1/models/{name}": {"get": {"summary": "Versions and weights", "security": security, "responses": {**_ok(), **refused}}},
            "/healthz": {"get": {"summary": "The process answers", "responses": _ok()}},
            "/readyz": {"get": {"summary": "A model is loaded", "responses": _ok()}},
            "/metrics": {"get": {"summary": "Prometheus text of one replica", "responses": _ok()}},
        },
    }


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


def _content(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _refers(description: str, schema: str) -> Json:
    return {"description": description, "content": _content(schema)}


def _ok() -> Json:
    return {"200": {"description": "OK"}}
