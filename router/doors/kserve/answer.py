"""Turns a generation into the output tensors of its answers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from router.doors.kserve.inputs import InferRequest
from router.doors.kserve.outputs import OUTPUTS
from router.doors.kserve.tensors import Tensor
from router.text.generation import TextDelta, TextGeneration, TokenLogprob, by_step
from router.text.prompt_view import logprobs_by_id
from router.text.shaping import chars_of_logprobs, shaped

__all__ = ["Answer", "answers_of"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One response.

    Attributes:
        outputs: its tensors; an answer without any only says that it is final.
        final: whether no answer follows.
        predicted_ttft_s: as in ``TokenStream``.
    """

    outputs: Sequence[Tensor]
    final: bool
    predicted_ttft_s: float | None = None


@dataclass(slots=True)
class _Choice:
    """The new part of one choice, and its sums so far."""

    texts: list[str] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    cumulative_logprob: float = 0.0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def num_chars(self) -> int:
        """About how large the new part is."""
        return sum(map(len, self.texts)) + chars_of_logprobs(self.logprobs)

    def take(self, delta: TextDelta) -> None:
        if delta.text:
            self.texts.append(delta.text)
        self.num_tokens += len(delta.token_ids)
        self.finish_reason = delta.finish_reason or self.finish_reason
        if delta.logprobs is not None:
            self.logprobs += delta.logprobs
            self.cumulative_logprob += sum(map(_logprob_of, delta.logprobs))

    def told(self) -> None:
        """Starts the new part afresh: an answer has shown it."""
        self.texts, self.num_tokens, self.logprobs = [], 0, []


async def answers_of(
    generation: TextGeneration, request: InferRequest, *, whole: bool
) -> AsyncGenerator[Answer, None]:
    """The answers to a request, each with all choices: one for each step of the engine, even if several steps
    came together, or a single one with everything. The last answer is final, unless the request asked for an
    empty final one.

    Raises:
        MooringError: the generation failed; nothing follows.
    """
    choices = [_Choice() for _ in range(generation.num_choices)]
    num_running = len(choices)
    num_prompt_tokens = generation.usage.prompt_tokens
    async for batch in generation:
        for step in by_step(batch):
            for delta in step:
                choices[delta.index].take(delta)
                num_running -= delta.finish_reason is not None
            if whole and num_running:
                continue
            if whole and request.prepend_prompt:
                for choice in choices:
                    choice.texts.insert(0, request.prompt)
            num_chars = sum(choice.num_chars for choice in choices)
            make = partial(_outputs, request.outputs, choices, num_prompt_tokens)
            outputs = await shaped(make, num_chars)
            final = num_running == 0 and not request.empty_final
            yield Answer(outputs, final, generation.predicted_ttft_s)
            for choice in choices:
                choice.told()
    if request.empty_final:
        yield Answer((), final=True)


def _outputs(names: Sequence[str], choices: Sequence[_Choice], num_prompt_tokens: int) -> list[Tensor]:
    return [_output(name, choices, num_prompt_tokens) for name in names]


def _output(name: str, choices: Sequence[_Choice], num_prompt_tokens: int) -> Tensor:
    datatype = OUTPUTS[name].datatype
    if name == "num_input_tokens":
        return Tensor(name, datatype, (1,), [num_prompt_tokens])
    if name == "output_log_probs":
        return _log_probs(choices)
    return Tensor(name, datatype, (len(choices),), [_value(name, choice) for choice in choices])


def _value(name: str, choice: _Choice) -> Any:
    if name == "text_output":
        return choice.text.encode()
    if name == "finish_reason":
        return str(choice.finish_reason).encode()  # "None" while it runs, as the vLLM backend says it
    if name == "num_output_tokens":
        return choice.num_tokens
    if name == "logprobs":
        return json.dumps([logprobs_by_id(entry) for entry in choice.logprobs]).encode()
    return choice.cumulative_logprob


def _log_probs(choices: Sequence[_Choice]) -> Tensor:
    """TensorRT-LLM's rows of log-probabilities, one for each choice, filled up with zeros to one length."""
    longest = max(len(choice.logprobs) for choice in choices)
    values: list[float] = []
    for choice in choices:
        row = [_logprob_of(entry) for entry in choice.logprobs]
        values += row + [0.0] * (longest - len(row))
    return Tensor("output_log_probs", "FP32", (len(choices), longest), values)


def _logprob_of(entry: TokenLogprob) -> float:
    # None is for the first token of an echoed prompt, and these doors echo no prompt's log-probabilities.
    assert entry.logprob is not None
    return entry.logprob
