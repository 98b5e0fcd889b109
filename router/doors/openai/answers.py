"""Turns text deltas into OpenAI's answers: whole bodies and chunks of a stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson

from router.doors.http.sse import event
from router.request.served_model import ServedModel
from router.telemetry.request_metrics import Timings
from router.text.detokenizer import token_string
from router.text.generation import TextDelta, TokenLogprob, Usage, WholeChoice
from router.text.prompt_view import logprobs_by_id

__all__ = ["AnswerFormat", "AnswerStyle", "ChatFormat", "CompletionFormat", "model_card"]

_PLACEHOLDER = "\0"
_SLICE = 256  # entries that are encoded at once
_Spell = Callable[[int, bytes], str]  # a token's id and bytes, as the answer prints it


@dataclass(frozen=True, slots=True)
class AnswerStyle:
    """The choices that a caller has about an answer's form.

    Attributes:
        include_usage: whether a stream ends with a chunk of usage, and every other chunk says that it has
            none.
        continuous_usage: whether every chunk has the usage so far.
        tokens_as_ids: whether tokens of log-probabilities are printed as ``token_id:17``.
        prompt_logprobs: whether the answer has the prompt's log-probabilities.
        service_tier: the SLO class that the request names, which every part of the answer repeats; None for none.
    """

    include_usage: bool = False
    continuous_usage: bool = False
    tokens_as_ids: bool = False
    prompt_logprobs: bool = False
    service_tier: str | None = None


class AnswerFormat(ABC):
    """One answer in OpenAI's form.

    Args:
        request_id: id of the request, which becomes part of the answer's own id.
        model: the name to show.
        style: the caller's choices.
    """

    _id_prefix: ClassVar[str]
    _whole_object: ClassVar[str]
    _chunk_object: ClassVar[str]

    def __init__(self, request_id: str, model: str, style: AnswerStyle) -> None:
        self._head: dict[str, Any] = {
            "id": f"{self._id_prefix}-{request_id}",
            "created": int(time.time()),
            "model": model,
        }
        if style.service_tier is not None:
            self._head["service_tier"] = style.service_tier
        self._style = style
        self._has_usage = style.include_usage or style.continuous_usage
        self._spell = _token_id_string if style.tokens_as_ids else _token_text
        # For each choice, the parts of a plain event before and after the text.
        self._around_text: dict[int, tuple[bytes, bytes]] = {}

    @property
    def wants_usage_so_far(self) -> bool:
        """Whether ``opening`` and ``events`` are to be given the usage."""
        return self._style.continuous_usage

    def opening(self, num_choices: int, usage: Usage | None = None) -> bytes:
        """Events before the first token's; none by default."""
        return b""

    def events(self, batch: Sequence[TextDelta], usage: Usage | None = None) -> bytes:
        """The events of one turn, written together; events that would say nothing are left out."""
        return b"".join(
            [
                self._event(delta, usage)
                for delta in batch
                if delta.text or delta.logprobs or delta.finish_reason
            ]
        )

    def usage_event(self, usage: Usage, timings: Timings) -> bytes:
        """The event after the last token's; empty if the caller did not ask for it."""
        return self._chunk([], usage, timings) if self._style.include_usage else b""

    def whole(self, choices: Sequence[WholeChoice], usage: Usage, timings: Timings) -> list[bytes]:
        """The body of an answer that is not streamed, in pieces: none of them has more than one choice."""
        start = orjson.dumps({**self._head, "object": self._whole_object, "choices": []})
        end = orjson.dumps({"usage": _usage(usage), "mooring": _timings(timings), **self._of_prompt(choices)})
        pieces = [start.removesuffix(b"]}")]
        for choice in choices:
            pieces += (orjson.dumps(self._whole_choice(choice)), b",")
        return [*pieces[:-1], b"]," + end.removeprefix(b"{")]

    def _event(self, delta: TextDelta, usage: Usage | None) -> bytes:
        is_plain = delta.text and delta.logprobs is None and delta.finish_reason is None and usage is None
        if not is_plain:
            return self._chunk([self._delta(delta)], usage)
        # Nearly all events are plain, and differ in their text only: only the text is encoded.
        around = self._around_text.get(delta.index)
        if around is None:
            sample = self._chunk([self._delta(TextDelta(delta.index, _PLACEHOLDER))])
            before, _, after = sample.rpartition(orjson.dumps(_PLACEHOLDER))
            around = self._around_text[delta.index] = (before, after)
        return around[0] + orjson.dumps(delta.text) + around[1]

    def _chunk(
        self, choices: list[dict[str, Any]], usage: Usage | None = None, timings: Timings | None = None
    ) -> bytes:
        chunk = {**self._head, "object": self._chunk_object, "choices": choices}
        if self._has_usage:
            chunk["usage"] = None if usage is None else _usage(usage)
        if timings is not None:
            chunk["mooring"] = _timings(timings)
        return event(orjson.dumps(chunk))

    def _of_prompt(self, choices: Sequence[WholeChoice]) -> dict[str, Any]:
        """Fields about the prompt that a whole answer has beside its choices."""
        return {}

    def _prompt_logprobs(self, choice: WholeChoice) -> dict[str, Any]:
        """vLLM's field: for each token of the prompt but the first an object by token id, the token's own
        entry first."""
        entries = choice.prompt_logprobs
        if entries is None or not self._style.prompt_logprobs:
            return {}
        return {"prompt_logprobs": _listed(entries, logprobs_by_id)}

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
            "logprobs": _completion_logprobs(delta.logprobs, self._spell),
            "finish_reason": delta.finish_reason,
            **_stop_reason(delta),
        }

    def _whole_choice(self, choice: WholeChoice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": _completion_logprobs(choice.logprobs, self._spell),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            **self._prompt_logprobs(choice),
        }


