"""The native gRPC door: ``proto/mooring/v1/inference.proto`` on ``grpc.aio``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from mooring.errors import InvalidRequestError
from mooring.v1 import inference_pb2 as pb
from mooring.v1 import inference_pb2_grpc
from router.doors.grpc.errors import Context, metadata_of
from router.doors.grpc.guard import caller
from router.doors.prediction import prediction
from router.intake import Intake, request_id_from
from router.request.sampling import DEFAULT_COMPLETION_TOKENS, PLAIN_OPTIONS, SamplingOptions
from router.services import RouterServices
from router.tenancy.tenant import SLO_CLASS_HEADER
from router.text.detokenizer import token_string
from router.text.generation import TextDelta, TextGeneration, TokenLogprob, by_step
from router.text.prompts import ChatPrompt, Prompt
from router.text.shaping import LARGE_CHARS, chars_of, shaped

__all__ = ["InferenceService"]

_OPTIONAL_FIELDS = (
    *PLAIN_OPTIONS,
    *("max_tokens", "n", "logprobs", "prompt_logprobs", "skip_special_tokens", "include_stop_str_in_output"),
    *("truncate_prompt_tokens", "add_special_tokens", "cache_salt"),
)


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Serves ``Inference``, behind ``CallGuard``.

    Args:
        services: the models that are served.
        intake: starts generations.
    """

    def __init__(self, services: RouterServices, intake: Intake) -> None:
        self._services = services
        self._intake = intake

    async def Generate(  # noqa: N802 (gRPC's name)
        self, request: pb.GenerateTextRequest, context: Context
    ) -> AsyncIterator[pb.GenerateTextResponse]:
        metadata = metadata_of(context)
        request_id = request_id_from(request.request_id or metadata.get("x-request-id"))
        head = {"x-request-id": request_id}
        try:
            generation = await self._intake.start(
                model=request.model,
                prompt=_prompt(request),
                options=_options(request),
                request_id=request_id,
                tenant=caller().in_class(metadata.get(SLO_CLASS_HEADER), param=SLO_CLASS_HEADER),
            )
        except Exception:
            await context.send_initial_metadata(tuple(head.items()))
            raise
        try:
            head |= prediction(generation.predicted_ttft_s)
            await context.send_initial_metadata(tuple(head.items()))
            async for batch in generation:
                for step in by_step(batch):
                    for deltas in _messages(step):
                        make = partial(_response, request_id, request.model, deltas)
                        yield await shaped(make, chars_of(deltas))
            yield pb.GenerateTextResponse(
                request_id=request_id, model=request.model, usage=_usage(generation)
            )
        finally:
            # Also when the client cancelled or went away: gRPC cancels this coroutine then.
            await generation.aclose()

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        request_id = request_id_from(metadata_of(context).get("x-request-id"))
        await context.send_initial_metadata((("x-request-id", request_id),))
        return pb.ListModelsResponse(
            models=[
                pb.Model(
                    name=model.name,
                    max_model_len=model.max_model_len,
                    residency=model.residency(),
                    engine=model.engine,
                )
                for model in self._services.models.list()
            ]
        )


def _prompt(request: pb.GenerateTextRequest) -> Prompt:
    kind = request.WhichOneof("input")
    if kind == "prompt":
        return request.prompt
    if kind == "prompt_token_ids":
        return tuple(request.prompt_token_ids.ids)
    if kind == "chat":
        return ChatPrompt(
            tuple({"role": message.role, "content": message.content} for message in request.chat.messages)
        )
    raise InvalidRequestError("Set one of 'prompt', 'prompt_token_ids' and 'chat'.", param="input")


def _options(request: pb.GenerateTextRequest) -> SamplingOptions:
    given: Mapping[str, Any] = {
        name: getattr(request, name) for name in _OPTIONAL_FIELDS if request.HasField(name)
    }
    kind = request.WhichOneof("input") or "input"
    return SamplingOptions(
        **given,
        default_max_tokens=None if kind == "chat" else DEFAULT_COMPLETION_TOKENS,
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        logit_bias=tuple(sorted(request.logit_bias.items())),
        bad_words=tuple(request.bad_words),
        prompt_field=kind,
    )


def _messages(step: Sequence[TextDelta]) -> Iterable[Sequence[TextDelta]]:
    """The deltas of a step as they go into messages: all in one; each in its own if they are large."""
    return [step] if chars_of(step) <= LARGE_CHARS else [[delta] for delta in step]


def _response(request_id: str, model: str, deltas: Sequence[TextDelta]) -> pb.GenerateTextResponse:
    return pb.GenerateTextResponse(
        request_id=request_id, model=model, choices=[_choice(delta) for delta in deltas]
    )


def _choice(delta: TextDelta) -> pb.Choice:
    if delta.logprobs is None:
        tokens = [pb.TokenOutput(token_id=token_id) for token_id in delta.token_ids]
    else:
        tokens = [_token(entry) for entry in delta.logprobs]
    choice = pb.Choice(
        index=delta.index, text=delta.text, tokens=tokens, finish_reason=delta.finish_reason or ""
    )
    if delta.prompt_logprobs is not None:
        choice.prompt_tokens.extend(map(_token, delta.prompt_logprobs))
    return choice


def _token(entry: TokenLogprob) -> pb.TokenOutput:
    top = [
        pb.TokenLogprob(token_id=token_id, token=token_string(raw), logprob=logprob)
        for token_id, raw, logprob in entry.top
    ]
    return pb.TokenOutput(token_id=entry.token_id, logprob=entry.logprob, top_logprobs=top)


def _usage(generation: TextGeneration) -> pb.Usage:
    usage = generation.usage
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        cached_tokens=usage.cached_tokens,
    )
