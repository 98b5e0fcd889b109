"""What users of ``langchain-openai`` do."""

from __future__ import annotations

import openai
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from run_checks import Server, raised_by

MESSAGES = [SystemMessage("Be brief."), HumanMessage("hello")]


def chat_of(server: Server, **settings: object) -> ChatOpenAI:
    return ChatOpenAI(
        **{
            "model": "a",
            "base_url": f"{server.url}/v1",
            "api_key": "none",
            "max_tokens": 12,
            "max_retries": 0,
            **settings,
        }
    )


def check_invoke(server: Server) -> None:
    answer = chat_of(server, temperature=0, stop=["@@"]).invoke(MESSAGES)
    assert len(answer.text) == 12
    assert answer.usage_metadata["output_tokens"] == 12
    assert answer.response_metadata["finish_reason"] == "length"


def check_stream_is_the_whole(server: Server) -> None:
    chat = chat_of(server, temperature=0, stream_usage=True)
    chunks = list(chat.stream(MESSAGES))
    assert "".join(chunk.text for chunk in chunks) == chat.invoke(MESSAGES).text
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 12


async def check_async_batch(server: Server) -> None:
    answers = await chat_of(server).abatch([MESSAGES, MESSAGES[1:]])
    assert [len(answer.text) for answer in answers] == [12, 12]


def check_logprobs(server: Server) -> None:
    answer = chat_of(server, logprobs=True, top_logprobs=2).invoke("hello")
    assert len(answer.response_metadata["logprobs"]["content"]) == 12


def check_completions(server: Server) -> None:
    llm = OpenAI(model="a", base_url=f"{server.url}/v1", api_key="none", max_tokens=12, temperature=0)
    assert llm.invoke("hello") == "".join(llm.stream("hello"))


def check_errors(server: Server) -> None:
    unknown = chat_of(server, model="nothing")
    assert raised_by(openai.NotFoundError, lambda: unknown.invoke("hello")).code == "model_not_found"


def check_leaving_a_stream_ends_the_request(server: Server) -> None:
    stream = chat_of(server, max_tokens=400).stream("hello")
    next(stream)
    stream.close()
    server.wait_idle()
