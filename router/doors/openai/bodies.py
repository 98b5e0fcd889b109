"""The bodies of OpenAI's requests, checked for their types and for fields that we do not support.

Ranges are checked in ``router.request.sampling``, once for all doors. Types are strict: a number in quotes is
an error, as it is at OpenAI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from engines.sampling_params import SamplingParams
from mooring.declared_models import with_fields_of
from mooring.errors import InvalidRequestError, UnsupportedFieldError
from mooring.slo import OWN_CLASS
from router.doors.http.errors import UNSUPPORTED_VALUE
from router.doors.http.json_body import MAX_ITEMS
from router.doors.http.json_route import BoundedBody
from router.doors.openai.answers import AnswerStyle
from router.request.sampling import DEFAULT_COMPLETION_TOKENS, PLAIN_OPTIONS, SamplingOptions
from router.text.prompts import ChatPrompt

__all__ = [
    "ChatCompletionRequest",
    "ChatLayout",
    "ChatMessage",
    "CompletionRequest",
    "Messages",
    "RequestBody",
    "StreamOptions",
    "TextPart",
]

# Fields of OpenAI's and vLLM's protocols that we do not serve, with the values that ask for nothing.
# null asks for nothing everywhere.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "chat_template": (),
    "documents": ([],),
    "ec_transfer_params": ({},),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_reasoning": (True, False),
    "kv_transfer_params": ({},),
    "length_penalty": (1.0,),
    "logprob_token_ids": (),
    "media_io_kwargs": ({},),
    "metadata": ({},),
    "moderation": (),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "priority": (0,),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "prompt_embeds": ([],),
    "reasoning_effort": (),
    "repetition_detection": (),
    "request_id": (),
    "response_format": ({"type": "text"},),
    "return_mm_kwargs": (True,),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_token_offsets": (False,),
    "routed_experts_prompt_start": (0,),
    "session_id": (),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "stream_interval": (1,),
    "structured_outputs": (),
    "suffix": ("",),
    "thinking_token_budget": (-1,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation_side": ("left",),
    "use_beam_search": (False,),
    "verbosity": (),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    "web_search_options": (),
}
# Fields of an assistant's message, as OpenAI's clients send it back; lm-eval's chat client says that each is
# text.
_NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
    "type": ("text",),
}
_NEUTRAL_IN_STREAM_OPTIONS: dict[str, tuple[Any, ...]] = {"include_obfuscation": (False,)}


# OpenAI's limits: the number of pairs, and their lengths.
_Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
# Bounds on lists, far above what is served, so that no list is looked through that is refused in the end. The first
# wrong item ends the look: each one after it would cost a complaint that nobody is shown.
_MAX_BIASES = 2048
_Strings = Annotated[list[str], Field(fail_fast=True, max_length=4096)]
_TokenIds = Annotated[list[int], Field(fail_fast=True, max_length=MAX_ITEMS)]


def _few(value: Any) -> Any:
    """Refuses an object of very many fields before it is looked through."""
    if isinstance(value, dict) and len(value) > _MAX_BIASES:
        raise PydanticCustomError("too_long", "it has more than {most} entries", {"most": _MAX_BIASES})
    return value


def _kind(value: Any) -> str:
    """The alternative of a union that a value is meant for, by its type and its first item's. Errors are then about
    that one, and the others are not tried."""
    if not isinstance(value, list):
        return "str"
    first = value[0] if value else 0
    if isinstance(first, list):
        return "list[list[int]]"
    return "list[str]" if isinstance(first, str) else "list[int]"


_Prompt = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[_TokenIds, Tag("list[int]")]
    | Annotated[_Strings, Tag("list[str]")]
    | Annotated[list[_TokenIds], Field(fail_fast=True, max_length=4096), Tag("list[list[int]]")],
    Discriminator(_kind),
]
_Stop = Annotated[
    Annotated[str, Tag("str")] | Annotated[_Strings, Tag("list[str]")],
    Discriminator(lambda value: "list[str]" if isinstance(value, list) else "str"),
]
# Roles of messages in a conversation with tools.
_ROLES_OF_TOOLS = ("tool", "function")


class RequestBody(BoundedBody):
    """Base of all bodies: an unknown field is refused, and no value is converted. Fields in ``_neutral`` are
    not served; they are taken only with one of the values given there, which ask for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)
    _neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, raw: Any) -> Any:
        return _without_neutral(raw, cls._neutral)


