"""What the Open Inference Protocol asks of a server beside inference: health and metadata.

Health needs no key, as `/readyz`; a model's metadata needs one that may predict, since it names the versions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import Request as HttpRequest
from starlette.exceptions import HTTPException
from starlette.responses import Response

import raymlp
from raymlp.serve.formats.open_inference import error_body, model_metadata_of, server_metadata

if TYPE_CHECKING:
    from raymlp.serve.app import ModelServer

Page = Callable[[HttpRequest], Awaitable[Response]]


def inference_pages(server: ModelServer) -> dict[str, Page]:
    """Pages by path."""

    def version_of(request: HttpRequest) -> str | None:
        """The version that a path names, None for one that names none. Raises HTTPException for another model or a version not loaded."""
        version = request.path_params.get("version")
        if request.path_params["name"] != server.name or (version is not None and not server.holds(version)):
            raise HTTPException(404)
        return version

    async def metadata(_: HttpRequest) -> Response:
        return _json(200, server_metadata(raymlp.__version__))

    async def live(_: HttpRequest) -> Response:
        return _json(200, {"live": True})

    async def ready(_: HttpRequest) -> Response:
        return _json(200 if server.is_ready else 503, {"ready": server.is_ready})

    async def model(request: HttpRequest) -> Response:
        refused = server.admission.refused(dict(request.scope["headers"]), "predict")
        if refused is not None:
            body = error_body(refused.field, refused.found, refused.expected)
            return Response(body, refused.status, media_type="application/json")
        told = model_metadata_of(server, version_of(request))
        if told is None:
            raise HTTPException(503)
        return _json(200, told)

    async def model_ready(request: HttpRequest) -> Response:
        is_ready = version_of(request) is not None or server.is_ready
        return _json(200 if is_ready else 503, {"name": server.name, "ready": is_ready})

    one, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    return {
        "/v2": metadata,
        "/v2/health/live": live,
        "/v2/health/ready": ready,
        one: model,
        f"{one}/ready": model_ready,
        version: model,
        f"{version}/ready": model_ready,
    }


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
