"""HTTP/1.1 and WebSocket as bytes, for clients that no library would play."""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.parse
from typing import Any

from support.running_server import RunningServer

__all__ = ["RawClient", "frame", "open_socket", "request"]


class RawClient:
    """A connection; a context manager that closes it."""

    def __init__(self, server: RunningServer, *, receive_buffer_bytes: int | None = None) -> None:
        address = urllib.parse.urlsplit(server.http_url)
        self.socket = socket.socket()
        if receive_buffer_bytes is not None:  # small, so that who does not read is soon noticed
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(20)
        self.socket.connect((address.hostname, address.port))

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_until_refused(self, piece: bytes, limit_bytes: int) -> int:
        """Sends the same again and again, until the server has hung up; how many bytes it took."""
        num_bytes = 0
        try:
            while num_bytes < limit_bytes:
                self.send(piece)
                num_bytes += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return num_bytes

    def read_until(self, end: bytes) -> bytes:
        """What came, up to and with ``end``, or up to the connection's end."""
        got = b""
        while end not in got and (data := self.socket.recv(1 << 16)):
            got += data
        return got

    def read_all(self, timeout_s: float = 10.0) -> bytes:
        """What comes until the server hangs up. Raises ``TimeoutError`` where it does not."""
        deadline = time.monotonic() + timeout_s
        got = b""
        while True:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return got
            if not data:
                return got
            got += data

    def frames(self) -> list[tuple[int, bytes]]:
        """WebSocket frames, with their opcodes, until the server hangs up."""
        data = self.read_all()
        found = []
        while data:
            size, start = data[1] & 0x7F, 2
            if size >= 126:
                start = 4 if size == 126 else 10
                size = int.from_bytes(data[2:start], "big")
            found.append((data[0] & 0x0F, data[start : start + size]))
            data = data[start + size :]
        return found


def request(body: dict[str, Any] | bytes, *headers: str, path: str = "/v1/completions") -> bytes:
    """A POST as bytes. Its length is announced unless ``headers`` say how it ends."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        headers = (*headers, f"Content-Length: {len(content)}")
    if not any(header.lower().startswith("host") for header in headers):
        headers = (*headers, "Host: localhost")
    lines = (f"POST {path} HTTP/1.1", "Content-Type: application/json", *headers, "", "")
    return "\r\n".join(lines).encode("latin-1") + content


def open_socket(client: RawClient) -> RawClient:
    """Makes the connection a WebSocket."""
    client.send(
        b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    return client


def frame(data: bytes, *, opcode: int = 1, fin: bool = True, masked: bool = True) -> bytes:
    """A WebSocket frame, masked as those of clients have to be."""
    first = (0x80 if fin else 0) | opcode
    bit = 0x80 if masked else 0
    if len(data) < 126:
        head = bytes([first, bit | len(data)])
    elif len(data) < 1 << 16:
        head = bytes([first, bit | 126]) + len(data).to_bytes(2, "big")
    else:
        head = bytes([first, bit | 127]) + len(data).to_bytes(8, "big")
    if not masked:
        return head + data
    mask = os.urandom(4)
    repeated = (mask * (len(data) // 4 + 1))[: len(data)]
    mixed = int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")
    return head + mask + mixed.to_bytes(len(data), "big")
