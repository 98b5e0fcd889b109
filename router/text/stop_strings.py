"""Stop strings, found however a text is cut into pieces."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Lets a text through piece by piece and ends it before the first stop string, or right after it.

    A tail that may still grow into a stop string is held back, and no more than that. The output depends on
    the text alone, never on where it was cut: of several matches the one that is complete first wins, and of
    those the longest.

    Args:
        stops: the stop strings, none of them empty.
        include: whether the stop string itself is let through.

    Attributes:
        found: the stop string that ended the text; None if none has.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._longest_chars = max(map(len, self._stops), default=0)
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str) -> tuple[str, bool]:
        """Takes the next piece.

        Returns:
            The text that may be shown now, and whether a stop string was found. If so, the text that was held
            back is dropped and no further piece may be fed.
        """
        if not self._stops or not piece:
            return piece, False
        text = self._held + piece
        match = self._first_match(text)
        if match is not None:
            start, end = match
            self.found = text[start:end]
            self._held = ""
            return text[: end if self._include else start], True
        keep = self._num_held_chars(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """Returns the text that was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, int] | None:
        """Start and end of the stop string that is complete first; None if there is none."""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if not found:
            return None
        end, start = min(found)
        return start, end

    def _num_held_chars(self, text: str) -> int:
        """Length of the longest tail that a stop string begins with."""
        for size in range(min(self._longest_chars - 1, len(text)), 0, -1):
            tail = text[len(text) - size :]
            if any(len(stop) > size and stop.startswith(tail) for stop in self._stops):
                return size
        return 0