class ChatFormat(AnswerFormat):
    """``/v1/chat/completions``: the first chunk of each choice names the role."""

    _id_prefix = "chatcmpl"
    _whole_object = "chat.completion"
    _chunk_object = "chat.completion.chunk"

    def opening(self, num_choices: int, usage: Usage | None = None) -> bytes:
        role = {"role": "assistant", "content": ""}
        return b"".join(
            self._chunk([{"index": index, "delta": role, "logprobs": None, "finish_reason": None}], usage)
            for index in range(num_choices)
        )

    def _of_prompt(self, choices: Sequence[WholeChoice]) -> dict[str, Any]:
        return self._prompt_logprobs(choices[0])

    def _delta(self, delta: TextDelta) -> dict[str, Any]:
        return {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text else {},
            "logprobs": _chat_logprobs(delta.logprobs, self._spell),
            "finish_reason": delta.finish_reason,
            **_stop_reason(delta),
        }

    def _whole_choice(self, choice: WholeChoice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": _chat_logprobs(choice.logprobs, self._spell),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
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


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _timings(timings: Timings) -> dict[str, float | None]:
    """Our own field: where the request's time went, to the microsecond."""
    figures = {"ttft_s": timings.ttft_s, **timings.spent._asdict(), "tokens_per_s": timings.tokens_per_s}
    return {name: None if figure is None else round(figure, 6) for name, figure in figures.items()}


def _stop_reason(delta: TextDelta) -> dict[str, Any]:
    """vLLM's field for a choice that has ended."""
    return {} if delta.finish_reason is None else {"stop_reason": delta.stop_reason}


def _token_text(_token_id: int, raw: bytes) -> str:
    return token_string(raw)


def _token_id_string(token_id: int, _raw: bytes) -> str:
    return f"token_id:{token_id}"


def _completion_logprobs(entries: Sequence[TokenLogprob] | None, spell: _Spell) -> dict[str, Any] | None:
    """Log-probabilities as parallel lists. The token itself is among the likeliest even if it is not one of
    them."""
    if entries is None:
        return None
    return {
        "tokens": _listed(entries, lambda entry: spell(entry.token_id, entry.raw)),
        "token_logprobs": _listed(entries, lambda entry: entry.logprob),
        "top_logprobs": _listed(entries, lambda entry: _by_string(entry, spell)),
        "text_offset": _listed(entries, lambda entry: entry.text_offset),
    }


def _by_string(entry: TokenLogprob, spell: _Spell) -> dict[str, float] | None:
    """Log-probabilities by token, as it is printed. Of tokens that are printed alike the likeliest counts, so
    that the greatest of these values still tells whether a token was the best."""
    if entry.logprob is None:
        return None
    found: dict[str, float] = {}
    for token_id, raw, logprob in (*entry.top, (entry.token_id, entry.raw, entry.logprob)):
        found.setdefault(spell(token_id, raw), logprob)
    return found


def _chat_logprobs(entries: Sequence[TokenLogprob] | None, spell: _Spell) -> dict[str, Any] | None:
    if entries is None:
        return None
    return {"content": _listed(entries, lambda entry: _chat_entry(entry, spell)), "refusal": None}


def _chat_entry(entry: TokenLogprob, spell: _Spell) -> dict[str, Any]:
    return {
        **_chat_token(spell(entry.token_id, entry.raw), entry.raw, entry.logprob),
        "top_logprobs": [
            _chat_token(spell(token_id, raw), raw, logprob) for token_id, raw, logprob in entry.top
        ],
    }


def _chat_token(token: str, raw: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(raw)}


def _listed(entries: Sequence[TokenLogprob], shown: Callable[[TokenLogprob], Any]) -> orjson.Fragment:
    """A JSON list of what is shown of each entry, made in slices: encoding holds the interpreter, for all threads."""
    slices = (entries[start : start + _SLICE] for start in range(0, len(entries), _SLICE))
    parts = [orjson.dumps([shown(entry) for entry in each])[1:-1] for each in slices]
    return orjson.Fragment(b"[" + b",".join(parts) + b"]")
