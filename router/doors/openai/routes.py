"""OpenAI's HTTP API: models, completions, chat completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson
from fastapi import APIRouter, Request, Response

from router.doors.http.errors import CLIENT_GONE, ERROR_RESPONSES
from router.doors.http.json_route import JsonRoute
from router.doors.http.large_answer import LargeAnswer
from router.doors.http.sse import DONE, ClientGoneError, EventStream, until_disconnect
from router.doors.openai.answers import AnswerFormat, ChatFormat, CompletionFormat, model_card
from router.doors.openai.bodies import ChatCompletionRequest, CompletionRequest
from router.doors.openai.progress import PATIENCE_S, PROGRESS_HEADER, progress
from router.doors.prediction import prediction
from router.intake import Intake
from router.request.served_model import ServedModel
from router.services import RouterServices
from router.tenancy.tenant import SLO_CLASS_HEADER, Tenant
from router.text.batch_generation import BatchGeneration
from router.text.generation import TextDelta, TextGeneration, Usage
from router.text.shaping import LARGE_CHARS, chars_of, shaped

__all__ = ["OpenAiApi"]

_Generation = TextGeneration | BatchGeneration


class _Begun(NamedTuple):
    """A stream that has its first token."""

    generation: _Generation
    first: list[TextDelta]
    rest: AsyncIterator[list[TextDelta]]


class OpenAiApi:
    """The routes under ``/v1``.

    Args:
        services: the models that are served, and the tenants.
        intake: starts generations.
    """

    def __init__(self, services: RouterServices, intake: Intake) -> None:
        self._services = services
        self._intake = intake

    def routes(self) -> APIRouter:
        """The routes; the guard has found each request's tenant."""
        router = APIRouter(
            prefix="/v1", tags=["OpenAI"], responses=dict(ERROR_RESPONSES), route_class=JsonRoute
        )
        router.add_api_route("/models", self.list_models, methods=["GET"])
        router.add_api_route("/models/{name:path}", self.get_model, methods=["GET"])
        router.include_router(self.answering_routes())
        return router

    def answering_routes(self) -> APIRouter:
        """The routes that answer prompts, for the tenant in each request's state."""
        router = APIRouter(route_class=JsonRoute)
        stream: dict[str, Any] = {"content": {"text/event-stream": {}}}
        answers: dict[int | str, dict[str, Any]] = {
            200: {"description": "The answer, or a stream.", **stream}
        }
        router.add_api_route("/completions", self.complete, methods=["POST"], responses=answers)
        router.add_api_route("/chat/completions", self.chat, methods=["POST"], responses=answers)
        return router

    async def list_models(self) -> Response:
        """The models that may be asked for."""
        cards = [model_card(model) for model in self._services.models.list()]
        return _json(orjson.dumps({"object": "list", "data": cards}))

    async def get_model(self, name: str) -> Response:
        """One model."""
        return _json(orjson.dumps(model_card(self._services.models.get(name))))

    async def complete(self, request: Request, body: CompletionRequest) -> Response:
        """Continues a text."""
        answer = CompletionFormat(request.state.request_id, body.model, body.style())
        return await self._answer(request, body, answer)

    async def chat(self, request: Request, body: ChatCompletionRequest) -> Response:
        """Answers a conversation."""
        answer = ChatFormat(request.state.request_id, body.model, body.style())
        return await self._answer(request, body, answer)

    async def _answer(
        self,
        request: Request,
        body: CompletionRequest | ChatCompletionRequest,
        answer: AnswerFormat,
    ) -> Response:
        try:
            if body.stream:
                return await self._stream(request, body, answer)
            generation = await until_disconnect(request.receive, self._start(request, body))
            response = await _whole(request, generation, answer)
            response.headers.update(prediction(generation.predicted_ttft_s))
            return response
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)

    async def _stream(
        self, request: Request, body: CompletionRequest | ChatCompletionRequest, answer: AnswerFormat
    ) -> Response:
        """Waits for the first token before it says 200: an error until then still has its own status. Who asks for
        progress is answered sooner."""
        wants_progress = request.headers.get(PROGRESS_HEADER) == "true"
        begun = asyncio.create_task(self._begin(request, body))
        try:
            patience_s = PATIENCE_S if wants_progress else None
            await until_disconnect(request.receive, asyncio.wait({begun}, timeout=patience_s))
            predicted_ttft_s = begun.result().generation.predicted_ttft_s if begun.done() else None
            frames = _frames(self._services.models.get(body.model), begun, answer)
        except BaseException:
            await _end(begun)
            raise
        response = EventStream(frames, partial(_end, begun))
        response.headers.update(prediction(predicted_ttft_s))
        return response

    async def _begin(self, request: Request, body: CompletionRequest | ChatCompletionRequest) -> _Begun:
        generation = await self._start(request, body)
        batches = aiter(generation)
        try:
            return _Begun(generation, await anext(batches), batches)
        except BaseException:
            await generation.aclose()
            raise

    async def _start(self, request: Request, body: CompletionRequest | ChatCompletionRequest) -> _Generation:
        prompts, options = body.prompts(), body.options()
        request_id = request.state.request_id
        tenant = _party(request, body)
        if len(prompts) == 1:
            return await self._intake.start(
                model=body.model,
                prompt=prompts[0],
                options=options,
                request_id=request_id,
                tenant=tenant,
                metadata=body.metadata_pairs(),
            )
        return await self._intake.start_batch(
            model=body.model, prompts=prompts, options=options, request_id=request_id, tenant=tenant
        )


