"""Tokenizers and chat templates: they turn text into token ids. Each model's run in a process of its own, since
strangers wrote them and long texts take long; the way back, for every token, is here (``detokenizer``)."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from engines.api import TokenIds
from mooring.errors import ArtifactError, InvalidRequestError
from router.request.bounds import RouterConfig
from router.tenancy.tenant import Tenant
from router.text.detokenizer import TokenTable
from router.text.fair_turns import FairTurns
from router.text.frames import Frame
from router.text.process import ProcessLostError, TextProcess, TookTooLongError
from router.text.prompts import ChatPrompt, EncodedPrompt, Prompt
from router.text.starter import TextStarter

__all__ = ["EncodedPrompts", "TextModel", "TextModels", "TokenizedPrompt"]

logger = logging.getLogger(__name__)

_NO_IDS: TokenIds = np.empty(0, np.int32)
_MOST_DEATHS = 2  # of processes that work on a call, or that read a folder
_MESSAGE_CHARS = 64  # a message costs about as much as so many characters, however few it has itself


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPrompts:
    """Prompts as token ids, and spellings in token ids of the words that their outputs never complete."""

    prompts: list[EncodedPrompt]
    bad_words_ids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedPrompt:
    """A prompt as its tokens.

    Attributes:
        ids: the ids, int32.
        strings_json: each token as the vocabulary spells it (``Ġthe``): a list, in JSON.
    """

    ids: TokenIds
    strings_json: bytes


class TextModel:
    """A model's tokenizer and chat template, by way of the process that they run in.

    A process that dies is started again. What it had not begun is sent again and costs nothing but time. The call
    that it worked on is tried once more, after everybody else's, and refused if it is at work again when a process
    dies; one that takes too long is refused at once.

    Args:
        folder: folder of one immutable version.
        starter: starts the process.
        config: the bounds.

    Attributes:
        tokens: text of each token, for the way back; there once ``load`` has returned.
    """

    tokens: TokenTable

    def __init__(self, folder: Path, starter: TextStarter, config: RouterConfig) -> None:
        self._folder = folder
        self._starter = starter
        self._config = config
        self._process: TextProcess | None = None
        self._starting: asyncio.Task[TextProcess] | None = None
        self._short_turns = FairTurns(config.inline_texts_at_once)
        self._long_turns = FairTurns(config.long_texts_at_once)
        self._num_callers = 0
        self._is_closed = False

    async def load(self) -> None:
        """Starts the process and waits until it has read the folder.

        Raises:
            ArtifactError: the folder's files are missing, broken or of a kind that cannot be streamed.
        """
        await self._running()

    def close(self) -> None:
        """Ends the process, once nobody waits for it."""
        self._is_closed = True
        self._end_if_unused()

    def kill(self) -> None:
        """Ends the process at once."""
        self._is_closed = True
        if self._starting is not None:
            self._starting.cancel()
        if self._process is not None:
            self._process.close()

    async def encode(
        self,
        prompts: Sequence[Prompt],
        *,
        tenant: Tenant,
        add_special_tokens: bool | None = None,
        param: str = "prompt",
        max_tokens: int | None = None,
        num_kept: int | None = None,
        bad_words: Sequence[str] = (),
    ) -> EncodedPrompts:
        """Turns prompts of any kind into token ids.

        A plain text gets the special tokens that the tokenizer adds (usually the beginning-of-sequence); chat
        goes through the chat template, which writes the special tokens itself; token ids stay as they are.

        Args:
            tenant: who asks; tenants take turns.
            add_special_tokens: True: a chat prompt gets the tokenizer's special tokens too. False: a plain
                text gets none. None: as described.
            param: the door's name for the prompts, for errors.
            max_tokens: most tokens that are of use, of those that are kept; a text that certainly has more is not
                tokenized.
            num_kept: number of ids from each prompt's end that are wanted; None for all.
            bad_words: words to spell: each as it is, and after a space.

        Raises:
            InvalidRequestError: a prompt cannot be turned into tokens of this model.
        """
        texts = [self._text(prompt, param) for prompt in prompts if not isinstance(prompt, tuple)]
        encoded: list[EncodedPrompt] = []
        spellings: tuple[tuple[int, ...], ...] = ()
        if texts or bad_words:
            call = {
                "do": "encode",
                "prompts": texts,
                "special_tokens": add_special_tokens,
                "param": param,
                "max_tokens": max_tokens,
                "num_kept": num_kept,
                "bad_words": bad_words,
            }
            num_chars = sum(map(_num_chars, prompts)) + sum(map(len, bad_words))
            encoded, spellings = self._read_encoded(await self._call(call, tenant, num_chars, param))
        in_turn = iter(encoded)
        return EncodedPrompts(
            [
                self._take_ids(prompt, param, max_tokens, num_kept)
                if isinstance(prompt, tuple)
                else next(in_turn)
                for prompt in prompts
            ],
            spellings,
        )

    async def tokenize(
        self,
        prompt: str | ChatPrompt,
        *,
        tenant: Tenant,
        add_special_tokens: bool | None,
        param: str,
        strings: bool,
    ) -> TokenizedPrompt:
        """All tokens of a prompt.

        Args:
            tenant: as for ``encode``.
            add_special_tokens: as for ``encode``.
            param: as for ``encode``.
            strings: whether the tokens' spellings are wanted.

        Raises:
            InvalidRequestError: the prompt cannot be turned into tokens of this model.
        """
        call = {
            "do": "tokenize",
            "prompt": self._text(prompt, param),
            "special_tokens": add_special_tokens,
            "param": param,
            "strings": strings,
        }
        frame = await self._call(call, tenant, _num_chars(prompt), param)
        num_bytes = 4 * int(frame.content["num_ids"])
        return TokenizedPrompt(np.frombuffer(frame.raw[:num_bytes], np.int32), frame.raw[num_bytes:])

    async def decode(self, token_ids: Sequence[int], *, tenant: Tenant) -> str:
        """The text of tokens, special ones included.

        Args:
            tenant: as for ``encode``.

        Raises:
            InvalidRequestError: an id is not one of this model's tokens.
        """
        frame = await self._call({"do": "decode", "ids": token_ids}, tenant, len(token_ids), "tokens")
        return frame.raw.decode(errors="replace")

    async def _call(self, call: dict[str, Any], tenant: Tenant, num_chars: int, param: str) -> Frame:
        is_long = num_chars > self._config.inline_text_chars
        self._num_callers += 1
        try:
            async with (self._long_turns if is_long else self._short_turns).turn(tenant):
                return await self._until_answered(call, param, is_long)
        except TypeError as error:  # it cannot be written as JSON
            raise _unwritable(call, param) from error
        finally:
            self._num_callers -= 1
            self._end_if_unused()

    async def _until_answered(self, call: dict[str, Any], param: str, is_long: bool) -> Frame:
        num_deaths = 0
        while True:
            process = await self._running()
            if num_deaths:
                await asyncio.sleep(0)  # whoever lost nothing but time goes first
            try:
                return await (process.long_call(call) if is_long else process.call(call))
            except TookTooLongError as error:
                logger.warning("turning text into tokens took too long: %s", self._folder)
                raise InvalidRequestError(
                    f"Invalid '{param}': the model's tokenizer and chat template took longer than "
                    f"{self._config.text_timeout_s:g} s (text_timeout_s) on it.",
                    param=param,
                ) from error
            except ProcessLostError as error:
                num_deaths += error.was_at_work
                if num_deaths == _MOST_DEATHS:
                    raise InvalidRequestError(
                        f"Invalid '{param}': the process of the model's tokenizer and chat template ended on it, "
                        f"twice; it may need more memory than text_memory_bytes.",
                        param=param,
                    ) from error

    async def _running(self) -> TextProcess:
        if self._process is not None and not self._process.is_lost:
            return self._process
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        # A caller that goes away must not take the process from the others.
        return await asyncio.shield(self._starting)

    async def _start(self) -> TextProcess:
        try:
            for _ in range(_MOST_DEATHS):
                process = await self._start_once()
                if process is not None:
                    self._process = process
                    self._end_if_unused()  # whoever wanted it may have gone
                    return process
        finally:
            self._starting = None
        raise ArtifactError(
            "the process that reads the model's tokenizer ended, twice: it may need more memory than "
            "text_memory_bytes"
        )

    async def _start_once(self) -> TextProcess | None:
        """A process that has read the folder; None if it ended meanwhile."""
        config = self._config
        started = await asyncio.to_thread(self._starter.process, self._folder, config.text_memory_bytes)
        process = TextProcess(started, config.text_timeout_s)
        try:
            await process.connect()
            async with asyncio.timeout(config.text_load_timeout_s):
                frame = await process.ready
            if not hasattr(self, "tokens"):
                self.tokens = TokenTable.read(frame.content, frame.raw)
        except ProcessLostError:
            process.close()
            logger.warning("the process that reads the tokenizer ended: %s", self._folder)
            return None
        except BaseException as error:
            process.close()
            if isinstance(error, TimeoutError):
                limit = f"{config.text_load_timeout_s:g} s"
                raise ArtifactError(f"reading the model's tokenizer takes longer than {limit}") from error
            if isinstance(error, (ValueError, LookupError, TypeError)):
                raise ArtifactError("the model's vocabulary cannot be read") from error
            raise
        return process

    def _end_if_unused(self) -> None:
        if self._is_closed and self._num_callers == 0 and self._process is not None:
            self._process.close()

    def _text(self, prompt: str | ChatPrompt, param: str) -> str | dict[str, Any]:
        """A prompt that is text as the process takes it."""
        if isinstance(prompt, str):
            return prompt
        if not prompt.messages:
            raise InvalidRequestError("Send at least one message.", param=param)
        most = self._config.max_messages
        if len(prompt.messages) > most:
            raise InvalidRequestError(
                f"Invalid '{param}': {len(prompt.messages)} messages; at most {most} are taken.", param=param
            )
        return {
            "messages": prompt.messages,
            "add_generation_prompt": prompt.add_generation_prompt,
            "continue_final_message": prompt.continue_final_message,
            "template_variables": prompt.template_variables,
        }

    def _take_ids(
        self, ids: tuple[int, ...], param: str, max_tokens: int | None, num_kept: int | None
    ) -> EncodedPrompt:
        """A prompt that came as token ids."""
        kept = ids if num_kept is None else ids[-num_kept:]
        if max_tokens is not None and len(kept) > max_tokens:
            return EncodedPrompt(_NO_IDS, len(ids))
        return EncodedPrompt(self.tokens.check_ids(kept, param=param), len(ids))

    def _read_encoded(self, frame: Frame) -> tuple[list[EncodedPrompt], tuple[tuple[int, ...], ...]]:
        ids = np.frombuffer(frame.raw, np.int32)
        self.tokens.check_known(ids)
        prompts, place = [], 0
        for num_ids, num_tokens, is_exact in frame.content["prompts"]:
            prompts.append(EncodedPrompt(ids[place : place + num_ids], int(num_tokens), bool(is_exact)))
            place += num_ids
        spellings = []
        for num_ids in frame.content["bad_words"]:
            spellings.append(tuple(ids[place : place + num_ids].tolist()))
            place += num_ids
        return prompts, tuple(spellings)


class TextModels:
    """The text models in use, by folder. A folder is one immutable version, so it is read once. Belongs to one event
    loop.

    Args:
        config: the bounds.
        starter: starts the processes.
    """

    def __init__(self, config: RouterConfig, starter: TextStarter) -> None:
        self._config = config
        self._starter = starter
        self._models: OrderedDict[Path, TextModel] = OrderedDict()
        self._loading: dict[Path, asyncio.Task[TextModel]] = {}

    async def get(self, folder: Path) -> TextModel:
        """The text model of a folder, whose process reads it first if it is not in use yet.

        Raises:
            ArtifactError: the folder's files are missing, broken or of a kind that cannot be streamed.
        """
        model = self._models.get(folder)
        if model is None:
            loading = self._loading.get(folder)
            if loading is None:
                loading = self._loading[folder] = asyncio.create_task(self._load(folder))
            # A caller that goes away must neither take the model from the others nor leave its process to nobody.
            return await asyncio.shield(loading)
        self._models.move_to_end(folder)
        return model

    def drop(self, folder: Path) -> None:
        """Ends the process of a folder that nobody serves any more, once nobody waits for it."""
        loading = self._loading.get(folder)
        if loading is not None and not loading.done():
            loading.add_done_callback(lambda _: self.drop(folder))
        elif (model := self._models.pop(folder, None)) is not None:
            model.close()

    def close(self) -> None:
        """Ends all processes."""
        for loading in self._loading.values():
            loading.cancel()
        for model in self._models.values():
            model.kill()
        self._models.clear()

    async def _load(self, folder: Path) -> TextModel:
        model = TextModel(folder, self._starter, self._config)
        try:
            await model.load()
        except BaseException:
            model.kill()
            raise
        finally:
            del self._loading[folder]
        self._models[folder] = model
        while len(self._models) > self._config.tokenizers_cached:
            self._models.popitem(last=False)[1].close()
        return model


def _num_chars(prompt: Prompt) -> int:
    if isinstance(prompt, ChatPrompt):
        messages = sum(sum(map(len, message.values())) + _MESSAGE_CHARS for message in prompt.messages)
        return messages + _num_variable_chars(prompt.template_variables)
    return len(prompt) if isinstance(prompt, str) else 0


def _num_variable_chars(variables: Mapping[str, Any]) -> int:
    """Length of the template's variables as JSON: a template may write any of it into the prompt."""
    try:
        return len(orjson.dumps(variables)) if variables else 0
    except TypeError:  # then it cannot be sent either
        return 0


def _unwritable(call: dict[str, Any], param: str) -> InvalidRequestError:
    """The error for a call that cannot be sent: JSON has no half characters."""
    prompts = [*call.get("prompts", ()), *filter(None, [call.get("prompt")])]
    contents = [text for prompt in prompts for text in _contents(prompt)]
    for name, texts in ((param, contents), ("bad_words", call.get("bad_words", ()))):
        if not all(map(_is_unicode, texts)):
            return InvalidRequestError(
                f"Invalid '{name}': it holds half of a surrogate pair, which is no character: send valid Unicode.",
                param=name,
            )
    if call["do"] == "decode":
        return InvalidRequestError(
            f"Invalid '{param}': a number is too large for a token id of this model.", param=param
        )
    return InvalidRequestError(
        "Invalid 'chat_template_kwargs': it holds something that JSON cannot.", param="chat_template_kwargs"
    )


def _contents(prompt: str | dict[str, Any]) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    return [text for message in prompt["messages"] for text in message.values()]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
