"""Attacks with what a server has to read and to work through: messages of tiny parts, lists of wrong items, deep
and wide JSON, very long texts, conversations of empty messages, choices and log-probabilities without end."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tritonclient.grpc import service_pb2

from benchmarks.abuse.doors import Bodies
from benchmarks.abuse.target import MODEL
from mooring.units import MIB
from mooring.v1 import inference_pb2 as pb

__all__ = [
    "bad_words",
    "empty_messages",
    "long_texts",
    "many_choices",
    "nested_json",
    "tiny_parts",
    "wrong_items",
]

_MESSAGE_BYTES = 4 * MIB - 1024
_FRAME_BYTES = 900_000
_LIST_BYTES = 1_200_000
_TEXT_BYTES = 4_000_000
_NUM_MESSAGES = 100_000
_NUM_PROMPT_TOKENS, _PROMPT_CHARS = 4_500, 5_000  # 24 KB of JSON, and about as many tokens
_NUM_CHOICES, _NUM_LIKELIEST = 128, 20
_NUM_PROMPTS, _NUM_BAD_WORDS, _BAD_WORD_CHARS = 16, 256, 1024
# Numbers of fields that hold messages: of mooring.v1.GenerateTextRequest, and of inference.ModelInferRequest.
_CHAT, _INPUTS = 4, 5


def tiny_parts() -> dict[str, Bodies]:
    """4 MiB of empty sub-messages, and of unknown fields: some KB once they are compressed."""
    many = _MESSAGE_BYTES // 2
    empty_inputs = bytes([_INPUTS << 3 | 2, 0])
    unknown = b"\x78\x00"  # field 15, a number, 0
    unknown_to_us = b"\xf8\x07\x00"  # field 127

    def kserve() -> Sequence[bytes]:
        named = service_pb2.ModelInferRequest(model_name=MODEL).SerializeToString()
        return [named + empty_inputs * many, named + unknown * many]

    return {
        "grpc": lambda: [
            _native() + _message(_CHAT, b"\x0a\x00" * many),
            _native(prompt="a") + unknown_to_us * (_MESSAGE_BYTES // 3),
        ],
        "kserve-grpc": kserve,
        "kserve-grpc-stream": kserve,
    }


def wrong_items() -> dict[str, Bodies]:
    """Lists of 1.2 MB whose items have the wrong type, or are too many; over a WebSocket three of 0.9 MB."""
    return {
        "completions": lambda: [
            _openai(prompt=_list({}, _LIST_BYTES)),
            _openai(prompt=_list(None, _LIST_BYTES)),
            _openai(prompt="a", stop=_list(0, _LIST_BYTES)),
            _openai(prompt="a", stop_token_ids=_list([], _LIST_BYTES)),
        ],
        "chat": lambda: [
            _openai(messages=_list(0, _LIST_BYTES)),
            _openai(messages=[{"role": "user", "content": _list(0, _LIST_BYTES)}]),
        ],
        "tokenize": lambda: [_openai(messages=_list(0, _LIST_BYTES))],
        "detokenize": lambda: [_openai(tokens=_list({}, _LIST_BYTES))],
        "websocket": lambda: [
            _openai(prompt=_list({}, _FRAME_BYTES)),
            _openai(prompt="a", stop=_list(0, _FRAME_BYTES)),
            _openai(prompt=_list(None, _FRAME_BYTES)),
        ],
        "websocket-chat": lambda: [_openai(messages=_list(0, _FRAME_BYTES))] * 3,
        "kserve-infer": lambda: [
            _json(inputs=_list(0, _LIST_BYTES)),
            _json(inputs=[_tensor("text_input", _list(0, _LIST_BYTES))]),
            _json(inputs=[_tensor("text_input", ["a"])], outputs=_list({}, _LIST_BYTES)),
        ],
        "kserve-generate": lambda: [
            _json(text_input="a", stop_words=_list(0, _LIST_BYTES)),
            _json(text_input="a", bad_words=_list("", _LIST_BYTES)),
        ],
        "grpc": lambda: [
            _native(prompt="a", stop=[""] * (_LIST_BYTES // 2)),
            _native(prompt="a", bad_words=[""] * (_LIST_BYTES // 2)),
            _native(prompt="a", stop_token_ids=[1] * _LIST_BYTES),
            _native(prompt_token_ids=pb.TokenIds(ids=[1] * _LIST_BYTES)),
        ],
        "kserve-grpc": lambda: [_kserve("a", stop_words=[b""] * (_LIST_BYTES // 2))],
    }


def nested_json() -> dict[str, Bodies]:
    """4 MiB of lists in a list, and of lists within each other."""
    wide = b"[" + b"[]," * (_MESSAGE_BYTES // 3 - 64) + b"[]]"
    deep = b"[" * (_MESSAGE_BYTES // 2) + b"]" * (_MESSAGE_BYTES // 2)

    def bodies(name: str) -> Bodies:
        return lambda: [wide, deep, b'{"model": "%s", "%s": %s}' % (MODEL.encode(), name.encode(), wide)]

    fields = {
        "completions": "prompt",
        "chat": "messages",
        "tokenize": "messages",
        "detokenize": "tokens",
        "websocket": "prompt",
        "websocket-chat": "messages",
        "kserve-infer": "inputs",
        "kserve-generate": "text_input",
        "admin": "policy",
    }
    return {door: bodies(name) for door, name in fields.items()} | {
        "kserve-grpc": lambda: [_kserve("a", sampling_parameters=[b'{"stop": %s}' % wide])]
    }


def empty_messages() -> dict[str, Bodies]:
    """A conversation of 100,000 empty messages."""
    messages = [{"role": "user", "content": ""}] * _NUM_MESSAGES

    def chat() -> Sequence[bytes]:
        return [_openai(messages=messages)]

    return {
        "chat": chat,
        "websocket-chat": chat,
        "tokenize": chat,
        "grpc": lambda: [
            _native(chat=pb.ChatMessages(messages=[pb.ChatMessage(role="user")] * _NUM_MESSAGES))
        ],
    }


def long_texts() -> dict[str, Bodies]:
    """4 MB of text to tokenize."""
    return {
        "completions": lambda: [_openai(prompt=_text())],
        "chat": lambda: [_openai(messages=[{"role": "user", "content": _text()}])],
        "tokenize": lambda: [_openai(prompt=_text())],
        "websocket": lambda: [_openai(prompt=_text())],
        "kserve-infer": lambda: [_json(inputs=[_tensor("text_input", [_text()])])],
        "kserve-generate": lambda: [_json(text_input=_text())],
        "grpc": lambda: [_native(prompt=_text())],
        "kserve-grpc": lambda: [_kserve(_text())],
    }


def many_choices() -> dict[str, Bodies]:
    """128 choices with the log-probabilities of everything, the prompt's too."""
    prompt = [1000 + number for number in range(_NUM_PROMPT_TOKENS)]
    wanted = {"n": _NUM_CHOICES, "max_tokens": 16}
    written = {"n": _NUM_CHOICES, "max_tokens": 256}

    def scored() -> Sequence[bytes]:
        return [
            _openai(prompt=prompt, echo=True, logprobs=_NUM_LIKELIEST, **wanted),
            _openai(prompt=prompt, prompt_logprobs=_NUM_LIKELIEST, **wanted),
        ]

    def chat() -> Sequence[bytes]:
        messages = [{"role": "user", "content": _text()[:_PROMPT_CHARS]}]
        likeliest = {"logprobs": True, "top_logprobs": _NUM_LIKELIEST, "prompt_logprobs": _NUM_LIKELIEST}
        return [_openai(messages=messages, **likeliest, **written)]

    parameters = {"logprobs": _NUM_LIKELIEST, "return_logprobs": True, **written}
    return {
        "completions": scored,
        "chat": chat,
        "websocket": scored,
        "grpc": lambda: [
            _native(
                prompt_token_ids=pb.TokenIds(ids=prompt),
                prompt_logprobs=_NUM_LIKELIEST,
                logprobs=_NUM_LIKELIEST,
                **wanted,
            )
        ],
        "kserve-infer": lambda: [_json(inputs=[_tensor("text_input", ["a"])], parameters=parameters)],
        "kserve-generate": lambda: [_json(text_input="a", parameters=parameters)],
        "kserve-grpc": lambda: [_kserve("a", **parameters)],
    }