def _party(request: Request, body: CompletionRequest | ChatCompletionRequest) -> Tenant:
    """The tenant, in the class that the request names; the body's word comes before the header's."""
    tenant: Tenant = request.state.tenant
    if body.service_tier is not None:
        return tenant.in_class(body.service_tier, param="service_tier")
    return tenant.in_class(request.headers.get(SLO_CLASS_HEADER), param=SLO_CLASS_HEADER)


async def _whole(request: Request, generation: _Generation, answer: AnswerFormat) -> Response:
    try:
        choices = await until_disconnect(request.receive, generation.whole())
        num_chars = chars_of(choices)
        pieces = await shaped(lambda: answer.whole(choices, generation.usage, generation.timings), num_chars)
        if num_chars > LARGE_CHARS:
            return LargeAnswer(pieces, close=generation.aclose)
    except BaseException:
        await generation.aclose()
        raise
    await generation.aclose()
    return _json(b"".join(pieces))


async def _end(begun: asyncio.Task[_Begun]) -> None:
    """Frees what a stream holds, however far it came."""
    begun.cancel()
    await asyncio.wait({begun})
    if not begun.cancelled() and begun.exception() is None:
        await begun.result().generation.aclose()


async def _frames(
    model: ServedModel, begun: asyncio.Task[_Begun], answer: AnswerFormat
) -> AsyncIterator[bytes]:
    async for comment in progress(model, begun):
        yield comment
    generation, first, rest = begun.result()
    usage = generation.usage if answer.wants_usage_so_far else None
    opening = answer.opening(generation.num_choices, usage)
    async for events in _events(first, answer, usage):
        yield opening + events
        opening = b""
    async for batch in rest:
        usage = generation.usage if answer.wants_usage_so_far else None
        async for events in _events(batch, answer, usage):
            if events:
                yield events
    yield answer.usage_event(generation.usage, generation.timings) + DONE


async def _events(
    batch: Sequence[TextDelta], answer: AnswerFormat, usage: Usage | None
) -> AsyncIterator[bytes]:
    """The events of one turn, together; if they are large, those of each choice by themselves."""
    if chars_of(batch) <= LARGE_CHARS:
        yield answer.events(batch, usage)
        return
    for delta in batch:
        yield await shaped(partial(answer.events, [delta], usage), chars_of([delta]))


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
