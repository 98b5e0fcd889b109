"""The last hour in figures, a row every few seconds: what the admin UI's charts begin with. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

__all__ = ["INTERVAL_S", "History"]

INTERVAL_S = 5.0
_SPAN_S = 3600.0


class History:
    """Rows of figures, the oldest going after an hour."""

    def __init__(self) -> None:
        self._rows: deque[tuple[float, Mapping[str, float]]] = deque(maxlen=int(_SPAN_S / INTERVAL_S))

    def note(self, at_s: float, figures: Mapping[str, float | None]) -> None:
        """Takes a row. ``at_s``: of the Unix epoch. What is None was not measured."""
        row = {name: value for name, value in figures.items() if value is not None}
        self._rows.append((round(at_s, 1), row))

    def since(self, at_s: float) -> dict[str, Any]:
        """The rows since then as columns, with None where a figure was not measured."""
        rows = [row for row in self._rows if row[0] >= at_s]
        names = sorted({name for _, figures in rows for name in figures})
        return {
            "interval_s": INTERVAL_S,
            "at": [at for at, _ in rows],
            "series": {name: [figures.get(name) for _, figures in rows] for name in names},
        }
