"""The thread that keeps an arena's stock ahead of need."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from memory_manager.cores import stand_back
from mooring.errors import InsufficientMemoryError

__all__ = ["StockKeeper"]

log = logging.getLogger(__name__)

_PAUSE_S = 5.0  # after the system had no more


class StockKeeper:
    """Restocks, whenever it is told that the stock may be low, until there is enough.

    Args:
        restock: makes one page or a few for the stock; False if none is missing. It may run beside any other
            call.
    """

    def __init__(self, restock: Callable[[], bool]) -> None:
        self._restock = restock
        self._low = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="arena-stock", daemon=True)
        self._low.set()
        self._thread.start()

    def look(self) -> None:
        """Tells the thread that the stock may be low."""
        self._low.set()

    def close(self) -> None:
        """Ends the thread as soon as it has made the pages that it is making."""
        self._ending.set()
        self._low.set()
        self._thread.join()

    def _run(self) -> None:
        stand_back()
        while True:
            self._low.wait()
            self._low.clear()
            try:
                while not self._ending.is_set() and self._restock():
                    pass
            except InsufficientMemoryError as error:
                log.warning("no memory is kept ready ahead of need: %s", error.message)
                self._ending.wait(_PAUSE_S)
            if self._ending.is_set():
                return
