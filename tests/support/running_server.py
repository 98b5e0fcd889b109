"""The server as tests start it."""

from ops.running_server import RunningServer

__all__ = ["RunningServer"]
