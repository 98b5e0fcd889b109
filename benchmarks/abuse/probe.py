"""The client that an attack must not harm: asks ``/health/live`` all the time and reads a stream.

``python -m benchmarks.abuse.probe HOST PORT KEY``, a process of its own. Prints ``ready`` once both are under
way; after the next line of its input it waits for one more answer and one more token, and prints ``Found`` as
JSON.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field

from benchmarks.abuse.target import MODEL

__all__ = ["GOOD_REQUEST", "Found"]

PERIOD_S = 0.01
TIMEOUT_S = 60.0
GOOD_REQUEST = {"model": MODEL, "prompt": "import os", "max_tokens": 8000, "temperature": 0}


@dataclass(slots=True)
class Found:
    """The probe's findings.

    Attributes:
        stall_ms: longest time from when an answer about the server's health was due to when it came.
        pause_ms: longest time without a token of the stream.
        texts: the streams, each as far as it came.
        errors: what else became of them.
    """

    stall_ms: float = 0.0
    pause_ms: float = 0.0
    texts: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class _Reader(threading.Thread):
    """Reads streams, one after the other."""

    def __init__(self, connect: _Connect, key: str, found: Found) -> None:
        super().__init__(daemon=True)
        self._connect = connect
        self._key = key
        self._found = found
        self._came = threading.Condition()
        self._num_tokens = 0

    def run(self) -> None:
        while True:
            self._found.texts.append("")
            try:
                for text in self._texts():
                    self._found.texts[-1] += text
                    with self._came:
                        self._num_tokens += 1
                        self._came.notify_all()
            except (OSError, http.client.HTTPException, ValueError) as error:
                self._found.errors.append(repr(error))
                time.sleep(PERIOD_S)

    def wait_for_token(self) -> None:
        """Returns after the next token."""
        with self._came:
            wanted = self._num_tokens + 1
            self._came.wait_for(lambda: self._num_tokens >= wanted, TIMEOUT_S)

    def _texts(self) -> Iterator[str]:
        headers = {"content-type": "application/json", "authorization": f"Bearer {self._key}"}
        with closing(self._connect()) as connection:
            connection.request(
                "POST", "/v1/completions", json.dumps(GOOD_REQUEST | {"stream": True}), headers
            )
            answer = connection.getresponse()
            last_s = time.monotonic()
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                [choice] = json.loads(line[6:])["choices"]
                now_s = time.monotonic()
                self._found.pause_ms = max(self._found.pause_ms, 1e3 * (now_s - last_s))
                last_s = now_s
                yield choice["text"]
            if answer.status != 200:
                raise ValueError(f"the stream was answered with {answer.status}")


class _Connect:
    """Makes connections to the server."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    def __call__(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)


def _ask(connect: _Connect, found: Found, over: threading.Event) -> None:
    """Asks until it is over and a question that was put later has been answered."""
    due_s = time.monotonic()
    answered = False
    while not (answered and over.is_set()):
        was_over = over.is_set()
        try:
            with closing(connect()) as connection:
                connection.request("GET", "/health/live")
                answered = connection.getresponse().status == 200 and was_over
        except (OSError, http.client.HTTPException):
            time.sleep(PERIOD_S)
            continue  # still due
        now_s = time.monotonic()
        found.stall_ms = max(found.stall_ms, 1e3 * (now_s - due_s))
        due_s = max(due_s + PERIOD_S, now_s)
        time.sleep(due_s - now_s)


def _main(host: str, port: str, key: str) -> None:
    found = Found()
    over = threading.Event()
    connect = _Connect(host, int(port))
    reader = _Reader(connect, key, found)
    asker = threading.Thread(target=_ask, args=(connect, found, over), daemon=True)
    reader.start()
    reader.wait_for_token()
    found.pause_ms = 0.0
    asker.start()
    print("ready", flush=True)
    sys.stdin.readline()
    over.set()
    asker.join(TIMEOUT_S)
    reader.wait_for_token()
    print(json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
