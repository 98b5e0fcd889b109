"""Chat messages to one prompt, by the template that the model brings.

Templates come from whoever published the model, so they run in Jinja's immutable sandbox. They find the
names that Hugging Face templates expect, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mooring.errors import ArtifactError, InvalidRequestError

__all__ = ["ChatTemplate"]


class ChatTemplate:
    """A compiled template.

    Args:
        source: the template's text.
        special_tokens: ``bos_token``, ``eos_token`` and the like, by the names templates use.

    Raises:
        ArtifactError: the text is not a Jinja template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        # Not only a syntax error: constants are computed here, and what is nested too deep cannot be read.
        except Exception as error:
            raise ArtifactError(f"the model's chat template is not a valid template: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for these messages, ready for the assistant's answer.

        Raises:
            InvalidRequestError: the template refused the messages, or failed on them.
        """
        try:
            return self._template.render(
                **self._special_tokens, messages=list(messages), add_generation_prompt=True
            )
        # A template is a program of somebody else's: it may raise anything that an expression can, recurse
        # without end and ask for more memory than there is.
        except Exception as error:
            raise InvalidRequestError(
                f"The model's chat template does not take these messages: {error}", param="messages"
            ) from error


class _GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's words for training; here it is its content."""

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