class StreamOptions(RequestBody):
    """Options of a stream. ``include_usage``: one more chunk at the end, with the usage and no choices.
    ``continuous_usage_stats`` (vLLM's): every chunk has the usage so far."""

    _neutral: ClassVar[dict[str, tuple[Any, ...]]] = _NEUTRAL_IN_STREAM_OPTIONS

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class TextPart(RequestBody):
    """A part of a message's content; text is the only kind that we serve."""

    type: Literal["text"]
    text: str


_Content = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[list[TextPart], Field(fail_fast=True, max_length=8192), Tag("list[TextPart]")],
    Discriminator(lambda value: "list[TextPart]" if isinstance(value, list) else "str"),
]


class ChatMessage(RequestBody):
    """One message. Parts are joined by newlines; ``developer`` is OpenAI's present name for ``system``."""

    _neutral: ClassVar[dict[str, tuple[Any, ...]]] = _NEUTRAL_IN_MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
    content: _Content
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_tools(cls, raw: Any) -> Any:
        """Complains about the role itself, before the fields that only such a message has."""
        if isinstance(raw, dict) and raw.get("role") in _ROLES_OF_TOOLS:
            raise PydanticCustomError(UNSUPPORTED_VALUE, "{field}", {"field": "role"})
        return raw

    def for_template(self) -> dict[str, str]:
        """The message as chat templates read it."""
        content = self.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": text}
        return message if self.name is None else {**message, "name": self.name}


Messages = Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=8192)]


@with_fields_of(SamplingParams, may_be_none=True, bounded=False)
class _SamplingBody(RequestBody):
    """Fields that completions and chat completions share, beside the sampling parameters that have one name
    everywhere. null means the same as leaving a field out."""

    _neutral: ClassVar[dict[str, tuple[Any, ...]]] = _NEUTRAL

    model: str
    max_tokens: int | None = None
    stop: _Stop | None = None
    stop_token_ids: _TokenIds | None = None
    logit_bias: Annotated[dict[str, float], BeforeValidator(_few)] | None = None
    bad_words: _Strings | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    return_tokens_as_token_ids: bool | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: str | None = Field(None, min_length=1)
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None

    def style(self) -> AnswerStyle:
        """The form of the answer that the caller asked for."""
        stream_options = self.stream_options or StreamOptions()
        return AnswerStyle(
            include_usage=bool(stream_options.include_usage),
            continuous_usage=bool(stream_options.continuous_usage_stats),
            tokens_as_ids=bool(self.return_tokens_as_token_ids),
            prompt_logprobs=self.prompt_logprobs is not None,
            service_tier="default" if self.service_tier in OWN_CLASS else self.service_tier,
        )

    def metadata_pairs(self) -> tuple[tuple[str, str], ...]:
        """Pairs that the caller noted beside the request, in their order."""
        return ()

    def _common_options(self) -> dict[str, Any]:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                param="stream_options",
            )
        if self.stream and self.prompt_logprobs is not None:
            raise UnsupportedFieldError(
                "The 'prompt_logprobs' parameter is only allowed when 'stream' is not enabled.",
                param="prompt_logprobs",
            )
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        options = {name: getattr(self, name) for name in _COMMON_OPTIONS}
        if options["top_p"] == 0:  # the low end of OpenAI's range: only the likeliest token
            options |= {"top_p": 1.0, "top_k": 1}
        return options | {
            "stop": tuple(stop),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "bad_words": tuple(self.bad_words or ()),
            "logit_bias": _biases(self.logit_bias or {}),
        }


