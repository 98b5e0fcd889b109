"""``/tokenize`` and ``/detokenize``, in vLLM's form: the tokens of a prompt, without running it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import Field

from mooring.errors import InvalidRequestError
from router.doors.http.errors import ERROR_RESPONSES
from router.doors.http.json_body import MAX_ITEMS
from router.doors.http.json_route import JsonRoute
from router.doors.http.large_answer import LargeAnswer
from router.doors.openai.bodies import ChatLayout, Messages, RequestBody
from router.intake import Intake
from router.text.prompts import ChatPrompt
from router.text.shaping import LARGE_CHARS

__all__ = ["DetokenizeRequest", "TokenizeApi", "TokenizeRequest"]


class TokenizeRequest(ChatLayout):
    """The body of ``POST /tokenize``: ``prompt``, or ``messages`` for the model's chat template."""

    _neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "chat_template": (),
        "media_io_kwargs": ({},),
        "mm_processor_kwargs": ({},),
        "tools": ([],),
    }

    model: str
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    def either_prompt(self) -> str | ChatPrompt:
        """The prompt or the messages, whichever was sent.

        Raises:
            InvalidRequestError: both were sent, or neither.
        """
        if self.prompt is not None and self.messages is None:
            return self.prompt
        if self.messages is not None and self.prompt is None:
            return self.chat_prompt(self.messages)
        raise InvalidRequestError("Send one of 'prompt' and 'messages'.", param="prompt")


class DetokenizeRequest(RequestBody):
    """The body of ``POST /detokenize``."""

    model: str
    tokens: Annotated[list[int], Field(fail_fast=True, max_length=MAX_ITEMS)]


class TokenizeApi:
    """The two routes.

    Args:
        intake: turns prompts into tokens, as it does for generations.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def routes(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["tokens"], responses=dict(ERROR_RESPONSES), route_class=JsonRoute)
        router.add_api_route("/tokenize", self.tokenize, methods=["POST"])
        router.add_api_route("/detokenize", self.detokenize, methods=["POST"])
        return router

    async def tokenize(self, body: TokenizeRequest, request: Request) -> Response:
        """The tokens of a prompt."""
        wants_strings = bool(body.return_token_strs)
        tokens = await self._intake.tokenize(
            body.model,
            body.either_prompt(),
            body.add_special_tokens,
            request.state.tenant,
            strings=wants_strings,
        )
        return _json(
            {
                "count": len(tokens.prompt.ids),
                "max_model_len": tokens.max_model_len,
                "tokens": tokens.prompt.ids,
                "token_strs": orjson.Fragment(tokens.prompt.strings_json) if wants_strings else None,
            }
        )

    async def detokenize(self, body: DetokenizeRequest, request: Request) -> Response:
        """The text of tokens, special ones included."""
        text = await self._intake.detokenize(body.model, body.tokens, request.state.tenant)
        return _json({"prompt": text})


def _json(content: dict[str, Any]) -> Response:
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    if len(body) > LARGE_CHARS:
        return LargeAnswer([body])
    return Response(body, media_type="application/json")
