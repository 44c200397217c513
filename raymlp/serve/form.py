"""The test page: one HTML page with a form made from the contract, which asks the endpoint as any client would.

Nothing is loaded from elsewhere, and the page's policy lets nothing else run: its own script and style are named by their hash.
"""

from __future__ import annotations

import base64
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
from starlette.responses import Response

from raymlp.data.contract import Contract
from raymlp.data.pattern import MAX_TEXT
from raymlp.data.privacy import makes_text
from raymlp.serve.probe import example_row

PAGE = Path(__file__).with_name("form.html")


def form_page(name: str, contract: Contract, *, needs_key: bool) -> Response:
    """The page of an endpoint, with its headers."""
    page, policy = _page()
    facts = {"name": name, "needs_key": needs_key, "columns": columns_of(contract)}
    told = orjson.dumps(facts).decode().replace("<", "\\u003c")  # so that no text of a contract can end the element it lies in
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
    return Response(page.replace("FACTS", told), headers=headers, media_type="text/html; charset=utf-8")


def columns_of(contract: Contract) -> list[dict[str, Any]]:
    """What the form asks for, a field for each column."""
    examples = example_row(contract)
    return [
        {
            "name": name,
            "type": "string" if rule.privacy is not None and makes_text(rule.privacy) else rule.type,
            "nullable": rule.nullable,
            "minimum": rule.minimum,
            "maximum": rule.maximum,
            "categories": list(rule.categories),
            "longest": MAX_TEXT if rule.pattern else None,
            "example": examples[name],
            "hint": contract.describe(name),
        }
        for name, rule in contract.columns.items()
    ]


@cache
def _page() -> tuple[str, str]:
    """The page without its facts, and its Content-Security-Policy."""
    page = PAGE.read_text()
    starts = {tag: page.index(f"<{tag}>") + len(tag) + 2 for tag in ("style", "script")}
    parts = {tag: page[start : page.index(f"</{tag}>", start)] for tag, start in starts.items()}
    own = {tag: base64.b64encode(sha256(text.encode()).digest()).decode() for tag, text in parts.items()}
    policy = (
        f"default-src 'none'; script-src 'sha256-{own['script']}'; style-src 'sha256-{own['style']}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy
