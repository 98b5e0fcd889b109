"""Sends tenants' requests over HTTP at their times, each streamed, and times what comes back.

Each request has a connection of its own, and events are counted and not read: a client that is late itself would
measure itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httptools
import orjson

from benchmarks.slo.workload import TenantRequest
from router.doors.prediction import PREDICTED_TTFT

__all__ = ["AnswerReader", "TimedAnswer", "send_all"]

_EVENT, _LAST_EVENT = b"data: ", b"data: [DONE]"
_ERROR_EVENT = b'data: {"error"'
_READ_BYTES = 65536


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


class AnswerReader:
    """Reads one answer as it comes, and notes its course in ``answer``.

    Args:
        due_s, sent_s: when the request was due and when it was sent.
        clock: gives the time, in seconds.
    """

    def __init__(
        self, answer: TimedAnswer, due_s: float, sent_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._answer, self._due_s, self._sent_s, self._clock = answer, due_s, sent_s, clock
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self.is_complete = False

    def feed(self, data: bytes) -> None:
        """Takes what came from the connection."""
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.decode().lower() == PREDICTED_TTFT:
            self._answer.predicted_s = int(value) / 1000

    def on_body(self, data: bytes) -> None:
        self._body += data
        if self._parser.get_status_code() != 200:
            return
        *events, rest = bytes(self._body).split(b"\n\n")
        self._body = bytearray(rest)
        for event in events:
            self._note(event)

    def on_message_complete(self) -> None:
        self.is_complete = True
        status = self._parser.get_status_code()
        if status != 200:
            self._answer.error = f"{status} {orjson.loads(self._body)['error']['code']}"
            if status == 503:
                self._answer.refused_in_s = self._clock() - self._sent_s

    def _note(self, event: bytes) -> None:
        if event == _LAST_EVENT:
            self._answer.error = ""
        elif event.startswith(_ERROR_EVENT):
            self._answer.error = str(orjson.loads(event.removeprefix(_EVENT))["error"]["code"])
        elif event.startswith(_EVENT):
            now_s = self._clock() - self._due_s
            if self._answer.first_s is None:
                self._answer.first_s = now_s
            self._answer.end_s = now_s
            self._answer.num_tokens += 1


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
    address = urlsplit(url)
    started_s = time.monotonic()
    tasks = [
        asyncio.create_task(_send(address, keys[each.tenant.name], each, answer, started_s))
        for each, answer in zip(requests, answers, strict=True)
    ]
    last_s = max((each.request.at_s for each in requests), default=0.0)
    await asyncio.wait(tasks, timeout=last_s + patience_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return answers


async def _send(
    address: SplitResult, key: str, wanted: TenantRequest, answer: TimedAnswer, started_s: float
) -> None:
    due_s = started_s + wanted.request.at_s
    message = _message(address.netloc, key, wanted)
    await asyncio.sleep(due_s - time.monotonic())
    try:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            answering = AnswerReader(answer, due_s, time.monotonic())
            writer.write(message)
            while not answering.is_complete and (data := await reader.read(_READ_BYTES)):
                answering.feed(data)
        finally:
            writer.close()
    except OSError as error:
        answer.error = repr(error)
    finally:
        if not answer.num_tokens or answer.error:
            answer.end_s = time.monotonic() - due_s


def _message(host: str, key: str, wanted: TenantRequest) -> bytes:
    request = wanted.request
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
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
