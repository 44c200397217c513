"""Everything the endpoint answers but predictions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response

from raymlp.serve.admission import refusal
from raymlp.serve.body import Unread, read_body
from raymlp.serve.form import form_page
from raymlp.serve.formats.open_inference import error_body
from raymlp.serve.formats.pages import inference_pages
from raymlp.serve.keys import Refusal
from raymlp.serve.openapi import openapi
from raymlp.serve.webhook import check_signature, concerns, tell_driver

if TYPE_CHECKING:
    from raymlp.serve.app import ModelServer


def pages(server: ModelServer) -> FastAPI:
    """Everything but predictions."""
    app = FastAPI(title=server.name, docs_url=None, redoc_url=None)

    def document() -> dict[str, Any]:
        state, fallback = server.state, server.answering.fallback
        max_rows, needs_key = server.answering.max_rows, server.admission.needs_key
        if state is not None:
            bundle = state.loaded[state.champion].predictor.bundle
            target = bundle.plan.target
            return openapi(server.name, bundle.contract, target.task, classes=target.classes, max_rows=max_rows, needs_key=needs_key)
        if fallback is None:
            raise HTTPException(503)
        return openapi(server.name, fallback.contract, fallback.task, classes=fallback.classes, max_rows=max_rows, needs_key=needs_key)

    async def healthz(_: HttpRequest) -> Response:
        return _json(200, {"status": "ok"})

    async def readyz(_: HttpRequest) -> Response:
        if server.state is None and server.is_ready:
            return _json(200, {"status": "fallback"})
        return _json(200, {"status": "ready"}) if server.state else _json(503, {"status": "loading"})

    async def form(_: HttpRequest) -> Response:
        if server.contract is None:
            raise HTTPException(503)
        return form_page(server.name, server.contract, needs_key=server.admission.needs_key)

    async def metrics(_: HttpRequest) -> Response:
        return Response(server.metrics.text(dropped=server.log.dropped), media_type=CONTENT_TYPE_LATEST)

    async def model(request: HttpRequest) -> Response:
        refused = server.admission.refused(dict(request.scope["headers"]), "operate")
        if refused is not None:
            return Response(refusal(refused.field, refused.found, refused.expected), refused.status, media_type="application/json")
        if request.path_params["name"] != server.name:
            raise HTTPException(404)
        return _json(200, server.report())

    async def feedback(request: HttpRequest) -> Response:
        if request.path_params["name"] != server.name:
            raise HTTPException(404)
        status, body = await server.hearing.answer(request.scope["headers"], request.receive)
        return Response(body, status, media_type="application/json")

    async def registry(request: HttpRequest) -> Response:
        if request.path_params["name"] != server.name:
            raise HTTPException(404)
        given = dict(request.scope["headers"])
        try:
            body = await read_body(given, request.receive, server.admission.access.limits)
            check_signature(given, body)
        except Unread as unread:
            return Response(refusal("body", unread.found, unread.expected), unread.status, media_type="application/json")
        except Refusal as refused:
            return Response(refusal(refused.field, refused.found, refused.expected), refused.status, media_type="application/json")
        if concerns(body, server.name) and not await asyncio.to_thread(tell_driver, server.name):
            return Response(refusal("rollouts", "nothing drives them", "raymlp deploy"), 503, media_type="application/json")
        return Response(status_code=202)

    async def refuse(request: HttpRequest, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        asked, expected = f"{request.method} {request.url.path[:100]}", f"POST /v1/models/{server.name}:predict, or a page of /openapi.json"
        body = error_body if request.url.path.startswith("/v2") else refusal
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else None
        return Response(body("path", asked, expected), status, headers, "application/json")

    own = {"/": form, "/healthz": healthz, "/readyz": readyz, "/metrics": metrics, "/v1/models/{name}": model}
    for path, page in (own | inference_pages(server)).items():
        app.add_route(path, page, methods=["GET"], include_in_schema=False)
    app.add_route("/v1/models/{name}:feedback", feedback, methods=["POST"], include_in_schema=False)
    app.add_route("/v1/models/{name}:registry", registry, methods=["POST"], include_in_schema=False)
    app.add_exception_handler(HTTPException, refuse)
    setattr(app, "openapi", document)  # noqa: B010
    return app


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
