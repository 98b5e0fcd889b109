"""An ``openai`` client that leaves, seen from the blocks of an engine that has some."""

from __future__ import annotations

import openai
from run_checks import Server


def check_blocks_are_held_and_then_freed(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    for _ in range(3):
        stream = client.completions.create(
            model="a", prompt="hello", max_tokens=500, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    server.wait_idle()
    whole = client.completions.create(
        model="a", prompt="hello", max_tokens=500, extra_body={"ignore_eos": True}
    )
    assert whole.usage.completion_tokens == 500
