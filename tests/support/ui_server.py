"""A server with its web UI, as tests of the UI start it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from support.running_server import RunningServer
from support.until import until

__all__ = ["server_with_ui", "ui_address"]

ADDRESS = re.compile(r"web UI on (http://[\w.:]+): ")


def ui_address(server: RunningServer) -> str:
    """Where the server's UI is, once it listens."""
    until(lambda: ADDRESS.search(server.log()), "the web UI listens", timeout_s=60)
    return ADDRESS.findall(server.log())[-1]  # type: ignore[no-any-return]


@contextlib.contextmanager
def server_with_ui(
    data_dir: Path,
    models: Mapping[str, Path],
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[RunningServer, str]]:
    """A server and the address of its UI."""
    given = ["--ui", "--ui-port", "0", *flags]
    with RunningServer(data_dir, models, given, environment) as server:
        yield server, ui_address(server)
