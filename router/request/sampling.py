"""Sampling settings: the caller's, else the model's own, else OpenAI's defaults; checked once for all
doors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engines.sampling_params import MAX_COUNT, MAX_SEED, SamplingParams
from mooring.declared import Bounds, Declared, declared, with_optional_fields_of
from mooring.errors import ArtifactError, ContextLengthError, InvalidRequestError
from router.request.bounds import RouterConfig

__all__ = [
    "DEFAULT_COMPLETION_TOKENS",
    "PLAIN_OPTIONS",
    "GenerationDefaults",
    "SamplingOptions",
    "answer_size",
    "check_answer_size",
    "check_bad_words",
    "check_options",
    "num_prompt_tokens_kept",
    "prompt_too_long",
    "resolve_sampling",
    "wants_prompt_only",
]

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default if a plain prompt comes without a length
_LOWEST_TEMPERATURE = 0.01


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Settings that a model's ``generation_config.json`` suggests; None for each that it leaves out.

    All but ``max_new_tokens`` are those of ``SamplingParams``.

    Attributes:
        max_new_tokens: most tokens of a chat answer whose length the caller left open.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> GenerationDefaults:
        """Takes the known settings from the parsed file; the others are for other software.

        Raises:
            ArtifactError: a value is no number, or out of its range.
        """
        values = {name: raw[name] for name in cls.__slots__ if raw.get(name) is not None}
        for name, value in values.items():
            option = PLAIN_OPTIONS.get(name)
            whole = option is None or option.value_kind is int
            bounds = _MAX_NEW_TOKENS if option is None or option.bounds is None else option.bounds
            is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not is_number or not bounds.holds(value):
                raise ArtifactError(
                    f"generation_config.json of the model: {name} is {value!r} and must be a "
                    f"{'whole number' if whole else 'number'}, {bounds}"
                )
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
@with_optional_fields_of(SamplingParams)
class SamplingOptions:
    """The caller's wishes; None is "left out". Meanings and units as in ``SamplingParams``, whose fields that callers
    set by the same name everywhere are fields here too (``PLAIN_OPTIONS``).

    Attributes:
        stop: strings that end a choice.
        include_stop_str_in_output: whether the stop string, or the token of ``stop_token_ids``, stays in the
            text.
        skip_special_tokens: whether special tokens are left out of the text; they are by default.
        bad_words: texts that the output never completes, alone or after a space.
        echo: whether every choice begins with the prompt, and with its log-probabilities if ``logprobs`` are
            asked for; ``max_tokens`` may then be 0.
        prompt_logprobs: number of likeliest tokens to show at each position of the prompt, beside the
            prompt's own token; ``max_tokens`` may then be 0.
        truncate_prompt_tokens: use only this many tokens from the prompt's end; -1 uses as many as leave room
            for the output.
        add_special_tokens: whether the prompt gets the special tokens that the tokenizer adds to a text; by
            default a plain text gets them and chat does not.
        cache_salt: only requests with the same salt share computed prefixes with this one.
        default_max_tokens: most tokens of output if neither caller nor model sets that; None means the rest
            of the context.
        max_tokens_field: this door's name for ``max_tokens``, for error messages.
        logprobs_field: its name for ``logprobs``.
        prompt_field: its name for the prompt.
    """

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    n: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[str, ...] = ()
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    echo: bool | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    cache_salt: str | None = None
    default_max_tokens: int | None = None
    max_tokens_field: str = "max_tokens"
    logprobs_field: str = "logprobs"
    prompt_field: str = "prompt"


PLAIN_OPTIONS: Mapping[str, Declared] = {
    name: each for name, each in declared(SamplingParams).items() if each.setting is not None
}
"""The options that are numbers and flags with the same name everywhere, as ``SamplingParams`` declares them."""

_MAX_NEW_TOKENS = Bounds(1)
_TOKEN_IDS = Bounds(0, (1 << 32) - 1)


def resolve_sampling(
    options: SamplingOptions,
    defaults: GenerationDefaults,
    *,
    num_prompt_tokens: int,
    max_model_len: int,
    new_seed: int,
    config: RouterConfig,
    num_prompts: int = 1,
) -> SamplingParams:
    """The sampling parameters of choice 0.

    Args:
        options: the caller's wishes, which ``check_options`` has found to be in range.
        num_prompt_tokens: length of the prompt in tokens.
        max_model_len: longest prompt and output together, in tokens.
        new_seed: the seed of a request that brought none.
        num_prompts: number of the request's prompts.

    Raises:
        InvalidRequestError: the prompt is empty, or ``min_tokens`` is more than the output may have.
        ContextLengthError: prompt and output do not fit the model.
    """
    values = _plain_values(options, defaults, new_seed)
    most_by_default = _most_by_default(options, num_prompt_tokens, config.max_answer_tokens // num_prompts)
    max_tokens = _max_tokens(options, defaults, num_prompt_tokens, max_model_len, most_by_default)
    if (min_tokens := values["min_tokens"]) > max_tokens:
        raise InvalidRequestError(
            f"min_tokens is {min_tokens}, more than the {max_tokens} tokens of output that are allowed.",
            param="min_tokens",
        )
    return SamplingParams(
        **values,
        max_tokens=max_tokens,
        stop_token_ids=options.stop_token_ids,
        logprobs=options.logprobs,
        prompt_logprobs=_prompt_logprobs(options),
        logit_bias=options.logit_bias,
    )


def _plain_values(options: SamplingOptions, defaults: GenerationDefaults, new_seed: int) -> dict[str, Any]:
    """The plain options: the caller's, else the model's own, else OpenAI's defaults."""
    values: dict[str, Any] = {}
    for name, each in PLAIN_OPTIONS.items():
        default = new_seed if name == "seed" else each.default
        given = (getattr(options, name), getattr(defaults, name, None), default)
        values[name] = next(value for value in given if value is not None)
    values["temperature"] = _temperature(values["temperature"])
    values["top_k"] = max(values["top_k"], 0)
    values["seed"] &= MAX_SEED
    return values