def bad_words() -> dict[str, Bodies]:
    """256 bad words of 1,024 characters, for 16 prompts if the door takes several."""
    text = _text()
    starts = range(0, _NUM_BAD_WORDS * _BAD_WORD_CHARS, _BAD_WORD_CHARS)
    words = [text[start : start + _BAD_WORD_CHARS] for start in starts]

    def openai() -> Sequence[bytes]:
        return [_openai(prompt=["a"] * _NUM_PROMPTS, bad_words=words)]

    return {
        "completions": openai,
        "chat": lambda: [_openai(messages=[{"role": "user", "content": "a"}], bad_words=words)],
        "websocket": openai,
        "kserve-generate": lambda: [_json(text_input="a", bad_words=words)],
        "grpc": lambda: [_native(prompt="a", bad_words=words)],
        "kserve-grpc": lambda: [_kserve("a", bad_words=[word.encode() for word in words])],
    }


@cache
def _text() -> str:
    """Made-up words, so that no two are merged alike and a tokenizer's cache helps little."""
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz     ", k=_TEXT_BYTES)
    return "".join(letters)


def _list(item: Any, num_bytes: int) -> list[Any]:
    """A list that takes so many bytes as JSON."""
    return [item] * (num_bytes // len(json.dumps(item) + ","))


def _json(**fields: Any) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _openai(**fields: Any) -> bytes:
    return _json(model=MODEL, **fields)


def _native(**fields: Any) -> bytes:
    return pb.GenerateTextRequest(model=MODEL, **fields).SerializeToString()


def _tensor(name: str, data: list[Any]) -> Mapping[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(data)], "data": data}


def _kserve(text: str, **inputs: Any) -> bytes:
    """A request to ModelInfer. Lists of bytes become tensors, the rest parameters."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    for name, values in {"text_input": [text.encode()], **inputs}.items():
        if isinstance(values, list):
            tensor = request.inputs.add(name=name, datatype="BYTES", shape=[len(values)])
            tensor.contents.bytes_contents.extend(values)
        elif isinstance(values, bool):
            request.parameters[name].bool_param = values
        else:
            request.parameters[name].int64_param = values
    content: bytes = request.SerializeToString()
    return content


def _message(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds a message."""
    size, head = len(content), bytearray([number << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(head) + bytes([size]) + content
