"""The bodies of OpenAI's requests, checked for types and for what we do not support.

Ranges are checked in ``router.sampling_defaults``, once for all doors. Types are strict: a number in
quotes is an error, as it is at OpenAI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mooring.errors import InvalidRequestError, UnsupportedFieldError
from router.sampling_defaults import DEFAULT_COMPLETION_TOKENS, SamplingOptions
from router.tokenizers import ChatPrompt

__all__ = ["ChatCompletionRequest", "ChatMessage", "CompletionRequest", "StreamOptions", "TextPart"]

# Fields of OpenAI's (and vLLM's) protocol that we do not serve, with the values that ask for nothing.
# null asks for nothing everywhere.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1.0,),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "priority": (0,),
    "prompt_cache_key": (),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}
# Of an assistant's message, as OpenAI's clients send it back.
_NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Body):
    """``include_usage``: one more chunk at the end, with the usage and no choices."""

    include_usage: bool | None = None


class TextPart(_Body):
    """A part of a message's content; text is the only kind we serve."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One message. Parts are joined by newlines; ``developer`` is what OpenAI now calls ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, raw: Any) -> Any:
        return _without_neutral(raw, _NEUTRAL_IN_MESSAGE)

    def for_template(self) -> dict[str, str]:
        """The message as chat templates read it."""
        content = self.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": text}
        return message if self.name is None else {**message, "name": self.name}


class _SamplingBody(_Body):
    """What completions and chat completions share. null is the same as left out."""

    model: str
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, raw: Any) -> Any:
        return _without_neutral(raw, _NEUTRAL)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _common_options(self) -> dict[str, Any]:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                param="stream_options",
            )
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {name: getattr(self, name) for name in _COMMON_OPTIONS} | {
            "stop": tuple(stop),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
        }


_COMMON_OPTIONS = (
    *("min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed", "ignore_eos", "n"),
)


class CompletionRequest(_SamplingBody):
    """The body of ``POST /v1/completions``."""

    prompt: str | list[int] | list[str] | list[list[int]] = Field(
        description="A text or its token ids; of a list of prompts, one at a time is served."
    )
    logprobs: int | None = None

    def single_prompt(self) -> str | tuple[int, ...]:
        """The prompt.

        Raises:
            InvalidRequestError: there are several, or none.
        """
        prompt = self.prompt
        if isinstance(prompt, str):
            return prompt
        if prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise UnsupportedFieldError(
                    "Several prompts in one request are not supported: send one at a time.", param="prompt"
                )
            only = prompt[0]
            return only if isinstance(only, str) else tuple(only)
        return tuple(token_id for token_id in prompt if isinstance(token_id, int))

    def options(self) -> SamplingOptions:
        """What the caller asked for."""
        return SamplingOptions(
            **self._common_options(),
            max_tokens=self.max_tokens,
            default_max_tokens=DEFAULT_COMPLETION_TOKENS,
            logprobs=self.logprobs,
        )


class ChatCompletionRequest(_SamplingBody):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def prompt(self) -> ChatPrompt:
        """The messages for the chat template."""
        return ChatPrompt(tuple(message.for_template() for message in self.messages))

    def options(self) -> SamplingOptions:
        """What the caller asked for.

        Raises:
            InvalidRequestError: ``top_logprobs`` without ``logprobs``.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError(
                "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
                param="top_logprobs",
            )
        new_name = self.max_completion_tokens is not None
        return SamplingOptions(
            **self._common_options(),
            max_tokens=self.max_completion_tokens if new_name else self.max_tokens,
            max_tokens_field="max_completion_tokens" if new_name else "max_tokens",
            logprobs=self.top_logprobs or 0 if self.logprobs else None,
            logprobs_field="top_logprobs",
            prompt_field="messages",
        )


def _without_neutral(raw: Any, neutral: Mapping[str, Iterable[Any]]) -> Any:
    """The body without the fields that ask for nothing of what we do not serve.

    Raises:
        UnsupportedFieldError: one of them does ask for something.
    """
    if not isinstance(raw, dict):
        return raw
    for name in raw.keys() & neutral.keys():
        value = raw[name]
        if value is not None and value not in neutral[name]:
            raise UnsupportedFieldError(
                f"Unsupported parameter: this server does not serve '{name}' with this value. Leave it out.",
                param=name,
            )
    return {name: value for name, value in raw.items() if name not in neutral}
