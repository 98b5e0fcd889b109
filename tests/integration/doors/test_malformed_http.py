"""What is hardly HTTP, or hardly a WebSocket: refused, bounded, and of no effect on anybody else."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest
from support.raw_http import RawClient, frame, open_socket, request
from support.running_server import RunningServer
from support.server_probes import check_idle, check_no_fault, complete, metric
from support.small_checkpoint import NULL_ENVIRONMENT, write_checkpoint
from support.until import until

from mooring.units import MIB

pytestmark = pytest.mark.integration

REQUEST_TIMEOUT_S = 1.5
BODY = {"model": "a", "prompt": "hello", "max_tokens": 3}
LENGTH = len(json.dumps(BODY))
ENVIRONMENT = {
    **NULL_ENVIRONMENT,
    "MOORING_REQUEST_TIMEOUT_S": str(REQUEST_TIMEOUT_S),
    "MOORING_LIMITS__MAX_BODY_BYTES": "1MiB",
    "MOORING_NULL__STEP_TIME_S": "0.01",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("malformed_http")
    flags = ["--engine", "null", "--memory-budget", "64MiB"]
    with RunningServer(root / "data", {"a": write_checkpoint(root / "a")}, flags, ENVIRONMENT) as running:
        yield running


@pytest.fixture(autouse=True)
def unharmed(server: RunningServer) -> Iterator[None]:
    """After each test the server serves, holds nothing, and has logged no fault."""
    yield
    assert complete(server).status_code == 200
    check_idle(server)
    check_no_fault(server)
    assert "ERROR" not in server.log()


def num_connections(server: RunningServer) -> int:
    return len(psutil.Process(server.process.pid).net_connections("tcp"))


# Heads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(BODY, f"Content-Length: {LENGTH}", "Transfer-Encoding: chunked"), 400),
        (request(BODY, "Transfer-Encoding: chunked, identity"), 400),
        (request(BODY, "Transfer-Encoding: xchunked"), 400),
        (request(BODY, f"Content-Length: {LENGTH}", "Content-Length: 1"), 400),
        (request(BODY, f"Content-Length: {LENGTH}, {LENGTH}"), 400),
        (request(BODY, f"Content-Length: +{LENGTH}"), 400),
        (request(BODY, f"Content-Length : {LENGTH}"), 400),
        (request(BODY, f"Content-Length: {'9' * 30}"), 400),
        (request(BODY, "X: a\r\n folded"), 400),
        (request(BODY, "X: a\0b"), 400),
        (request(BODY, "Host: localhost", "Host: y"), 400),
        (request(BODY).replace(b"Host: localhost\r\n", b""), 400),
        (request(BODY).replace(b"\r\n", b"\n"), 400),
        (request(b"zz\r\nabc\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), 400),
        (request(b"fffffffffffffffff\r\nabc\r\n", "Transfer-Encoding: chunked"), 400),
        (request(b"-1\r\nabc\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /v1/\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400),  # TLS
        (request(BODY, *(f"X-{number}: y" for number in range(100))), 431),
        (request(BODY, "X: " + "y" * (65 << 10)), 431),
    ],
)
def test_what_is_not_http_is_refused_and_hung_up_on(server: RunningServer, data: bytes, status: int) -> None:
    with RawClient(server) as client:
        client.send(data)
        answer = client.read_all()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows is no second request"
    error = json.loads(body)["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nX: ", b"GET /", b"", b"GET / HTTP/1.1\r\n"])
def test_a_head_without_end_is_cut_off(server: RunningServer, start: bytes) -> None:
    piece = b"\r\n" * 8192 if not start else b"Y: y\r\n" * 2000 if start.endswith(b"1\r\n") else b"a" * 16384
    with RawClient(server) as client:
        client.send(start)
        assert client.send_until_refused(piece, 64 * MIB) < 16 * MIB


def test_trailers_without_end_are_cut_off(server: RunningServer) -> None:
    with RawClient(server) as client:
        client.send(request(b"2\r\n{}\r\n0\r\n", "Transfer-Encoding: chunked"))
        assert client.send_until_refused(b"Y: y\r\n" * 2000, 64 * MIB) < 16 * MIB


def test_an_upgrade_that_is_not_offered_is_passed_over(server: RunningServer) -> None:
    """Java's client and ``curl --http2`` ask for h2c with their first request, whatever it is."""
    asks = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    data = request(BODY, *asks)
    with RawClient(server) as client:
        for cut in (len(data), len(data) - 20, data.index(b"\r\n\r\n") + 4):
            client.send(data[:cut])
            time.sleep(0.05)
            client.send(data[cut:])
            answer = client.read_until(b"}}")
            assert answer.startswith(b"HTTP/1.1 200 "), answer
        client.send(request(BODY))
        assert client.read_until(b"}}").startswith(b"HTTP/1.1 200 ")


def test_nonsense_behind_a_request_does_not_spoil_its_answer(server: RunningServer) -> None:
    body = {**BODY, "stream": True, "max_tokens": 300}
    with RawClient(server) as client:
        client.send(request(body))
        got = client.read_until(b"data: ")
        client.send(b"\0\0\0 nonsense\r\n\r\n")
        got += client.read_all()
    assert got.count(b"HTTP/1.1 ") == 1
    assert got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


# Bodies -------------------------------------------------------------------------------------------------


def test_a_body_cut_off_runs_nothing(server: RunningServer) -> None:
    before = metric(server, "vllm:request_success_total")
    for cut in range(1, LENGTH, 7):
        with RawClient(server) as client:
            client.send(request(BODY)[:-cut])
    assert metric(server, "vllm:request_success_total") == before


@pytest.mark.parametrize("path", ["/v1/completions", "/v2/models/a/infer", "/tokenize"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(server: RunningServer, path: str, is_chunked: bool) -> None:
    with RawClient(server) as client:
        if is_chunked:
            client.send(request(b"", "Transfer-Encoding: chunked", path=path))
            client.send_until_refused(b"10000\r\n" + b"x" * 65536 + b"\r\n", 2 * MIB)
        else:
            client.send(request(b"", f"Content-Length: {1 << 40}", path=path))
        assert client.read_until(b"\r\n").startswith(b"HTTP/1.1 413 ")


# Time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", request(BODY)[:60], request(BODY)[:-5]])
def test_half_a_request_waits_for_a_while_only(server: RunningServer, sent: bytes) -> None:
    num_before = num_connections(server)
    began = time.monotonic()
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server)) for _ in range(60)]
        for client in clients:
            client.send(sent)
        assert complete(server).status_code == 200
        answers = [client.read_all() for client in clients]
        assert time.monotonic() - began >= REQUEST_TIMEOUT_S * 0.9
    assert all(answer.startswith(b"HTTP/1.1 408 ") if sent else not answer for answer in answers)
    until(lambda: num_connections(server) <= num_before + 1, "closed", timeout_s=8)


def test_a_drop_now_and_then_does_not_keep_a_request_alive(server: RunningServer) -> None:
    data = request(BODY, "X: " + "y" * 1000)
    with RawClient(server) as client:
        began = time.monotonic()
        try:
            for place in range(len(data)):
                client.send(data[place : place + 1])
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert time.monotonic() - began < 0.05 * len(data) / 2  # half of what sending all of it takes


def test_a_slow_answer_outlives_the_time_for_requests(server: RunningServer) -> None:
    body = {**BODY, "stream": True, "max_tokens": 500, "n": 8}
    with RawClient(server) as client:
        client.send(request(body) + request(BODY)[:30])  # and its client has begun the next one
        client.read_until(b"data: ")
        time.sleep(REQUEST_TIMEOUT_S + 0.5)
        client.send(request(BODY)[30:])
        got = client.read_until(b"}}")
        client.send(request(BODY))
        assert b" 200 OK" in client.read_until(b"}}")
    first, _, second = got.partition(b"data: [DONE]")
    assert first.count(b"HTTP/1.1 ") == 0
    assert b" 200 OK" in second


