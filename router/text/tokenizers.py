"""Tokenizers and chat templates: they turn text into token ids and back; read from a model's folder and kept
in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer

from engines.api import TokenIds
from mooring.errors import ArtifactError, InvalidRequestError
from router.request.bounds import RouterConfig
from router.request.single_flight import SingleFlightCache
from router.text.chat_template import ChatTemplate
from router.text.detokenizer import TokenTable
from router.text.token_bound import token_bound

__all__ = ["ChatPrompt", "EncodedPrompt", "Prompt", "TextModel", "TextModels", "load_text_model"]

T = TypeVar("T")

_MESSAGE_CHARS = 64
_NO_IDS: TokenIds = np.empty(0, np.int32)
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


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPrompt:
    """A prompt as token ids.

    Attributes:
        ids: the ids, int32; none if the prompt has too many.
        num_tokens: their number, however many.
        is_exact: whether that is their number, or only the fewest that they can be.
    """

    ids: TokenIds
    num_tokens: int
    is_exact: bool = True


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
        self._bound = token_bound(tokenizer)

    def encode(
        self,
        prompt: Prompt,
        add_special_tokens: bool | None = None,
        *,
        param: str = "prompt",
        max_tokens: int | None = None,
    ) -> EncodedPrompt:
        """Turns a prompt of any kind into token ids.

        A plain text gets the special tokens that the tokenizer adds (usually the beginning-of-sequence); chat
        goes through the chat template, which writes the special tokens itself; token ids stay as they are.

        Args:
            add_special_tokens: True: a chat prompt gets the tokenizer's special tokens too. False: a plain
                text gets none. None: as described.
            param: the door's name for the prompt, for errors.
            max_tokens: most tokens that are of use; a text that certainly has more is not tokenized.

        Raises:
            InvalidRequestError: the prompt cannot be turned into tokens of this model.
        """
        if isinstance(prompt, str):
            text, adds_special_tokens = prompt, add_special_tokens is not False
        elif isinstance(prompt, ChatPrompt):
            text, adds_special_tokens = self._render(prompt, param), bool(add_special_tokens)
        else:
            if max_tokens is None or len(prompt) <= max_tokens:
                self.check_ids(prompt, param=param)
                return EncodedPrompt(np.array(prompt, np.int32), len(prompt))
            return EncodedPrompt(_NO_IDS, len(prompt))
        _check_unicode(text, param)
        if max_tokens is not None and self._bound is not None:
            fewest = self._bound.fewest_tokens(text)
            if fewest > max_tokens:
                return EncodedPrompt(_NO_IDS, fewest, is_exact=False)
        [ids] = self._encode([text], add_special_tokens=adds_special_tokens)
        if max_tokens is not None and len(ids) > max_tokens:
            return EncodedPrompt(_NO_IDS, len(ids))
        return EncodedPrompt(np.array(ids, np.int32), len(ids))

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
        spellings = [text for word in words for text in (word, " " + word.lstrip())]
        for text in spellings:
            _check_unicode(text, "bad_words")
        return tuple(
            dict.fromkeys(tuple(ids) for ids in self._encode(spellings, add_special_tokens=False) if ids)
        )

    def _render(self, prompt: ChatPrompt, param: str) -> str:
        if self._chat_template is None:
            raise InvalidRequestError(
                "This model has no chat template: send a plain prompt to /v1/completions instead.",
                param=param,
            )
        if not prompt.messages:
            raise InvalidRequestError("Send at least one message.", param=param)
        return self._chat_template.render(
            prompt.messages,
            add_generation_prompt=prompt.add_generation_prompt,
            continue_final_message=prompt.continue_final_message,
            variables=prompt.template_variables,
        )

    def _encode(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        # It finds no offsets, which costs most of the time of ``encode``, and lets others run meanwhile.
        batch = self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in batch]


class TextModels:
    """The text models in use, by folder. A folder is one immutable version, so it is read once."""

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
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
        max_tokens: int | None = None,
    ) -> list[EncodedPrompt]:
        """Turns prompts of any kind into token ids; long prompts in a thread.

        Args:
            add_special_tokens: as for ``TextModel.encode``.
            param: as for ``TextModel.encode``.
            max_tokens: as for ``TextModel.encode``, of each prompt.

        Raises:
            InvalidRequestError: a prompt cannot be turned into tokens of this model.
        """
        num_messages = max(
            (len(each.messages) for each in prompts if isinstance(each, ChatPrompt)), default=0
        )
        if num_messages > self._config.max_messages:
            raise InvalidRequestError(
                f"Invalid '{param}': {num_messages} messages; at most {self._config.max_messages} are taken.",
                param=param,
            )

        def encode() -> list[EncodedPrompt]:
            return [
                model.encode(prompt, add_special_tokens, param=param, max_tokens=max_tokens)
                for prompt in prompts
            ]

        return await self._run(encode, sum(map(_num_chars, prompts)))

    async def bad_words_ids(self, model: TextModel, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Spellings as ``TextModel.bad_words_ids`` finds them; of many words in a thread."""
        return await self._run(lambda: model.bad_words_ids(words), sum(map(len, words)))

    async def _run(self, work: Callable[[], T], num_chars: int) -> T:
        if num_chars <= self._config.inline_text_chars:
            return work()
        return await asyncio.to_thread(work)

    async def decode(self, model: TextModel, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included; the text of many tokens is made in a thread.

        Raises:
            InvalidRequestError: an id is not one of this model's tokens.
        """
        return await self._run(lambda: model.decode(token_ids), len(token_ids))


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
        # A message costs about as much as so many characters, however few it has itself.
        return sum(len(message["content"]) + _MESSAGE_CHARS for message in prompt.messages)
    return len(prompt)


def _check_unicode(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"Invalid '{param}': it holds half of a surrogate pair, which is no character: send valid Unicode.",
            param=param,
        ) from error


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
