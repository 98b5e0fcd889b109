"""Turns chat messages into one prompt, by the template that the model brings.

A template comes from whoever published the model, so it runs in Jinja's immutable sandbox, in a process of its
own. It finds the names that Hugging Face templates expect, and nothing else. An operation that would make something
huge at once is refused; everything else that takes too long or too much is ended by the process's limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mooring.errors import ArtifactError, InvalidRequestError
from mooring.units import MIB

__all__ = ["ChatTemplate"]

_PROBE = "mooring-probe"
# Names that templates may find and that callers set by fields of their own, or not at all.
_RESERVED = frozenset(("messages", "add_generation_prompt", "continue_final_message", "tools", "documents"))
_MAX_CHARS = 16 * MIB  # of a rendered prompt, and of what one operation makes
_MAX_BITS = 4096  # of a number that one operation makes


class ChatTemplate:
    """A compiled template.

    Args:
        source: the template's text.
        special_tokens: ``bos_token``, ``eos_token`` and the like, by the names that templates use.

    Raises:
        ArtifactError: the text is not a Jinja template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        # Not only a syntax error: Jinja computes constants here, and it cannot read a template nested too
        # deep.
        except Exception as error:
            raise ArtifactError(f"the model's chat template is not a valid template: {error}") from error

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template reads a message's content as a list of parts and shows nothing of a content that is
        plain text (templates of models that also take images)."""
        return not self._shows(_PROBE) and self._shows(_parts(_PROBE))

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for these messages.

        Args:
            messages: each with ``role`` and ``content``, both text.
            add_generation_prompt: whether the prompt ends where the assistant's answer begins.
            continue_final_message: whether the prompt ends with the last message's content, which the model
                continues.
            variables: further names that the template finds.

        Raises:
            InvalidRequestError: the template refused the messages or failed on them; or ``variables`` hides
                one of the template's own names.
        """
        shown: list[Mapping[str, Any]] = list(messages)
        if self.takes_parts:
            shown = [{**message, "content": _parts(message["content"])} for message in messages]
        own = {**self._special_tokens, "messages": shown, "add_generation_prompt": add_generation_prompt}
        if hidden := sorted((own.keys() | _RESERVED) & (variables or {}).keys()):
            raise InvalidRequestError(
                f"'{hidden[0]}' cannot be set by chat_template_kwargs.", param="chat_template_kwargs"
            )
        text = self._render({**(variables or {}), **own})
        return _until_final_content(text, messages[-1]["content"]) if continue_final_message else text

    def _shows(self, content: Any) -> bool:
        message = {"role": "user", "content": content}
        variables = {**self._special_tokens, "messages": [message], "add_generation_prompt": False}
        try:
            return _PROBE in self._render(variables)
        except InvalidRequestError:  # a template that does not take such a message does not show it either
            return False

    def _render(self, variables: Mapping[str, Any]) -> str:
        try:
            return _bounded(self._template.generate(variables))
        # A template is somebody else's program: it may raise whatever an expression can, recurse without end
        # and ask for more memory than there is.
        except Exception as error:
            raise InvalidRequestError(
                f"The model's chat template does not take these messages: {error}", param="messages"
            ) from error


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, without the operations that make much of little."""

    intercepted_binops = frozenset(("**", "*"))

    def _generate(self, *args: Any, **kwargs: Any) -> str:  # the name is Jinja's
        code = super()._generate(*args, **kwargs)
        if len(code) > _MAX_CHARS:  # Jinja has computed its constants, which the process would hold for ever
            raise OverflowError("what it computes beforehand is too long")
        return code

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Carries out an operation if its result is of bounded size.

        Raises:
            OverflowError: it is not.
        """
        if operator == "**":
            _check_power(left, right)
        else:
            _check_product(left, right)
        return super().call_binop(context, operator, left, right)


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _MAX_BITS:
        raise OverflowError("the power is too large a number")


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_BITS:
            raise OverflowError("the product is too large a number")
        return
    for items, times in ((left, right), (right, left)):
        repeats = isinstance(items, str | bytes | list | tuple) and isinstance(times, int)
        if repeats and len(items) * times > _MAX_CHARS:
            raise OverflowError("the repetition is too long")


def _bounded(pieces: Iterable[str]) -> str:
    """The text of all pieces, as long as that is not too long."""
    kept, num_chars = [], 0
    for piece in pieces:
        num_chars += len(piece)
        if num_chars > _MAX_CHARS:
            raise OverflowError(f"the prompt has more than {_MAX_CHARS} characters")
        kept.append(piece)
    return "".join(kept)


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _until_final_content(text: str, content: str) -> str:
    """The rendered text up to the end of the last message's content, which templates may strip."""
    stripped = content.strip()
    start = text.rfind(stripped) if stripped else -1
    if start < 0:
        raise InvalidRequestError(
            "The last message cannot be continued: it is empty, or the chat template changes it.",
            param="continue_final_message",
        )
    whole = content.lstrip()
    kept = whole if text.startswith(whole, start) else stripped
    return text[: start + len(kept)]


class _GenerationTag(Extension):
    """``{% generation %}``, which marks the assistant's words for training; rendered as its content."""

    tags = {"generation"}  # noqa: RUF012 (the name and the type are Jinja's)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
