"""JSON bodies are bounded by what they would cost, and honest ones are not."""

from __future__ import annotations

import json
import random

import orjson
import pytest

from mooring.errors import InvalidRequestError
from mooring.units import MIB
from router.doors.http import json_body
from router.doors.http.json_body import MAX_CONTAINERS, MAX_ITEMS, MAX_STRINGS, read_json


def refused(body: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """The complaint about a body; it must not have been parsed."""
    monkeypatch.setattr(json_body.orjson, "loads", lambda _: pytest.fail("parsed"))
    with pytest.raises(InvalidRequestError) as refusal:
        read_json(body)
    return refusal.value.message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[" + b"[]," * MAX_CONTAINERS + b"[]]", "arrays and objects"),
        (b"[" + b"{}," * MAX_CONTAINERS + b"{}]", "arrays and objects"),
        (b"[" * (MAX_CONTAINERS + 1), "arrays and objects"),
        (b"[" + b"0," * (MAX_ITEMS + 1) + b"0]", "items"),
        (b"[" + b'"",' * (MAX_STRINGS + 1) + b'""]', "strings"),
        (b"{" + b'"k":0,' * (MAX_STRINGS + 1) + b'"k":0}', "strings"),
        # What looks like a string's end and is none, and the other way round.
        (b'["\\\\",' + b"[]," * MAX_CONTAINERS + b"[]]", "arrays and objects"),
        (b'["\\\\\\"", ' + b"[]," * MAX_CONTAINERS + b"[]]", "arrays and objects"),
    ],
)
def test_many_small_things_are_refused_unparsed(
    body: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert says in refused(body, monkeypatch)


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": 'if (a[0] == "[],{}") { return f"{x}, \\\\{y}"; }\n' * 80_000},
        {"prompt": ("[" * 100 + '"' + "," * 100) * (3 * MIB // 202)},
        {"prompt": "\\" * MIB + '"' * MIB},
        {"prompt": [random.Random(1).randrange(150_000) for _ in range(131_072)]},
        {"prompt": [[1] * 1000 for _ in range(256)]},
        {"messages": [{"role": "user", "content": "no, [no]"} for _ in range(10_000)]},
    ],
    ids=["code", "brackets", "escapes", "token ids", "batch", "conversation"],
)
def test_honest_bodies_are_read_whole(value: object) -> None:
    body = json.dumps(value).encode()
    assert read_json(body) == value


def test_the_count_is_of_what_stands_outside_of_strings() -> None:
    within = json.dumps(['[{,\\"' * MAX_ITEMS, '"', "\\"])
    most = f"[{within}{',0' * (MAX_ITEMS - 3)}]".encode()
    assert len(read_json(most)) == MAX_ITEMS - 2
    with pytest.raises(InvalidRequestError, match="items"):
        read_json(b"[0,0,0," + most + b"]")


@pytest.mark.parametrize("body", [b"", b"{", b'"\xff"', b"[NaN]", b'"\\ud800"', b"[1]]", b"[" * 5000])
def test_what_is_not_json_is_said(body: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(body)
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        read_json(body)
