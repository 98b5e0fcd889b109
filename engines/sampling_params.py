"""How tokens are drawn: the one declaration of a sampling parameter.

The doors' bodies, their readers and bounds, and the message between router and worker are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mooring.declared import Bounds, Setting

__all__ = ["MAX_COUNT", "MAX_SEED", "SamplingParams"]

MAX_SEED = (1 << 64) - 1
MAX_COUNT = (1 << 31) - 1  # a count beyond it is no wish but a mistake, and may be too long to print


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. Defaults are OpenAI's; a model's generation_config.json may lay its own under what the
    caller left out, which the router does before it makes one of these. Callers set the fields that are marked so by
    these names at every door; the others come out of ``router.request.sampling``.

    Attributes:
        choice: number of this one among the request's n choices; part of the noise's counter.
        max_tokens: most tokens of output, counting ``SequenceRequest.output_ids``.
        stop_token_ids: ids that end the output, beside the model's own end-of-sequence ids.
        logprobs: None for none; k for the sampled token's and the k likeliest.
        prompt_logprobs: the same for the tokens of the prompt.
        logit_bias: (token id, number added to its logit), OpenAI's; each id at most once.
        bad_words_ids: token sequences that the output never completes; one that began in the prompt is none.
    """

    temperature: Annotated[float, Bounds(0, 2), Setting("0 is greedy.")] = 1.0
    top_p: Annotated[float, Bounds(gt=0, le=1), Setting("Nucleus mass; 1 is off.")] = 1.0
    top_k: Annotated[int, Bounds(-1, MAX_COUNT), Setting("Likeliest tokens kept; 0 and -1 are off.")] = 0
    min_p: Annotated[
        float,
        Bounds(0, 1),
        Setting("Tokens below this share of the likeliest one's probability are dropped; 0 is off."),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        Bounds(0.01, 100),  # beyond, logits leave the range of single precision
        Setting("CTRL's, over prompt and output; 1 is off."),
    ] = 1.0
    presence_penalty: Annotated[
        float, Bounds(-2, 2), Setting("OpenAI's, over the output only; 0 is off.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, Bounds(-2, 2), Setting("OpenAI's, over the output only; 0 is off.")
    ] = 0.0
    min_tokens: Annotated[
        int, Bounds(0, MAX_COUNT), Setting("Tokens of output before which nothing ends it.")
    ] = 0
    seed: Annotated[
        int,
        Bounds(-(1 << 63), MAX_SEED),
        Setting("Seed of the noise; a request without one is given one on arrival."),
    ] = 0
    ignore_eos: Annotated[
        bool,
        Setting(
            "The model's own end-of-sequence ids do not end the output; `stop_token_ids` still do, as in vLLM."
        ),
    ] = False
    choice: int = 0
    max_tokens: int = 16
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
