"""OpenAI's answers from text deltas: whole bodies and chunks of a stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import orjson

from router.detokenizer import token_string
from router.generation import TextDelta, TokenLogprob, Usage, WholeChoice
from router.models import ServedModel
from router.sse import event

__all__ = ["AnswerFormat", "ChatFormat", "CompletionFormat", "model_card"]


class AnswerFormat(ABC):
    """One answer in OpenAI's words.

    Args:
        request_id: of the request; part of the answer's own id.
        model: the name to show.
        include_usage: the stream ends with a chunk of usage, and every other chunk says that it has none.
    """

    _id_prefix: ClassVar[str]
    _whole_object: ClassVar[str]
    _chunk_object: ClassVar[str]

    def __init__(self, request_id: str, model: str, *, include_usage: bool) -> None:
        self._head = {
            "id": f"{self._id_prefix}-{request_id}",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage

    def opening(self, num_choices: int) -> bytes:
        """Events before the first token's."""
        return b""

    def events(self, batch: Sequence[TextDelta]) -> bytes:
        """The events of one step, written together; those that would say nothing are left out."""
        return b"".join(
            self._chunk([self._delta(delta)])
            for delta in batch
            if delta.text or delta.logprobs or delta.finish_reason
        )

    def usage_event(self, usage: Usage) -> bytes:
        """The event after the last token's; empty where nobody asked for it."""
        return self._chunk([], usage) if self._include_usage else b""

    def whole(self, choices: Sequence[WholeChoice], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        return orjson.dumps(
            {
                **self._head,
                "object": self._whole_object,
                "choices": [self._whole_choice(choice) for choice in choices],
                "usage": _usage(usage),
            }
        )

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> bytes:
        chunk = {**self._head, "object": self._chunk_object, "choices": choices}
        if self._include_usage:
            chunk["usage"] = None if usage is None else _usage(usage)
        return event(orjson.dumps(chunk))

    @abstractmethod
    def _delta(self, delta: TextDelta) -> dict[str, Any]: ...

    @abstractmethod
    def _whole_choice(self, choice: WholeChoice) -> dict[str, Any]: ...


class CompletionFormat(AnswerFormat):
    """``/v1/completions``: whole answers and chunks look the same."""

    _id_prefix = "cmpl"
    _whole_object = "text_completion"
    _chunk_object = "text_completion"

    def _delta(self, delta: TextDelta) -> dict[str, Any]:
        return {
            "index": delta.index,
            "text": delta.text,
            "logprobs": _completion_logprobs(delta.logprobs),
            "finish_reason": delta.finish_reason,
        }

    def _whole_choice(self, choice: WholeChoice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": _completion_logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }


class ChatFormat(AnswerFormat):
    """``/v1/chat/completions``: the first chunk of each choice names the role."""

    _id_prefix = "chatcmpl"
    _whole_object = "chat.completion"
    _chunk_object = "chat.completion.chunk"

    def opening(self, num_choices: int) -> bytes:
        role = {"role": "assistant", "content": ""}
        return b"".join(
            self._chunk([{"index": index, "delta": role, "logprobs": None, "finish_reason": None}])
            for index in range(num_choices)
        )

    def _delta(self, delta: TextDelta) -> dict[str, Any]:
        return {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text else {},
            "logprobs": _chat_logprobs(delta.logprobs),
            "finish_reason": delta.finish_reason,
        }

    def _whole_choice(self, choice: WholeChoice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": _chat_logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }


def model_card(model: ServedModel) -> dict[str, Any]:
    """A model as ``/v1/models`` lists it, with the field that vLLM adds."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "mooring",
        "root": model.name,
        "parent": None,
        "max_model_len": model.max_model_len,
    }


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _completion_logprobs(entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """Parallel lists; the sampled token is among the likeliest even where it is not one of them."""
    if entries is None:
        return None
    return {
        "tokens": [token_string(entry.raw) for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [
            {token_string(raw): logprob for _, raw, logprob in entry.top}
            | {token_string(entry.raw): entry.logprob}
            for entry in entries
        ],
        "text_offset": [entry.text_offset for entry in entries],
    }


def _chat_logprobs(entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if entries is None:
        return None
    content = [
        {
            **_chat_token(entry.raw, entry.logprob),
            "top_logprobs": [_chat_token(raw, logprob) for _, raw, logprob in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _chat_token(raw: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": token_string(raw), "logprob": logprob, "bytes": list(raw)}
