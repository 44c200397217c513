"""The test page: its policy, and that nothing of a contract can break out of it. How it looks is for eyes."""

from __future__ import annotations

import base64
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

from raymlp.data.contract import ColumnContract, Contract
from raymlp.serve.form import form_page

EVIL = "</script><script>alert(1)</script><!--"
CONTRACT = Contract(
    columns={
        "delay": ColumnContract(type="float", nullable=False, minimum=0, maximum=9, example=1.5),
        EVIL: ColumnContract(type="string", categories=(EVIL, "b"), example=EVIL),
    }
)


class Tags(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style"):
            self.texts.append(data)


def page() -> tuple[str, Any, Tags]:
    response = form_page("flights", CONTRACT, needs_key=True)
    text, tags = bytes(response.body).decode(), Tags()
    tags.feed(text)
    return text, response.headers, tags


def test_the_policy_names_the_pages_own_script_and_style_and_nothing_else() -> None:
    text, headers, _ = page()
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert (policy["connect-src"], policy["frame-ancestors"], policy["form-action"], policy["base-uri"]) == (
        "'self'",
        "'none'",
        "'none'",
        "'none'",
    )
    for tag in ("script", "style"):
        (own,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(sha256(own.encode()).digest()).decode()}'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a_contract_cannot_break_out_of_its_element() -> None:
    text, _, tags = page()
    assert [tag for tag, _ in tags.found].count("script") == 2
    facts = json.loads(re.findall(r'id="facts">(.*?)</script>', text, re.DOTALL)[0])
    assert [column["name"] for column in facts["columns"]] == ["delay", EVIL]
    assert facts["columns"][0] | {"hint": ""} == {
        "name": "delay", "type": "float", "nullable": False, "minimum": 0, "maximum": 9, "categories": [], "longest": None,
        "example": 1.5, "hint": "",
    }  # fmt: skip


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs_from_an_attribute() -> None:
    text, _, tags = page()
    for tag, attributes in tags.found:
        assert not {name for name in attributes if name.startswith("on") or name == "style"}, tag
        for name in ("src", "href"):
            assert (attributes.get(name) or "/").startswith(("/", "data:,")), tag
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|sessionStorage|cookie", script)


def test_every_field_has_a_label() -> None:
    _, _, tags = page()
    labelled = {attributes.get("for") for tag, attributes in tags.found if tag == "label"}
    assert {attributes["id"] for tag, attributes in tags.found if tag in ("input", "select")} <= labelled
