"""Tokenizers and chat templates: they turn text into token ids and back; read from a model's folder and kept
in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from engines.api import TokenIds
from mooring.errors import ArtifactError, InvalidRequestError
from router.request.bounds import RouterConfig
from router.request.single_flight import SingleFlightCache
from router.text.chat_template import ChatTemplate
from router.text.detokenizer import TokenTable

__all__ = ["ChatPrompt", "Prompt", "TextModel", "TextModels", "load_text_model"]

_SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation for the chat template.

    Attributes:
        messages: each with ``role`` and ``content``, both text.
        add_generation_prompt: whether the prompt ends where the assistant's answer begins.
        continue_final_message: whether the prompt ends with the last message's content, which the model
            continues.
        template_variables: further names that the template finds.
    """

    messages: tuple[Mapping[str, str], ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_variables: Mapping[str, Any] = field(default_factory=dict)


Prompt = str | tuple[int, ...] | ChatPrompt


class TextModel:
    """A model's tokenizer and chat template.

    Attributes:
        tokens: the text that each token stands for, for the way back.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: ChatTemplate | None = None) -> None:
        # Settings of a training run that some published files still carry.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self.tokens = TokenTable(tokenizer)
        self._known_ids = frozenset(tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(
        self, prompt: Prompt, add_special_tokens: bool | None = None, *, param: str = "prompt"
    ) -> TokenIds:
        """Turns a prompt of any kind into token ids.

        A plain text gets the special tokens that the tokenizer adds (usually the beginning-of-sequence); chat
        goes through the chat template, which writes the special tokens itself; token ids stay as they are.

        Args:
            add_special_tokens: True: a chat prompt gets the tokenizer's special tokens too. False: a plain
                text gets none. None: as described.
            param: the door's name for the prompt, for errors.

        Raises:
            InvalidRequestError: the prompt cannot be turned into tokens of this model.
        """
        if isinstance(prompt, str):
            ids = self._encode(prompt, add_special_tokens=add_special_tokens is not False, param=param)
            return np.array(ids, np.int32)
        if isinstance(prompt, ChatPrompt):
            if self._chat_template is None:
                raise InvalidRequestError(
                    "This model has no chat template: send a plain prompt to /v1/completions instead.",
                    param=param,
                )
            if not prompt.messages:
                raise InvalidRequestError("Send at least one message.", param=param)
            text = self._chat_template.render(
                prompt.messages,
                add_generation_prompt=prompt.add_generation_prompt,
                continue_final_message=prompt.continue_final_message,
                variables=prompt.template_variables,
            )
            return np.array(
                self._encode(text, add_special_tokens=bool(add_special_tokens), param=param), np.int32
            )
        self.check_ids(prompt, param=param)
        return np.array(prompt, np.int32)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included.

        Raises:
            InvalidRequestError: an id is not one of this model's tokens.
        """
        self.check_ids(token_ids, param="tokens")
        detokenizer = self.tokens.detokenizer(skip_special_tokens=False)
        return "".join(map(detokenizer.push, token_ids)) + detokenizer.finish()

    def check_ids(self, token_ids: Sequence[int], *, param: str) -> None:
        """Checks token ids.

        Raises:
            InvalidRequestError: an id is not one of this model's tokens.
        """
        if not self._known_ids.issuperset(token_ids):
            wrong = next(token_id for token_id in token_ids if token_id not in self._known_ids)
            raise InvalidRequestError(
                f"Invalid '{param}': {wrong} is not a token id of this model.", param=param
            )

    def bad_words_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Spellings of each word in tokens: of the word as it is, and of the word after a space."""
        spellings = (text for word in words for text in (word, " " + word.lstrip()))
        ids = (self._encode(text, add_special_tokens=False, param="bad_words") for text in spellings)
        return tuple(dict.fromkeys(tuple(each) for each in ids if each))

    def _encode(self, text: str, *, add_special_tokens: bool, param: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"Invalid '{param}': it holds half of a surrogate pair, which is no character: send valid "
                f"Unicode.",
                param=param,
            ) from error
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids


class TextModels:
    """The text models in use, by folder. A folder is one immutable version, so it is read once."""

    def __init__(self, config: RouterConfig) -> None:
        self._inline_text_chars = config.inline_text_chars
        self._loaded = SingleFlightCache[Path, TextModel](
            load_text_model, max_entries=config.tokenizers_cached
        )

    async def get(self, folder: Path) -> TextModel:
        """The text model of a folder, loaded in a thread if it is not in memory yet.

        Raises:
            ArtifactError: the folder's files are missing, broken or of a kind that cannot be streamed.
        """
        return await self._loaded.get(folder)

    async def encode(
        self,
        model: TextModel,
        prompts: Sequence[Prompt],
        add_special_tokens: bool | None = None,
        *,
        param: str = "prompt",
    ) -> list[TokenIds]:
        """Turns prompts of any kind into token ids; long prompts in a thread.

        Args:
            add_special_tokens: as for ``TextModel.encode``.
            param: as for ``TextModel.encode``.

        Raises:
            InvalidRequestError: a prompt cannot be turned into tokens of this model.
        """

        def encode() -> list[TokenIds]:
            return [model.encode(prompt, add_special_tokens, param=param) for prompt in prompts]

        if sum(map(_num_chars, prompts)) <= self._inline_text_chars:
            return encode()
        return await asyncio.to_thread(encode)

    async def decode(self, model: TextModel, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included; the text of many tokens is made in a thread.

        Raises:
            InvalidRequestError: an id is not one of this model's tokens.
        """
        if len(token_ids) <= self._inline_text_chars:
            return model.decode(token_ids)
        return await asyncio.to_thread(model.decode, token_ids)


def load_text_model(folder: Path) -> TextModel:
    """Reads ``tokenizer.json``, ``tokenizer_config.json`` and the chat template of a folder.

    Raises:
        ArtifactError: a file is missing or broken; the message names it.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"cannot read {path.name} of the model: {error.strerror}") from error
    # The library raises a bare Exception for a file it cannot make sense of, and nothing narrower.
    except Exception as error:
        raise ArtifactError(f"{path.name} of the model is broken: {error}") from error
    settings = _read_json(folder / "tokenizer_config.json")
    specials = _special_tokens(_read_json(folder / "special_tokens_map.json") | settings)
    source = _template_source(folder, settings)
    return TextModel(tokenizer, None if source is None else ChatTemplate(source, specials))


def _num_chars(prompt: Prompt) -> int:
    if isinstance(prompt, ChatPrompt):
        return sum(len(message["content"]) for message in prompt.messages)
    return len(prompt)


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is absent."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path.name} of the model is broken: {error}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path.name} of the model is not a JSON object")
    return content


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by name; each is a string, or an object with its ``content``."""
    found = {}
    for name in _SPECIAL_TOKEN_NAMES:
        token = settings.get(name)
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str):
            found[name] = token
    return found


def _template_source(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, or a setting (one text, or several by name)."""
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        by_name = {entry.get("name"): entry.get("template") for entry in template}
        template = by_name.get("default")
    return template if isinstance(template, str) else None
