"""What users of the ``openai`` package do, for its versions 2 and 3 alike."""

from __future__ import annotations

import time

import openai
from run_checks import Server, raised_by

MESSAGES = [{"role": "user", "content": "hello"}]


def client_of(server: Server, **settings: object) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0, **settings})


def check_models(server: Server) -> None:
    client = client_of(server)
    assert [model.id for model in client.models.list()] == ["a"]
    assert client.models.retrieve("a").object == "model"


def check_chat(server: Server) -> None:
    answer = client_of(server).chat.completions.create(model="a", messages=MESSAGES, max_tokens=8, seed=1)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert len(choice.message.content) == 8
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def check_chat_with_roles_and_parts(server: Server) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "text", "text": "now?"}]},
    ]
    answer = client_of(server).chat.completions.create(
        model="a", messages=messages, max_completion_tokens=3, n=2, extra_body={"top_k": 5, "min_p": 0.1}
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.completion_tokens == 6


def check_streamed_chat_is_the_whole_one(server: Server) -> None:
    client = client_of(server)
    body = {"model": "a", "messages": MESSAGES, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**body)
    chunks = list(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) == {None}


async def check_async_stream(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="a", messages=MESSAGES, max_tokens=10, stream=True
        )
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert len("".join(texts)) == 10


def check_completions(server: Server) -> None:
    client = client_of(server)
    answer = client.completions.create(model="a", prompt="hello", max_tokens=4, stop=["@@"])
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 4
    chunks = client.completions.create(model="a", prompt="hello", max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def check_logprobs(server: Server) -> None:
    client = client_of(server)
    completion = client.completions.create(model="a", prompt="hello", max_tokens=3, logprobs=2)
    logprobs = completion.choices[0].logprobs
    assert "".join(logprobs.tokens) == completion.choices[0].text
    assert len(logprobs.token_logprobs) == len(logprobs.text_offset) == 3
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
    chat = client.chat.completions.create(
        model="a", messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert "".join(bytes(entry.bytes).decode() for entry in content) == chat.choices[0].message.content
    assert all(len(entry.top_logprobs) == 2 for entry in content)


def check_errors_are_the_packages_own_classes(server: Server) -> None:
    client = client_of(server)

    def ask(kind: type[openai.APIStatusError], **changes: object) -> openai.APIStatusError:
        body = {"model": "a", "messages": MESSAGES, "max_tokens": 1, **changes}
        error = raised_by(kind, lambda: client.chat.completions.create(**body))
        assert error.request_id
        return error

    assert ask(openai.NotFoundError, model="nothing").code == "model_not_found"
    wrong = ask(openai.BadRequestError, temperature=9)
    assert (wrong.param, wrong.type) == ("temperature", "invalid_request_error")
    assert ask(openai.BadRequestError, max_tokens=10**6).code == "context_length_exceeded"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert ask(openai.BadRequestError, tools=tools).param == "tools"
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    refused = ask(openai.BadRequestError, messages=[{"role": "user", "content": [image]}])
    assert refused.param.startswith("messages")
    assert ask(openai.APIStatusError, user="x" * (5 << 20)).status_code == 413
    client = client_of(server, api_key="mk-of-nobody")
    assert ask(openai.AuthenticationError).code == "invalid_api_key"
    nobody = client_of(server, base_url="http://127.0.0.1:9/v1")
    raised_by(openai.APIConnectionError, nobody.models.list)


def check_a_timeout_ends_the_request_at_the_server_too(server: Server) -> None:
    # The package reads parts of itself at its first call, which must not count.
    client_of(server).completions.create(model="a", prompt="hello", max_tokens=1)
    hasty = client_of(server, timeout=0.3)
    started = time.monotonic()
    raised_by(
        openai.APITimeoutError,
        lambda: hasty.completions.create(model="a", prompt="hello", max_tokens=480),
    )
    assert time.monotonic() - started < 7  # less than the answer takes
    server.wait_idle()


def check_leaving_a_stream_ends_the_request(server: Server) -> None:
    stream = client_of(server).completions.create(model="a", prompt="hello", max_tokens=400, stream=True)
    for _, _chunk in zip(range(3), stream, strict=False):
        pass
    assert server.metric("vllm:num_requests_running") == 1
    stream.close()
    server.wait_idle()


def check_the_raw_answer_has_its_id(server: Server) -> None:
    raw = client_of(server).completions.with_raw_response.create(
        model="a", prompt="hello", max_tokens=1, extra_headers={"x-request-id": "mine"}
    )
    assert raw.headers["x-request-id"] == "mine"
    assert raw.parse().usage.completion_tokens == 1