_COMMON_OPTIONS = (
    *PLAIN_OPTIONS,
    *("n", "prompt_logprobs", "skip_special_tokens", "include_stop_str_in_output"),
    *("truncate_prompt_tokens", "add_special_tokens", "cache_salt"),
)


class CompletionRequest(_SamplingBody):
    """The body of ``POST /v1/completions``."""

    prompt: _Prompt = Field(
        description="A text or its token ids, or a list of either: then choices are numbered prompt by prompt."
    )
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None

    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts, at least one."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not prompt or isinstance(prompt[0], int):  # and so are all others: there may be very many
            return [tuple(cast("list[int]", prompt))]
        return [each if isinstance(each, str) else tuple(each) for each in prompt]

    def options(self) -> SamplingOptions:
        """The caller's sampling options.

        Raises:
            UnsupportedFieldError: ``best_of`` is not ``n``: no more choices are made than are shown.
        """
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise UnsupportedFieldError(
                "The 'best_of' parameter must be the same as 'n'. Leave it out.", param="best_of"
            )
        return SamplingOptions(
            **self._common_options(),
            max_tokens=self.max_tokens,
            default_max_tokens=DEFAULT_COMPLETION_TOKENS,
            logprobs=self.logprobs,
            echo=self.echo,
        )


class ChatLayout(RequestBody):
    """Settings of how the chat template lays messages out."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def chat_prompt(self, messages: Sequence[ChatMessage]) -> ChatPrompt:
        """The messages for the chat template.

        Raises:
            InvalidRequestError: both the answer's beginning and the last message's end are to come last.
        """
        continues = bool(self.continue_final_message)
        if continues and self.add_generation_prompt:
            raise InvalidRequestError(
                "Only one of 'continue_final_message' and 'add_generation_prompt' can be true.",
                param="continue_final_message",
            )
        return ChatPrompt(
            tuple(message.for_template() for message in messages),
            add_generation_prompt=self.add_generation_prompt is not False and not continues,
            continue_final_message=continues,
            template_variables=self.chat_template_kwargs or {},
        )


class ChatCompletionRequest(_SamplingBody, ChatLayout):
    """The body of ``POST /v1/chat/completions``."""

    _neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **{name: values for name, values in _NEUTRAL.items() if name != "metadata"},
        "echo": (False,),
    }

    messages: Messages
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    metadata: _Metadata | None = None

    def metadata_pairs(self) -> tuple[tuple[str, str], ...]:
        return tuple((self.metadata or {}).items())

    def prompts(self) -> list[ChatPrompt]:
        """The one prompt of the conversation."""
        return [self.chat_prompt(self.messages)]

    def options(self) -> SamplingOptions:
        """The caller's sampling options.

        Raises:
            InvalidRequestError: ``top_logprobs`` was sent without ``logprobs``.
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


def _biases(by_token_id: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """The biases by token id, sorted, so that the same biases always give the same request."""
    for token_id in by_token_id:
        if not (token_id.isascii() and token_id.isdecimal() and len(token_id) <= 10):
            raise InvalidRequestError(
                f"Invalid 'logit_bias': each key must be a token id in decimal digits, and '{token_id[:20]}' is "
                f"not.",
                param="logit_bias",
            )
    biases = {int(token_id): bias for token_id, bias in by_token_id.items()}
    return tuple(sorted(biases.items()))


def _without_neutral(raw: Any, neutral: Mapping[str, Iterable[Any]]) -> Any:
    """The body without its neutral fields, which ask for nothing that we do not serve.

    Raises:
        PydanticCustomError: such a field does ask for something; pydantic adds its place.
    """
    if not isinstance(raw, dict):
        return raw
    for name in raw.keys() & neutral.keys():
        value = raw[name]
        if value is not None and value not in neutral[name]:
            raise PydanticCustomError(UNSUPPORTED_VALUE, "{field}", {"field": name})
    return {name: value for name, value in raw.items() if name not in neutral}
