"""Scores of given answers and steered sampling, through the whole server, against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from support.running_server import RunningServer
from support.tiny_models import make_tiny_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.integration

CONTEXT = "What is the capital of France? The capital of France is"
CHOICES = (" Paris.", " the lazy dog", " 東京 🙂")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    flags = ["--dtype", "float32", "--memory-budget", "64MiB"]
    with RunningServer(tmp_path_factory.mktemp("server") / "data", {"tiny": folder}, flags) as server:
        yield openai.OpenAI(base_url=f"{server.http_url}/v1", api_key="none", max_retries=0)


def logprobs_of(reference: Any, ids: list[int]) -> torch.Tensor:
    """float32 [tokens - 1, vocabulary]: of what follows each token but the last."""
    with torch.no_grad():
        logits: torch.Tensor = reference(torch.tensor([ids])).logits[0, :-1]
    return torch.log_softmax(logits.float(), dim=-1)


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_choices_are_scored_in_one_request(
    client: openai.OpenAI, tokenizer: Tokenizer, reference: Any, max_tokens: int
) -> None:
    context = tokenizer.encode(CONTEXT).ids
    prompts = [context + tokenizer.encode(choice).ids for choice in CHOICES]
    answer = client.completions.create(
        model="tiny", prompt=prompts, echo=True, logprobs=2, max_tokens=max_tokens, temperature=0
    )
    for ids, scored in zip(prompts, answer.choices, strict=True):
        expected = logprobs_of(reference, ids)
        own = expected[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        assert scored.logprobs is not None
        first, *told = (scored.logprobs.token_logprobs or [])[: len(ids)]
        assert first is None
        assert told == pytest.approx(own.tolist(), abs=1e-4)
        tops = (scored.logprobs.top_logprobs or [])[1 : len(ids)]
        for place, (logprob, top) in enumerate(zip(told, tops, strict=True)):
            assert max(top.values()) == pytest.approx(float(expected[place].max()), abs=1e-4)
            assert (logprob == max(top.values())) is (int(expected[place].argmax()) == ids[place + 1])
        assert len(scored.logprobs.tokens or []) == len(ids) + max_tokens
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(CHOICES) * max_tokens


def test_every_choice_of_a_sampled_request_has_the_prompts_scores(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=CONTEXT, echo=True, logprobs=1, max_tokens=4, n=3, seed=5
    )
    told = [(choice.logprobs.token_logprobs or [])[:-4] for choice in answer.choices if choice.logprobs]
    assert len(told) == 3
    assert told[0] == told[1] == told[2]
    assert all(choice.text.startswith(CONTEXT) for choice in answer.choices)


def test_biases_and_bad_words_steer_what_is_said(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    def greedy(**fields: Any) -> str:
        answer = client.completions.create(
            model="tiny", prompt=CONTEXT, max_tokens=6, temperature=0, extra_body=fields
        )
        return answer.choices[0].text

    wanted = tokenizer.encode("quick").ids[0]
    assert greedy(logit_bias={str(wanted): 100}) == tokenizer.decode([wanted]) * 6
    plain = client.completions.create(model="tiny", prompt=CONTEXT, max_tokens=6, temperature=0, logprobs=0)
    assert plain.choices[0].logprobs is not None
    first = next(token for token in plain.choices[0].logprobs.tokens or [] if token.isalnum())
    assert first in greedy()
    assert first not in greedy(bad_words=[first])