def wants_prompt_only(options: SamplingOptions) -> bool:
    """Whether the caller wants to see the prompt and no output. The engine is then asked for one token, which
    is dropped."""
    return options.max_tokens == 0


def num_prompt_tokens_kept(options: SamplingOptions, max_model_len: int) -> int | None:
    """Number of tokens from the prompt's end that ``truncate_prompt_tokens`` keeps; None if it was left out.

    Raises:
        InvalidRequestError: the setting is neither -1 nor at least 1, or keeps no token.
    """
    asked = options.truncate_prompt_tokens
    if asked is None:
        return None
    kept = max_model_len - max(1, options.max_tokens or 1) if asked == -1 else asked
    if kept < 1:
        raise InvalidRequestError(
            f"Invalid 'truncate_prompt_tokens': {asked} leaves no token of the prompt; it must be at least 1, or "
            f"-1 for all that fit beside the output.",
            param="truncate_prompt_tokens",
        )
    return kept


def prompt_too_long(num_tokens: str, max_model_len: int, prompt_field: str) -> ContextLengthError:
    """The error for a prompt that leaves no room for output.

    Args:
        num_tokens: number of its tokens in words: ``5000``, ``at least 5000``.
        prompt_field: the door's name for the prompt.
    """
    return ContextLengthError(
        f"This model's maximum context length is {max_model_len} tokens. However, your "
        f"{prompt_field} resulted in {num_tokens} tokens. "
        f"Please reduce the length of the {prompt_field}.",
        param=prompt_field,
    )


def _prompt_logprobs(options: SamplingOptions) -> int | None:
    """Number of likeliest tokens to find at each position of the prompt: enough for the caller and for the
    echo."""
    echoed = options.logprobs if options.echo else None
    asked = [num for num in (options.prompt_logprobs, echoed) if num is not None]
    return max(asked, default=None)


def answer_size(options: SamplingOptions, num_prompt_tokens: int, max_tokens: int) -> int:
    """The most that the answer to one prompt can have: each token of each choice counts once, and once more for each
    log-probability that is shown with it, its own included. Those of the prompt count if the answer shows them.

    Args:
        num_prompt_tokens: length of the prompt in tokens.
        max_tokens: most tokens of output of each choice.
    """
    num_output = 0 if wants_prompt_only(options) else max_tokens
    of_output = num_output * _size_of_token(options.logprobs)
    return (options.n or 1) * (of_output + _size_of_prompt(options, num_prompt_tokens))


def check_answer_size(options: SamplingOptions, sizes: Iterable[int], config: RouterConfig) -> None:
    """Refuses a request whose answer could become too large.

    Args:
        sizes: ``answer_size`` of each of its prompts.

    Raises:
        InvalidRequestError: it could; the message names the fields that it follows from.
    """
    size, most = sum(sizes), config.max_answer_tokens
    if size <= most:
        return
    fields = {
        "n": (options.n or 1) > 1,
        options.logprobs_field: options.logprobs is not None,
        "prompt_logprobs": options.prompt_logprobs is not None,
        "echo": bool(options.echo),
        options.max_tokens_field: not wants_prompt_only(options),
        options.prompt_field: True,
    }
    named = [name for name, counts in fields.items() if counts]
    raise InvalidRequestError(
        f"The answer could have {size} tokens and log-probabilities, and may have at most {most} "
        f"(max_answer_tokens): ask for less by {', '.join(repr(name) for name in named)}.",
        param=named[0],
        code="answer_too_large",
    )


def check_bad_words(
    bad_words_ids: Sequence[Sequence[int]], options: SamplingOptions, num_prompts: int, config: RouterConfig
) -> None:
    """Refuses bad words that are too long together: each choice takes its own to the engine.

    Args:
        bad_words_ids: token ids of each spelling.
        num_prompts: number of the request's prompts.

    Raises:
        InvalidRequestError: they are.
    """
    num_tokens = sum(map(len, bad_words_ids)) * num_prompts * (options.n or 1)
    if num_tokens > config.max_bad_word_tokens:
        raise InvalidRequestError(
            f"Invalid 'bad_words': over all choices they are {num_tokens} tokens, and may be at most "
            f"{config.max_bad_word_tokens}.",
            param="bad_words",
        )


