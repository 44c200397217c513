"""Everything the endpoint answers but predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response

from raymlp.serve.admission import refusal
from raymlp.serve.openapi import openapi

if TYPE_CHECKING:
    from raymlp.serve.app import ModelServer


def pages(server: ModelServer) -> FastAPI:
    """Everything but predictions."""
    app = FastAPI(title=server.name, redoc_url=None)

    def document() -> dict[str, Any]:
        if server.state is None:
            raise HTTPException(503)
        bundle = server.state.loaded[server.state.champion].predictor.bundle
        return openapi(
            server.name, bundle.contract, bundle.plan.target.task, max_rows=server.answering.max_rows, needs_key=server.admission.needs_key
        )

    async def healthz(_: HttpRequest) -> Response:
        return _json(200, {"status": "ok"})

    async def readyz(_: HttpRequest) -> Response:
        return _json(200, {"status": "ready"}) if server.state else _json(503, {"status": "loading"})

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

    async def refuse(request: HttpRequest, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        expected = f"POST /v1/models/{server.name}:predict, or a page of /openapi.json"
        return Response(refusal("path", f"{request.method} {request.url.path[:100]}", expected), status, media_type="application/json")

    for path, page in (("/healthz", healthz), ("/readyz", readyz), ("/metrics", metrics), ("/v1/models/{name}", model)):
        app.add_route(path, page, methods=["GET"], include_in_schema=False)
    app.add_route("/v1/models/{name}:feedback", feedback, methods=["POST"], include_in_schema=False)
    app.add_exception_handler(HTTPException, refuse)
    setattr(app, "openapi", document)  # noqa: B010
    return app


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
