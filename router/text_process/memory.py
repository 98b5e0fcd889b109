"""Memory of a text process: what its work has left behind goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import os
import resource

from mooring.units import MIB

__all__ = ["SpareMemory"]

_MOST_SPARE_BYTES = 16 * MIB


class SpareMemory:
    """Memory of this process that nothing in it needs. Keeps a file open for the rest of the process's life."""

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc needs it
        self._needed_bytes = 0
        self.give_back()

    def give_back(self) -> None:
        """Gives memory back to the system if the process has grown since the last time. A reading takes some
        microseconds, so it may be called after every piece of work."""
        resident_bytes = self._resident_bytes()
        self._needed_bytes = min(self._needed_bytes, resident_bytes)
        if resident_bytes <= self._needed_bytes + _MOST_SPARE_BYTES:
            return
        gc.collect()  # a template can make something huge that refers to itself
        if self._malloc_trim is not None:
            self._malloc_trim(0)
        self._needed_bytes = self._resident_bytes()

    def _resident_bytes(self) -> int:
        return int(os.pread(self._statm, 128, 0).split()[1]) * resource.getpagesize()
