"""Bounds of the front doors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mooring.declared import Bounds, Setting, check_bounds
from mooring.units import GIB, MIB

__all__ = ["RouterConfig"]

_AT_LEAST_ONE = Bounds(ge=1)


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Limits of the front doors, and the section ``limits`` of the settings. The fields that are no settings are:

    Attributes:
        max_socket_requests: most requests that may run at a time on one WebSocket.
        max_stream_requests: most requests that run at a time in one stream of the KServe gRPC door; further
            ones wait unread.
        max_choices: largest ``n`` of one request.
        max_batch_choices: most choices of a request with several prompts: their number times ``n``.
        max_stop_strings: most stop strings of one request.
        max_stop_string_chars: longest stop string, in characters.
        max_stop_token_ids: most stop token ids of one request.
        max_logit_biases: most token ids of one request's ``logit_bias``.
        max_bad_words: most strings of one request's ``bad_words``; each may be as long as a stop string.
        max_bad_word_tokens: most tokens of all spellings of them, counted for each choice.
        max_logprobs: most likeliest tokens that may be asked for at each position.
        max_messages: most messages of one chat.
        max_unread_tokens: tokens of one request that may wait for a slow reader before the engine does, each
            counted once more for each log-probability beside it.
        inline_text_chars: texts up to this many characters are turned into tokens one after the other; a longer
            one in a process of its own, so that it delays nobody else.
        inline_texts_at_once: most texts of such length that a model's process is given at a time; further ones wait,
            and tenants take turns.
        long_texts_at_once: most processes for longer texts of one model at a time; further texts wait likewise.
        text_load_timeout_s: longest time for reading a tokenizer, in seconds.
        tokenizers_cached: processes of tokenizers that are kept; the least recently used one goes first.
        key_cache_entries: API keys whose check is remembered.
        key_cache_s: seconds for which a good key is not checked again; a revoked key lives so long.
        unknown_key_cache_s: seconds for which an unknown key is not checked again.
        max_key_checks: most keys, beside those that were good before, that are being looked up or wait for it;
            further ones are told to try again.
    """

    max_body_bytes: Annotated[int, _AT_LEAST_ONE, Setting("Largest request body or gRPC message.")] = 4 * MIB
    max_total_body_bytes: Annotated[
        int,
        _AT_LEAST_ONE,
        Setting("Most bytes of bodies and gRPC messages that are read or worked on at a time."),
    ] = 256 * MIB
    max_tenant_body_bytes: Annotated[
        int, _AT_LEAST_ONE, Setting("As `max_total_body_bytes`, of one tenant.")
    ] = 64 * MIB
    max_tenant_requests: Annotated[
        int, _AT_LEAST_ONE, Setting("Most requests of one tenant that wait or run at a time.")
    ] = 4096
    max_tenant_choices: Annotated[
        int, _AT_LEAST_ONE, Setting("Most choices (`n`) of one tenant's requests at a time.")
    ] = 16_384
    max_tenant_streams: Annotated[
        int,
        _AT_LEAST_ONE,
        Setting(
            "Most gRPC calls of one tenant that send several messages (`ModelStreamInfer`) at a time. Up to a "
            "message of each, at its largest, may be in memory and not counted."
        ),
    ] = 64
    max_answer_tokens: Annotated[
        int,
        _AT_LEAST_ONE,
        Setting(
            "Largest answer of one request: tokens of output, and of prompts that are shown, of all choices, each "
            "counted once more for each log-probability beside it."
        ),
    ] = 262_144
    max_reader_stall_s: Annotated[
        float,
        Bounds(gt=0),
        Setting(
            "A client that reads nothing at all of its answer for so long is given up; a slow one is not."
        ),
    ] = 60.0
    text_timeout_s: Annotated[
        float,
        Bounds(gt=0),
        Setting(
            "Longest time that a model's tokenizer and chat template may take for a request, in seconds."
        ),
    ] = 10.0
    text_memory_bytes: Annotated[
        int,
        _AT_LEAST_ONE,
        Setting("Most memory of the process that runs a model's tokenizer and chat template."),
    ] = 4 * GIB
    max_socket_requests: int = 64
    max_stream_requests: int = 256
    max_choices: int = 128
    max_batch_choices: int = 256
    max_stop_strings: int = 16
    max_stop_string_chars: int = 1024
    max_stop_token_ids: int = 256
    max_logit_biases: int = 1024
    max_bad_words: int = 256
    max_bad_word_tokens: int = 131_072
    max_logprobs: int = 20
    max_messages: int = 4096
    max_unread_tokens: int = 32_768
    inline_text_chars: int = 16_384
    inline_texts_at_once: int = 32
    long_texts_at_once: int = 2
    text_load_timeout_s: float = 60.0
    tokenizers_cached: int = 64
    key_cache_entries: int = 4096
    key_cache_s: float = 5.0
    unknown_key_cache_s: float = 1.0
    max_key_checks: int = 64

    def __post_init__(self) -> None:
        check_bounds(self)