# WebSocket ----------------------------------------------------------------------------------------------

GOOD = json.dumps({"id": "1", "type": "completions", "body": BODY}).encode()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(frame(GOOD, masked=False), 1002, id="unmasked"),
        pytest.param(frame(GOOD, opcode=3), 1002, id="unknown opcode"),
        pytest.param(bytes([0xF1]) + frame(GOOD)[1:], 1002, id="reserved bits"),
        pytest.param(frame(GOOD, opcode=0), 1002, id="goes on with nothing"),
        pytest.param(frame(GOOD[:9], fin=False) + frame(GOOD[9:]), 1002, id="another begins before the end"),
        pytest.param(frame(b"x" * 126, opcode=9), 1002, id="a ping too long"),
        pytest.param(frame(b"x", opcode=9, fin=False), 1002, id="a ping in pieces"),
        pytest.param(frame(b'"\xff\xfe"'), 1007, id="not UTF-8"),
        pytest.param(
            frame(b'"\xf0\x9f', fin=False) + frame(b'"', opcode=0), 1007, id="not UTF-8 across pieces"
        ),
        pytest.param(frame(b"x" * (MIB + 1))[:50], 1009, id="what it announces is too long"),
        pytest.param(
            frame(b"x" * MIB, fin=False) + frame(b"x" * MIB, opcode=0)[:50], 1009, id="pieces too long"
        ),
        pytest.param(bytes([0x81, 0xFF]) + b"\xff" * 12, 1009, id="2**64 - 1 bytes"),
        pytest.param(frame(b"\x00", opcode=8), 1002, id="half a code"),
        pytest.param(frame((1000).to_bytes(2, "big") + b"\xff\xff", opcode=8), 1007, id="a reason not UTF-8"),
    ],
)
def test_broken_frames_close_their_socket(server: RunningServer, sent: bytes, code: int) -> None:
    with open_socket(RawClient(server)) as client:
        client.send(sent)
        opcode, payload = client.frames()[-1]
    assert opcode == 8
    assert int.from_bytes(payload[:2], "big") == code


def test_frames_in_pieces_are_one(server: RunningServer) -> None:
    with open_socket(RawClient(server)) as client:
        client.send(frame(b"", fin=False))
        for place in range(len(GOOD)):
            client.send(
                frame(b"", fin=False, opcode=0) * 50 + frame(GOOD[place : place + 1], fin=False, opcode=0)
            )
        client.send(frame(b"between", opcode=9) + frame(b"", opcode=0))
        assert b'"id":"1","type":"completed' in client.read_until(b"completed")


def test_a_frame_cut_off_frees_what_ran(server: RunningServer) -> None:
    body = {**BODY, "max_tokens": 500, "n": 8, "stream": True}
    with open_socket(RawClient(server)) as client:
        client.send(frame(json.dumps({"id": "1", "type": "completions", "body": body}).encode()))
        client.read_until(b"chunk")
        client.send(frame(GOOD)[:20])
    until(lambda: metric(server, "vllm:num_requests_running") == 0, timeout_s=4)  # less than the answer takes


def test_pings_of_a_client_that_reads_nothing_are_not_kept(server: RunningServer) -> None:
    process = psutil.Process(server.process.pid)
    before_bytes = process.memory_full_info().uss
    with open_socket(RawClient(server, receive_buffer_bytes=4096)) as client:
        assert client.send_until_refused(frame(b"x" * 125, opcode=9) * 500, 48 * MIB)
        until(lambda: process.memory_full_info().uss - before_bytes < 24 * MIB)
    until(lambda: complete(server).status_code == 200)


@pytest.mark.parametrize("header", [f"X: {'y' * 9000}", "Sec-WebSocket-Key: short", "Origin: http://["])
def test_a_handshake_that_is_too_much_is_refused(server: RunningServer, header: str) -> None:
    with RawClient(server) as client:
        client.send(
            b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\n" + header.encode() + b"\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        answer = client.read_all()
    assert answer.split()[1] in (b"400", b"403"), answer
