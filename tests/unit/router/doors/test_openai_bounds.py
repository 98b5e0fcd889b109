"""Bodies with very many wrong things are refused for the first of them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from router.doors.openai.bodies import ChatCompletionRequest, CompletionRequest, RequestBody
from router.doors.openai.tokenize import DetokenizeRequest, TokenizeRequest

MANY = 8000
WRONG_MESSAGE = {"role": "user", "content": 7}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CompletionRequest, {"prompt": [{}] * MANY}),
        (CompletionRequest, {"prompt": ["a", *[7] * 4000]}),
        (CompletionRequest, {"prompt": [7, *["a"] * MANY]}),
        (CompletionRequest, {"prompt": [["a"] * 100] * 4000}),
        (CompletionRequest, {"prompt": ["a"] * MANY}),
        (CompletionRequest, {"prompt": "a", "stop": [7] * 4000}),
        (CompletionRequest, {"prompt": "a", "bad_words": [{}] * 4000}),
        (CompletionRequest, {"prompt": "a", "stop_token_ids": ["a"] * MANY}),
        (CompletionRequest, {"prompt": "a", "logit_bias": {str(each): "a" for each in range(MANY)}}),
        (CompletionRequest, {"prompt": "a", **{f"x{each}": 0 for each in range(MANY)}}),
        (ChatCompletionRequest, {"messages": [WRONG_MESSAGE] * MANY}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": ""}] * (MANY + 1000)}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": [7] * MANY}]}),
        (ChatCompletionRequest, {"messages": [{f"x{each}": 0 for each in range(MANY)}]}),
        (TokenizeRequest, {"messages": [WRONG_MESSAGE] * MANY}),
        (DetokenizeRequest, {"tokens": ["a"] * MANY}),
    ],
)
def test_the_first_wrong_thing_ends_the_look(kind: type[RequestBody], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refusal:
        kind.model_validate({"model": "m", **fields})
    assert refusal.value.error_count() <= 4


def test_honest_bodies_are_taken() -> None:
    def prompts(prompt: Any) -> list[Any]:
        return CompletionRequest.model_validate({"model": "m", "prompt": prompt}).prompts()

    assert prompts("text") == ["text"]
    assert prompts(list(range(131_072))) == [tuple(range(131_072))]
    assert prompts(["a"] * 256) == ["a"] * 256
    assert prompts([[1, 2]] * 256) == [(1, 2)] * 256
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": parts}] * 2048
    body = ChatCompletionRequest.model_validate({"model": "m", "messages": messages})
    assert len(body.messages) == 4096
    assert body.messages[1].for_template()["content"] == "a\nb"
