"""The compiled load generator of ``benchmarks/loadgen``: built once for each run, called for each load."""

from __future__ import annotations

import json
import shutil
import statistics
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mooring.errors import ConfigurationError, InternalError

__all__ = ["DoorLoad", "LoadGenerator", "LoadResult"]

_SOURCES = Path(__file__).with_name("loadgen")
_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror")
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class DoorLoad:
    """The load on one door.

    Attributes:
        protocol: ``http`` (server-sent events) or ``grpc``.
        address: address of the door, ``127.0.0.1:PORT``.
        path: path of the route or of the method.
        bodies: bodies of the requests, taken in turn.
        units_per_stream: events or messages that each stream must bring, no two of them alike.
        num_streams: streams that run at once.
        num_requests: requests in all.
    """

    protocol: str
    address: str
    path: str
    bodies: Sequence[bytes]
    units_per_stream: int
    num_streams: int
    num_requests: int


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Measurements of one load.

    Attributes:
        seconds: from the first request to the end of the last answer.
        num_units: events or messages that came.
        first_s: seconds from each request to its first unit.
        whole_s: seconds from each request to its end.
    """

    seconds: float
    num_units: int
    first_s: tuple[float, ...]
    whole_s: tuple[float, ...]

    @property
    def first_s_p50(self) -> float:
        return statistics.median(self.first_s)


class LoadGenerator:
    """Compiles the program into ``scratch`` and runs it.

    Args:
        core: core that it runs on; None means any.

    Raises:
        ConfigurationError: there is no C compiler.
    """

    def __init__(self, scratch: Path, core: int | None) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            raise ConfigurationError("this benchmark compiles its load generator: install a C compiler (cc)")
        self._scratch = scratch
        self._program = scratch / "loadgen"
        self._core = -1 if core is None else core
        sources = sorted(str(path) for path in _SOURCES.glob("*.c"))
        subprocess.run([compiler, *_FLAGS, "-o", str(self._program), *sources], check=True)

    def run(self, load: DoorLoad) -> LoadResult:
        """Puts the load on, and checks that every token arrived once and by itself.

        Raises:
            InternalError: tokens are missing, or came twice, or together.
        """
        bodies = self._scratch / "bodies"
        bodies.write_bytes(b"".join(struct.pack("<I", len(body)) + body for body in load.bodies))
        host, port = load.address.rsplit(":", 1)
        numbers = (load.num_streams, load.num_requests, load.units_per_stream, self._core)
        command = [str(self._program), load.protocol, host, port, load.path, str(bodies), *map(str, numbers)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise InternalError(f"the load generator failed: {done.stderr.strip()}")
        report = json.loads(done.stdout)
        if report["wrong_streams"] or report["repeated_units"]:
            raise InternalError(
                f"of {report['requests']} streams {report['wrong_streams']} had not the "
                f"{load.units_per_stream} events they should have; {report['repeated_units']} came twice"
            )
        return LoadResult(
            report["seconds"], report["units"], tuple(report["first_s"]), tuple(report["whole_s"])
        )
