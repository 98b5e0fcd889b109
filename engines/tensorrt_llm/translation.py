"""Translates what is asked of a sequence into TensorRT-LLM's words, and refuses by name what those cannot say."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from engines.api import FinishReason, SamplingParams, SequenceRequest, TopLogprobs
from engines.tensorrt_llm.surface import FEATURES, Logprob, Package, SamplingArguments
from mooring.errors import InternalError, UnsupportedFieldError

__all__ = ["cache_salt", "ending_ids", "finish_reason", "priority", "sampling_arguments", "top_logprobs"]

_SEED_MASK = (1 << 63) - 1  # the package's samplers keep seeds in signed words
_SEED_STEP = 0x9E3779B97F4A7C15  # choices of one request need seeds of their own: 2^64 over the golden ratio
_NO_ID = -1  # as the package has it where end-of-sequence ids are ignored
_FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "cancelled": FinishReason.CANCELLED,
}


def ending_ids(sampling: SamplingParams, eos_ids: tuple[int, ...]) -> tuple[int, ...]:
    """The ids that end a sequence, each once."""
    own = () if sampling.ignore_eos else eos_ids
    return tuple(dict.fromkeys((*own, *sampling.stop_token_ids)))


def sampling_arguments(
    request: SequenceRequest, max_tokens: int, eos_ids: tuple[int, ...], vocab_size: int, package: Package
) -> SamplingArguments:
    """Arguments of the package's ``SamplingParams`` for one sequence.

    Args:
        max_tokens: tokens that it may still have.
        eos_ids: the model's own.

    Raises:
        UnsupportedFieldError: this version of the package cannot do what is asked; ``param`` names it.
    """
    sampling = request.sampling
    ends = ending_ids(sampling, eos_ids)
    # The package's own end-of-sequence id is off, since there may be several: they end as stop words do, with the
    # token that ended it in the output.
    arguments = SamplingArguments(
        end_id=_NO_ID,
        max_tokens=max_tokens,
        stop_token_ids=list(ends),
        include_stop_str_in_output=True,
        detokenize=False,
    )
    if sampling.min_tokens > len(request.output_ids) and ends:
        raise _unsupported("min_tokens", "holds back one end-of-sequence id only; set ignore_eos with it")
    if sampling.prompt_logprobs is not None:
        raise _unsupported(
            "prompt_logprobs", "gives the likeliest tokens of a prompt, and not always its own"
        )
    if sampling.logprobs is not None:
        arguments["logprobs"] = max(1, sampling.logprobs)  # 0 is none before 1.3
    _add_choice(arguments, sampling, package)
    _add_penalties(arguments, request, package)
    _add_edits(arguments, sampling, vocab_size, package)
    return arguments


def _add_choice(arguments: SamplingArguments, sampling: SamplingParams, package: Package) -> None:
    if sampling.temperature == 0:
        arguments["top_k"] = 1
        return
    arguments["temperature"] = sampling.temperature
    arguments["top_k"] = max(0, sampling.top_k)
    arguments["top_p"] = sampling.top_p
    arguments["seed"] = (sampling.seed + sampling.choice * _SEED_STEP) & _SEED_MASK
    if sampling.min_p > 0:
        _require(package, "min_p", "min_p")
        arguments["min_p"] = sampling.min_p


def _add_penalties(arguments: SamplingArguments, request: SequenceRequest, package: Package) -> None:
    sampling = request.sampling
    if sampling.repetition_penalty != 1:
        _require(package, "penalties", "repetition_penalty")
        arguments["repetition_penalty"] = sampling.repetition_penalty
    if sampling.presence_penalty:
        _require(package, "penalties", "presence_penalty")
        arguments["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty:
        _require(package, "penalties", "frequency_penalty")
        arguments["frequency_penalty"] = sampling.frequency_penalty
    if sampling.presence_penalty or sampling.frequency_penalty:
        # These two are over the output, and what an earlier life gave counts as output.
        arguments["prompt_ignore_length"] = len(request.prompt_ids)


def _add_edits(
    arguments: SamplingArguments, sampling: SamplingParams, vocab_size: int, package: Package
) -> None:
    if sampling.bad_words_ids:
        _require(package, "bad_words", "bad_words")
        if any(len(word) > 1 for word in sampling.bad_words_ids):
            raise _unsupported("bad_words", "forbids single tokens by their ids, not words of several")
        arguments["bad_token_ids"] = [word[0] for word in sampling.bad_words_ids if word]
    if sampling.logit_bias:
        import torch  # in the worker it is there with the package

        bias = torch.zeros(vocab_size, dtype=torch.float32)
        for token_id, value in sampling.logit_bias:
            if token_id < vocab_size:
                bias[token_id] = value
        arguments["embedding_bias"] = bias


def cache_salt(scope: bytes | None, num_wakes: int) -> str:
    """The salt of a cache scope; of none, one that no other sequence will ever have.

    Args:
        num_wakes: of the replica. Its KV does not outlive its sleep, and what the package remembers of blocks that it
            had before must not be found again.
    """
    return f"alone-{secrets.token_hex(16)}" if scope is None else f"{num_wakes}-{scope.hex()}"


def priority(ours: int) -> float:
    """The package's priority, more than 0 and less than 1, in the order of ours; 0 is its default of a half."""
    return 0.5 + 0.5 * ours / (1 + abs(ours))


def finish_reason(theirs: str | None, last_id: int | None, ends: tuple[int, ...]) -> FinishReason | None:
    """Why a finished sequence ended; None if the package gives a reason of failure, or none.

    Args:
        last_id: its last token.
        ends: the ids that end it.
    """
    reason = _FINISH_REASONS.get(theirs or "")
    # Where both are true, the package says that the length ended it.
    if reason is FinishReason.LENGTH and last_id in ends:
        return FinishReason.STOP
    return reason


def top_logprobs(entries: Mapping[int, Logprob], token_id: int, num_likeliest: int) -> TopLogprobs:
    """The log-probabilities at one position.

    Args:
        entries: the likeliest tokens, and the one that was sampled.
        token_id: the one that was sampled.

    Raises:
        InternalError: that one is not among them.
    """
    if token_id not in entries:
        raise InternalError("TensorRT-LLM gave log-probabilities without that of the token itself")
    ranked = sorted(entries.items(), key=lambda entry: -entry[1].logprob)[:num_likeliest]
    return TopLogprobs(
        entries[token_id].logprob,
        tuple(likely for likely, _ in ranked),
        tuple(entry.logprob for _, entry in ranked),
    )


def _require(package: Package, feature: str, param: str) -> None:
    if not package.has(feature):
        needed = ".".join(map(str, FEATURES[feature]))
        raise _unsupported(param, f"has it from version {needed} on, and this is {package.version}")


def _unsupported(param: str, clause: str) -> UnsupportedFieldError:
    return UnsupportedFieldError(f"{param} cannot be had here: TensorRT-LLM {clause}", param=param)