def _most_by_default(options: SamplingOptions, num_prompt_tokens: int, most: int) -> int:
    """Most tokens of output for a caller who left the length open, so that the answer to one prompt has at most
    ``most``, as ``answer_size`` counts."""
    rest = most // (options.n or 1) - _size_of_prompt(options, num_prompt_tokens)
    return rest // _size_of_token(options.logprobs)


def _size_of_prompt(options: SamplingOptions, num_prompt_tokens: int) -> int:
    """The size of the prompt in each choice."""
    num_logprobs = _prompt_logprobs(options)
    is_shown = bool(options.echo) or num_logprobs is not None
    return num_prompt_tokens * _size_of_token(num_logprobs) if is_shown else 0


def _size_of_token(num_logprobs: int | None) -> int:
    return 1 if num_logprobs is None else 2 + num_logprobs


def _temperature(asked: float) -> float:
    """A temperature of 0 stays, and means greedy; one so low that logits would overflow is raised to where
    the answer is practically the same (as in vLLM)."""
    return max(asked, _LOWEST_TEMPERATURE) if asked > 0 else 0.0


def check_options(options: SamplingOptions, config: RouterConfig) -> None:
    """Checks the range of every value.

    Raises:
        InvalidRequestError: a value is out of its range; ``param`` names it.
    """
    for name, each in PLAIN_OPTIONS.items():
        if each.bounds is not None:
            _check_range(getattr(options, name), each.bounds, name)
    fewest_tokens = 0 if options.echo or options.prompt_logprobs is not None else 1
    _check_range(options.max_tokens, Bounds(fewest_tokens, MAX_COUNT), options.max_tokens_field)
    _check_range(options.n, Bounds(1, config.max_choices), "n")
    _check_range(options.logprobs, Bounds(0, config.max_logprobs), options.logprobs_field)
    _check_range(options.prompt_logprobs, Bounds(0, config.max_logprobs), "prompt_logprobs")
    _check_range(len(options.stop), Bounds(0, config.max_stop_strings), "stop", what="the number of strings")
    for text in options.stop:
        _check_range(
            len(text), Bounds(1, config.max_stop_string_chars), "stop", what="the length of each string"
        )
    _check_range(
        len(options.stop_token_ids),
        Bounds(0, config.max_stop_token_ids),
        "stop_token_ids",
        what="the number of ids",
    )
    for token_id in options.stop_token_ids:
        _check_range(token_id, _TOKEN_IDS, "stop_token_ids", what="each id")
    _check_token_choice(options, config)


def _check_token_choice(options: SamplingOptions, config: RouterConfig) -> None:
    biases, words = options.logit_bias, options.bad_words
    _check_range(
        len(biases), Bounds(0, config.max_logit_biases), "logit_bias", what="the number of token ids"
    )
    for token_id, bias in biases:
        _check_range(token_id, _TOKEN_IDS, "logit_bias", what="each token id")
        _check_range(bias, Bounds(-100, 100), "logit_bias", what="each bias")
    _check_range(len(words), Bounds(0, config.max_bad_words), "bad_words", what="the number of strings")
    for word in words:
        allowed = Bounds(1, config.max_stop_string_chars)
        _check_range(len(word), allowed, "bad_words", what="the length of each string")


def _check_range(value: float | None, allowed: Bounds, param: str, *, what: str = "the value") -> None:
    if value is not None and not allowed.holds(value):
        raise InvalidRequestError(f"Invalid '{param}': {what} is {value} and must be {allowed}.", param=param)


def _max_tokens(
    options: SamplingOptions,
    defaults: GenerationDefaults,
    num_prompt_tokens: int,
    max_model_len: int,
    most_by_default: int,
) -> int:
    if num_prompt_tokens == 0:
        raise InvalidRequestError("The prompt is empty: send at least one token.", param=options.prompt_field)
    rest_tokens = max_model_len - num_prompt_tokens
    asked = 1 if wants_prompt_only(options) else options.max_tokens
    if rest_tokens < 1:
        raise prompt_too_long(str(num_prompt_tokens), max_model_len, options.prompt_field)
    if asked is None:
        suggested = options.default_max_tokens or defaults.max_new_tokens or rest_tokens
        return max(1, min(suggested, rest_tokens, most_by_default))
    if asked > rest_tokens:
        raise ContextLengthError(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{num_prompt_tokens + asked} tokens ({num_prompt_tokens} in the {options.prompt_field}, "
            f"{asked} in the completion). Please reduce the length of the {options.prompt_field} or "
            f"completion.",
            param=options.max_tokens_field,
        )
    return asked
