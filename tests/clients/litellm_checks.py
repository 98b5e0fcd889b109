"""What users of ``litellm`` do: its providers ``openai`` and ``hosted_vllm``."""

from __future__ import annotations

import litellm
from run_checks import Server, raised_by

MESSAGES = [{"role": "user", "content": "hello"}]
PROVIDERS = ("openai", "hosted_vllm")


def settings_of(server: Server, provider: str = "openai", **changes: object) -> dict[str, object]:
    common = {"model": f"{provider}/a", "api_base": f"{server.url}/v1", "api_key": "none"}
    return {**common, "messages": MESSAGES, "max_tokens": 12, "temperature": 0, "max_retries": 0, **changes}


def check_completion(server: Server) -> None:
    for provider in PROVIDERS:
        answer = litellm.completion(**settings_of(server, provider))
        assert len(answer.choices[0].message.content) == 12
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 12


def check_stream_is_the_whole(server: Server) -> None:
    for provider in PROVIDERS:
        chunks = list(litellm.completion(**settings_of(server, provider), stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == litellm.completion(**settings_of(server, provider)).choices[0].message.content


async def check_async_stream(server: Server) -> None:
    stream = await litellm.acompletion(**settings_of(server, "hosted_vllm"), stream=True)
    texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert len("".join(texts)) == 12


def check_text_completion(server: Server) -> None:
    answer = litellm.text_completion(
        model="text-completion-openai/a",
        api_base=f"{server.url}/v1",
        api_key="none",
        prompt="hello",
        max_tokens=5,
    )
    assert answer.usage.completion_tokens == 5


def check_errors(server: Server) -> None:
    for kind, changes in (
        (litellm.NotFoundError, {"model": "openai/nothing"}),
        (litellm.BadRequestError, {"temperature": 9}),
        (litellm.ContextWindowExceededError, {"max_tokens": 10**6}),
        (litellm.AuthenticationError, {"api_key": "mk-of-nobody"}),
    ):
        settings = settings_of(server, **changes)
        raised_by(kind, lambda settings=settings: litellm.completion(**settings))


def check_a_timeout_ends_the_request_at_the_server_too(server: Server) -> None:
    hasty = settings_of(server, max_tokens=400, timeout=0.3)
    raised_by(litellm.Timeout, lambda: litellm.completion(**hasty))
    server.wait_idle()
