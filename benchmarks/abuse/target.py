"""The server that an attack aims at, as the attacker knows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.running_server import RunningServer

__all__ = ["ATTACKER_ADDRESS", "MODEL", "Attack", "Strike", "Target"]

MODEL = "null"
# The server counts what each address holds, so the attacker has another one than the client that watches.
ATTACKER_ADDRESS = "127.0.0.2"

Strike = Callable[[], Sequence[str]]
"""An attack that is ready. It returns once it has let everything go, with what it was answered: a status for
each request, or the name of the error that ended it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server under attack.

    Attributes:
        http: host and port of its HTTP door.
        grpc: address of its gRPC door.
        key: the key that the attacker sends; None for none.
        server: the process, for attacks on what only its operator may do.
        model_folder: the model that is served.
        scratch: a folder for files that the attack makes.
        hold_s: seconds for which an attack that waits holds what it has.
    """

    http: tuple[str, int]
    grpc: str
    key: str | None
    server: RunningServer
    model_folder: Path
    scratch: Path
    hold_s: float


Attack = Callable[[Target], Strike]
"""Makes an attack ready: builds what it sends, so that this takes no time from what is measured."""
