"""The KServe v2 REST door, as ``tritonclient.http`` and Triton's own examples call it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mooring.errors import InternalError, InvalidRequestError, MooringError
from router.doors.http.errors import CLIENT_GONE, error_response, plain_error_body
from router.doors.http.large_answer import LargeAnswer
from router.doors.http.sse import ClientGoneError, EventStream, until_disconnect
from router.doors.kserve.answer import Answer
from router.doors.kserve.core import KServe
from router.doors.kserve.inputs import InferRequest
from router.doors.kserve.repository import (
    check_load_parameters,
    check_repository_name,
    check_unload_parameters,
)
from router.doors.kserve.rest_body import compressed, json_object, json_response, read_body, refuse_others
from router.doors.kserve.rest_generate import answer_generate, generate_events, read_generate
from router.doors.kserve.rest_infer import HEADER_LENGTH, answer_infer, read_infer
from router.doors.kserve.rest_json import index_json, metadata_json, server_json, statistics_json
from router.doors.kserve.tensors import size_of
from router.doors.kserve.unsupported import (
    check_shared_memory_region,
    no_log_settings,
    no_shared_memory,
    no_trace,
)
from router.doors.prediction import prediction
from router.intake import request_id_from
from router.request.served_model import ServedModel
from router.tenancy.tenant import SLO_CLASS_HEADER
from router.text.shaping import LARGE_CHARS, shaped

__all__ = ["create_kserve_routes"]

_log = logging.getLogger(__name__)
T = TypeVar("T")
_INLINE_BYTES = 64 << 10  # a larger body is read in a thread
_Call = Callable[[Request], Awaitable[Response]]
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
# Models' names may hold slashes, so the longer path comes first: the shorter one would match it too.
_MODEL_PATHS = ("/v2/models/{name:path}/versions/{version}", "/v2/models/{name:path}")


def create_kserve_routes(kserve: KServe, *, max_body_bytes: int) -> list[BaseRoute]:
    """The routes of everything under ``/v2``, for an HTTP application. Their errors are KServe's, ``{"error":
    "..."}``, so the routes form an application of their own within it.

    Args:
        kserve: gives the answers.
        max_body_bytes: most bytes of a body, once it is decompressed.
    """
    door = _RestDoor(kserve, max_body_bytes)
    handlers: dict[Any, Callable[[Request, Exception], Response]] = {
        MooringError: _mooring_error,
        HTTPException: _http_error,
        ClientDisconnect: _client_gone,
        ClientGoneError: _client_gone,
        Exception: _bug,
    }
    app = Starlette(routes=door.routes(), exception_handlers=handlers)
    return [Route("/v2", app), Route("/v2/{rest:path}", app)]


class _RestDoor:
    """The calls of the protocol."""

    def __init__(self, kserve: KServe, max_body_bytes: int) -> None:
        self._kserve = kserve
        self._max_body_bytes = max_body_bytes

    def routes(self) -> list[Route]:
        """Every path of the protocol."""
        route = self._route
        models = [
            *(route("POST", f"{path}/infer", self._infer) for path in _MODEL_PATHS),
            *(route("POST", f"{path}/generate", self._generate) for path in _MODEL_PATHS),
            *(route("POST", f"{path}/generate_stream", self._generate_stream) for path in _MODEL_PATHS),
            *(route("GET", f"{path}/ready", self._model_ready) for path in _MODEL_PATHS),
            *(route("GET", f"{path}/config", self._model_config) for path in _MODEL_PATHS),
            *(route("GET", f"{path}/stats", self._statistics) for path in _MODEL_PATHS),
            route("GET POST", "/v2/models/{name:path}/trace/setting", self._trace),
            *(route("GET", path, self._model_metadata) for path in _MODEL_PATHS),
        ]
        return [
            route("GET", "/v2", self._server_metadata),
            route("GET", "/v2/health/live", self._live),
            route("GET", "/v2/health/ready", self._ready),
            route("GET", "/v2/models/stats", self._statistics),
            *models,
            *self._repository_routes(),
            *self._absent_routes(),
        ]

    def _repository_routes(self) -> list[Route]:
        calls = (
            ("index", self._index),
            ("models/{name:path}/load", self._load),
            ("models/{name:path}/unload", self._unload),
        )
        return [
            self._route("POST", f"/v2/repository{repository}/{path}", call)
            for repository in ("", "/{repository}")
            for path, call in calls
        ]

    def _absent_routes(self) -> list[Route]:
        routes = [
            self._route(method, f"/v2/{kind}sharedmemory{region}/{action}", call)
            for kind in ("system", "cuda")
            for region in ("", "/region/{region}")
            for method, action, call in (
                ("GET", "status", self._shared_memory_status),
                ("POST", "register", self._shared_memory_change),
                ("POST", "unregister", self._shared_memory_change),
            )
        ]
        routes.append(self._route("GET POST", "/v2/trace/setting", self._trace))
        return [*routes, self._route("GET POST", "/v2/logging", self._logging)]

    def _route(self, methods: str, path: str, call: _Call) -> Route:
        async def answer(request: Request) -> Response:
            if request.method not in methods.split():
                raise HTTPException(405, headers={"allow": methods.replace(" ", ", ")})
            return await call(request)

        # The route matches every method: for a method that it left out, a route that takes this path for a
        # model's name would answer instead.
        return Route(path, answer, methods=_METHODS)

    # The server --------------------------------------------------------------------------------------

    async def _live(self, request: Request) -> Response:
        return Response()

    async def _ready(self, request: Request) -> Response:
        return Response(status_code=200 if self._kserve.is_server_ready() else 400)

    async def _server_metadata(self, request: Request) -> Response:
        return json_response(server_json())

    # Models ------------------------------------------------------------------------------------------

    async def _model_ready(self, request: Request) -> Response:
        return Response(status_code=200 if self._kserve.is_model_ready(*_model(request)) else 400)

    async def _model_metadata(self, request: Request) -> Response:
        return json_response(metadata_json(self._kserve.metadata(*_model(request))))

    async def _model_config(self, request: Request) -> Response:
        return json_response(self._kserve.config(*_model(request)))

    async def _statistics(self, request: Request) -> Response:
        return json_response(statistics_json(self._kserve.statistics(*_model(request))))

    # The repository ----------------------------------------------------------------------------------

    async def _index(self, request: Request) -> Response:
        check_repository_name(request.path_params.get("repository", ""))
        body = await self._json_body(request)
        refuse_others(body, ("ready",), "the request")
        ready_only = body.get("ready", False)
        if not isinstance(ready_only, bool):
            raise InvalidRequestError("Invalid 'ready': it must be true or false.", param="ready")
        return json_response(index_json(await self._kserve.index(ready_only=ready_only)))

    async def _load(self, request: Request) -> Response:
        check_repository_name(request.path_params.get("repository", ""))
        check_load_parameters(await self._parameters(request))
        await self._kserve.load(request.path_params["name"])
        return Response()

    async def _unload(self, request: Request) -> Response:
        check_repository_name(request.path_params.get("repository", ""))
        check_unload_parameters(await self._parameters(request))
        await self._kserve.unload(request.path_params["name"])
        return Response()

    async def _parameters(self, request: Request) -> dict[str, Any]:
        body = await self._json_body(request)
        refuse_others(body, ("parameters",), "the request")
        parameters = body.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise InvalidRequestError("Invalid 'parameters': it must be an object.", param="parameters")
        return parameters

    async def _json_body(self, request: Request) -> dict[str, Any]:
        return json_object(await read_body(request, self._max_body_bytes), is_optional=True)

    # Inference ---------------------------------------------------------------------------------------

    async def _infer(self, request: Request) -> Response:
        model = self._kserve.model(*_model(request))
        body = await read_body(request, self._max_body_bytes)
        call = await _read(body, partial(read_infer, header_length=request.headers.get(HEADER_LENGTH)))
        answer = await self._whole(request, model, call.request_id, call.request)
        accepted = request.headers.get("accept-encoding", "")
        return await _answer(answer, lambda: compressed(answer_infer(model, call, answer.outputs), accepted))

    async def _generate(self, request: Request) -> Response:
        model = self._kserve.model(*_model(request))
        body = await read_body(request, self._max_body_bytes)
        call = await _read(body, read_generate)
        answer = await self._whole(request, model, call.request_id, call.request)
        return await _answer(
            answer,
            lambda: Response(answer_generate(model, call, answer.outputs), media_type="application/json"),
        )

    async def _generate_stream(self, request: Request) -> Response:
        """Waits for the first answer before it says 200: an error until then still has its own status."""
        model = self._kserve.model(*_model(request))
        body = await read_body(request, self._max_body_bytes)
        call = await _read(body, read_generate)
        answers = self._answers(request, model, call.request_id, call.request)
        try:
            first = await until_disconnect(request.receive, _next(answers))
        except BaseException:
            await answers.aclose()
            raise
        events = generate_events(model, call, first, answers)
        response = EventStream(events, answers.aclose, error_body=plain_error_body)
        response.headers.update(prediction(first.predicted_ttft_s))
        return response

    async def _whole(
        self, request: Request, model: ServedModel, request_id: str, wanted: InferRequest
    ) -> Answer:
        answers = self._answers(request, model, request_id, wanted, whole=True)
        [first, *_] = await until_disconnect(request.receive, _all(answers))
        return first

    def _answers(
        self,
        request: Request,
        model: ServedModel,
        request_id: str,
        wanted: InferRequest,
        *,
        whole: bool = False,
    ) -> AsyncGenerator[Answer, None]:
        return self._kserve.infer(
            model,
            wanted,
            request_id=request_id_from(request_id) if request_id else request.state.request_id,
            tenant=request.state.tenant,
            slo_class=request.headers.get(SLO_CLASS_HEADER),
            whole=whole,
        )

    # What is not here --------------------------------------------------------------------------------

    async def _shared_memory_status(self, request: Request) -> Response:
        check_shared_memory_region(request.path_params.get("region", ""))
        return json_response([])

    async def _shared_memory_change(self, request: Request) -> Response:
        raise no_shared_memory()

    async def _trace(self, request: Request) -> Response:
        raise no_trace()

    async def _logging(self, request: Request) -> Response:
        raise no_log_settings()


def _model(request: Request) -> tuple[str, str]:
    """Name and version in the path; each empty if the path has none."""
    return request.path_params.get("name", ""), request.path_params.get("version", "")


async def _read(body: bytes, read: Callable[[bytes], T]) -> T:
    """The body, understood; a large one in a thread."""
    return read(body) if len(body) <= _INLINE_BYTES else await asyncio.to_thread(read, body)


async def _answer(answer: Answer, make: Callable[[], Response]) -> Response:
    """The response with an answer; a large one is made in a thread and sent in pieces."""
    num_bytes = sum(map(size_of, answer.outputs))
    response = await shaped(make, num_bytes)
    response.headers.update(prediction(answer.predicted_ttft_s))
    return response if num_bytes <= LARGE_CHARS else LargeAnswer.of(response)


async def _all(answers: AsyncGenerator[Answer, None]) -> list[Answer]:
    async with aclosing(answers):
        return [answer async for answer in answers]


async def _next(answers: AsyncGenerator[Answer, None]) -> Answer:
    return await anext(answers)


# Errors -----------------------------------------------------------------------------------------------


def _mooring_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, MooringError)
    return error_response(error, body=plain_error_body(error))


def _http_error(_request: Request, error: Exception) -> Response:
    """Answers what the framework itself refuses: unknown paths, methods, a body that is too large."""
    assert isinstance(error, HTTPException)
    return Response(
        orjson.dumps({"error": error.detail}),
        error.status_code,
        dict(error.headers or {}),
        media_type="application/json",
    )


def _client_gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


def _bug(request: Request, bug: Exception) -> Response:
    _log.error("a bug while answering %s %s", request.method, request.url.path, exc_info=bug)
    error = InternalError("An error of the server's own; it has been logged.")
    return error_response(error, body=plain_error_body(error))
