"""Sends tenants' requests over HTTP at their times, each streamed, and times what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx
import orjson

from benchmarks.slo.workload import TenantRequest
from router.doors.prediction import PREDICTED_TTFT

__all__ = ["TimedAnswer", "send_all"]


@dataclass(slots=True)
class TimedAnswer:
    """The answer to one request; times in seconds since the request was due, but for ``refused_in_s``.

    Attributes:
        refused_in_s: from sending it to having read the refusal; None if it was not refused with 503.
        predicted_s: as the answer's header says; None without one.
        first_s: when its first token came; None before there was any.
        end_s: when its last token came, or when it was refused or given up.
        num_tokens: events with tokens, one each.
        error: why it did not finish; empty if it did.
    """

    refused_in_s: float | None = None
    predicted_s: float | None = None
    first_s: float | None = None
    end_s: float = 0.0
    num_tokens: int = 0
    error: str = "given up"

    @property
    def tpot_s(self) -> float:
        """Mean seconds between tokens; 0 with fewer than two."""
        if self.first_s is None or self.num_tokens < 2:
            return 0.0
        return (self.end_s - self.first_s) / (self.num_tokens - 1)


async def send_all(
    url: str, keys: Mapping[str, str], requests: Sequence[TenantRequest], patience_s: float
) -> list[TimedAnswer]:
    """Sends every request at its time, whatever became of those before it; returns the answers in their order.

    Args:
        url: of the HTTP door.
        keys: of the tenants, by name.
        patience_s: seconds after the last arrival for which answers are waited for.
    """
    answers = [TimedAnswer() for _ in requests]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=None, trust_env=False) as http:
        await asyncio.gather(*(http.get("/health/ready") for _ in range(16)))  # connections that are open
        started_s = time.monotonic()
        tasks = [
            asyncio.create_task(_send(http, keys[each.tenant.name], each, answer, started_s))
            for each, answer in zip(requests, answers, strict=True)
        ]
        last_s = max((each.request.at_s for each in requests), default=0.0)
        await asyncio.wait(tasks, timeout=last_s + patience_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return answers


async def _send(
    http: httpx.AsyncClient, key: str, wanted: TenantRequest, answer: TimedAnswer, started_s: float
) -> None:
    request, due_s = wanted.request, started_s + wanted.request.at_s
    body = orjson.dumps(
        {
            "model": request.model,
            "prompt": request.prompt_token_ids,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "seed": request.seed,
            "ignore_eos": True,
            "stream": True,
            "logprobs": 0,  # an event for each token, also where its text is not certain yet
        }
    )
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    await asyncio.sleep(due_s - time.monotonic())
    sent_s = time.monotonic()
    try:
        async with http.stream("POST", "/v1/completions", content=body, headers=headers) as response:
            if response.status_code != 200:
                code = orjson.loads(await response.aread())["error"]["code"]
                answer.error = f"{response.status_code} {code}"
                if response.status_code == 503:
                    answer.refused_in_s = time.monotonic() - sent_s
                return
            if PREDICTED_TTFT in response.headers:
                answer.predicted_s = int(response.headers[PREDICTED_TTFT]) / 1000
            async for line in response.aiter_lines():
                _note(answer, line, time.monotonic() - due_s)
    except httpx.HTTPError as error:
        answer.error = repr(error)
    finally:
        if not answer.num_tokens or answer.error:
            answer.end_s = time.monotonic() - due_s


def _note(answer: TimedAnswer, line: str, now_s: float) -> None:
    if line == "data: [DONE]":
        answer.error = ""
    elif line.startswith("data: "):
        if (error := orjson.loads(line[6:]).get("error")) is not None:
            answer.error = str(error["code"])
            return
        answer.first_s = now_s if answer.first_s is None else answer.first_s
        answer.end_s = now_s
        answer.num_tokens += 1
