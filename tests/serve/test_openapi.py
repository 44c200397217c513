"""The document is valid, and its examples fit it and the contract."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from raymlp.core.records import Task
from raymlp.data.contract import ColumnContract, Contract
from raymlp.data.contract_row import row_checker
from raymlp.serve.openapi import openapi

TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression", "clustering", "anomaly", "language")
CONTRACT = Contract(
    columns={
        "hour": ColumnContract(type="int", nullable=False, minimum=0, maximum=23, example=9),
        "delay": ColumnContract(type="float", nullable=False, minimum=-60.0, maximum=600.0),
        "carrier": ColumnContract(type="string", nullable=False, categories=("AA", "UA"), example="UA"),
        "tail": ColumnContract(type="string", nullable=False, pattern="N[0-9]+", example="N14228"),
        "held": ColumnContract(type="bool"),
        "at": ColumnContract(type="timestamp", nullable=False, example="2013-07-01T09:00:00+00:00"),
        "shot": ColumnContract(type="bytes", max_pixels=100),
    }
)


def document(task: Task = "binary", *, needs_key: bool = True) -> dict[str, Any]:
    return openapi("flights", CONTRACT, task, max_rows=5, needs_key=needs_key, classes=("a", "b"))


@pytest.mark.parametrize("task", TASKS)
def test_the_document_is_valid_openapi(task: Task) -> None:
    for needs_key in (True, False):
        OpenAPIV31SpecValidator(document(task, needs_key=needs_key)).validate()


def resolved(page: dict[str, Any], name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": page["components"]})


def test_its_examples_fit_the_document_and_the_contract() -> None:
    page = document()
    example = page["paths"]["/v1/models/flights:predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    resolved(page, "Request").validate(example)
    (row,) = example["instances"]
    assert row_checker(CONTRACT)(row, "example")["tail"] == "N14228"
    (tensors,) = page["components"]["schemas"]["InferRequest"]["examples"]
    resolved(page, "InferRequest").validate(tensors)
    assert {tensor["name"]: tensor["data"][0] for tensor in tensors["inputs"]} == row


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"hour": 24}, False),
        ({"carrier": "DL"}, False),
        ({"tail": "14228"}, False),
        ({"held": None}, True),
        ({"more": 1}, False),
    ],
)
def test_the_schema_of_a_row_says_what_the_contract_says(change: dict[str, Any], fits: bool) -> None:
    page = document()
    row = {"hour": 9, "delay": 0.0, "carrier": "UA", "tail": "N14228", "at": "2013-07-01T09:00:00Z", **change}
    assert resolved(page, "Row").is_valid(row) == fits


def test_every_operation_says_who_may_ask_and_what_it_refuses() -> None:
    paths = document()["paths"]
    assert set(paths["/v1/models/flights:predict"]["post"]["responses"]) == {"200", "401", "403", "408", "413", "422", "429", "500", "503"}
    assert "404" in paths["/v2/models/flights/versions/{version}/infer"]["post"]["responses"]
    locked = {path for path, item in paths.items() for operation in item.values() if operation.get("security")}
    assert locked == {
        "/v1/models/flights:predict", "/v1/models/flights", "/v2/models/flights/infer", "/v2/models/flights/versions/{version}/infer",
        "/v2/models/flights", "/v2/models/flights/versions/{version}", "/v1/models/flights:feedback",
    }  # fmt: skip
    assert not any(operation.get("security") for item in document(needs_key=False)["paths"].values() for operation in item.values())
