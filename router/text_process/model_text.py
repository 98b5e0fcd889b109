"""A model's tokenizer and chat template, as its process uses them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from tokenizers import Tokenizer

from mooring.errors import InvalidRequestError
from router.text_process.chat_template import ChatTemplate
from router.text_process.token_bound import token_bound

__all__ = ["CallResult", "ModelText"]


_MAX_ID = 1 << 32


class CallResult(NamedTuple):
    """Object and raw bytes of the frame that answers a call."""

    content: dict[str, Any]
    raw: bytes


class ModelText:
    """A model's tokenizer and chat template.

    The methods with ``call`` take the object of a frame from ``router.text.text_model`` and answer it. A prompt in it
    is a text, or a chat as an object with the fields of ``ChatPrompt``. They raise InvalidRequestError if a prompt
    cannot be turned into tokens of this model.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: ChatTemplate | None = None) -> None:
        # Settings of a training run that some published files still carry.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self._chat_template = chat_template
        self._bound = token_bound(tokenizer)

    def encode(self, call: Mapping[str, Any]) -> CallResult:
        """Token ids of prompts, and of bad words.

        A plain text gets the special tokens that the tokenizer adds (usually the beginning-of-sequence); chat
        goes through the chat template, which writes the special tokens itself.

        Args:
            call: ``prompts``; ``special_tokens``, whether the tokenizer adds its own, or None for as described;
                ``num_kept``, number of ids from the end that are wanted, or None for all; ``max_tokens``, most of
                them that are of use, or None; ``bad_words``; ``param``, the door's name for the prompts.

        Returns:
            ``prompts``: for each prompt the number of ids that are sent, its length in tokens, and whether that is
            exact; ``bad_words``: the length of each spelling. Raw, in this order: the ids, 32 bits each.
        """
        prompts, ids = [], array("i")
        for prompt in call["prompts"]:
            entry, kept = self._encode_prompt(prompt, call)
            prompts.append((len(kept), *entry))
            ids.extend(kept)
        spellings = self._spell(call["bad_words"])
        for spelling in spellings:
            ids.extend(spelling)
        return CallResult({"prompts": prompts, "bad_words": [len(each) for each in spellings]}, ids.tobytes())

    def tokenize(self, call: Mapping[str, Any]) -> CallResult:
        """Token ids of a prompt, and the tokens as the vocabulary spells them.

        Args:
            call: ``prompt``, ``special_tokens`` and ``param`` as for ``encode``; ``strings``, whether the spellings
                are wanted.

        Returns:
            ``num_ids``. Raw: the ids, 32 bits each, and the spellings as a list in JSON.
        """
        prompt, special_tokens = call["prompt"], call["special_tokens"]
        [ids] = self._ids(
            [self._text(prompt, call["param"])], self._adds_special_tokens(prompt, special_tokens)
        )
        strings = [self.tokenizer.id_to_token(each) for each in ids] if call["strings"] else []
        return CallResult({"num_ids": len(ids)}, array("i", ids).tobytes() + orjson.dumps(strings))

    def decode(self, call: Mapping[str, Any]) -> CallResult:
        """Text of tokens, special ones included.

        Args:
            call: ``ids``.

        Returns:
            Raw: the text, in UTF-8.
        """
        for token_id in call["ids"]:
            if not 0 <= token_id < _MAX_ID or self.tokenizer.id_to_token(token_id) is None:
                raise InvalidRequestError(
                    f"Invalid 'tokens': {token_id} is not a token id of this model.", param="tokens"
                )
        text: str = self.tokenizer.decode(call["ids"], skip_special_tokens=False)
        return CallResult({}, text.encode())

    def _encode_prompt(self, prompt: Any, call: Mapping[str, Any]) -> tuple[tuple[int, bool], Sequence[int]]:
        text, max_tokens, num_kept = self._text(prompt, call["param"]), call["max_tokens"], call["num_kept"]
        if max_tokens is not None and num_kept is None and self._bound is not None:
            fewest = self._bound.fewest_tokens(text)
            if fewest > max_tokens:
                return (fewest, False), ()
        [ids] = self._ids([text], self._adds_special_tokens(prompt, call["special_tokens"]))
        kept = ids if num_kept is None else ids[-num_kept:]
        return (len(ids), True), kept if max_tokens is None or len(kept) <= max_tokens else ()

    def _text(self, prompt: Any, param: str) -> str:
        """The text of a prompt; chat goes through the template."""
        if isinstance(prompt, str):
            return prompt
        if self._chat_template is None:
            raise InvalidRequestError(
                "This model has no chat template: send a plain prompt to /v1/completions instead.",
                param=param,
            )
        return self._chat_template.render(
            prompt["messages"],
            add_generation_prompt=prompt["add_generation_prompt"],
            continue_final_message=prompt["continue_final_message"],
            variables=prompt["template_variables"],
        )

    def _adds_special_tokens(self, prompt: Any, asked: bool | None) -> bool:
        return isinstance(prompt, str) if asked is None else asked

    def _spell(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """Spellings of each word in tokens: of the word as it is, and of the word after a space."""
        texts = [text for word in words for text in (word, " " + word.lstrip())]
        return list(dict.fromkeys(tuple(ids) for ids in self._ids(texts, False) if ids))

    def _ids(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        # It finds no offsets, which costs most of the time of ``encode``.
        batch = self.tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in batch]
