"""How fast weights come to each device, learnt from the moves themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["LinkRates"]

_KEPT = 2 / 3  # of what was known, with each new measurement


@dataclass(slots=True)
class _Link:
    """Bytes moved and the time that it took, older moves counting for less: so a rate follows the machine, and
    large moves, whose fixed cost is small beside them, say most."""

    num_bytes: float = 0.0
    seconds: float = 0.0

    def note(self, num_bytes: int, seconds: float) -> None:
        self.num_bytes = self.num_bytes * _KEPT + num_bytes
        self.seconds = self.seconds * _KEPT + seconds


class LinkRates:
    """Running estimates of bytes per second, by device and way: ``"wake"`` from host memory, ``"load"`` from
    storage. A model that never moved is predicted from its size by them."""

    def __init__(self) -> None:
        self._links: dict[str, dict[str, _Link]] = {}  # by way, and by device

    def note(self, device: str, way: str, num_bytes: int, seconds: float) -> None:
        """Takes one move into the estimate."""
        self._links.setdefault(way, {}).setdefault(device, _Link()).note(num_bytes, seconds)

    def expected_s(self, way: str, num_bytes: int) -> float | None:
        """How long so many bytes take to the slowest device they may go to; None before the first move."""
        links = self._links.get(way, {}).values()
        return max(
            [num_bytes * link.seconds / link.num_bytes for link in links if link.num_bytes], default=None
        )

    def bytes_per_s(self, device: str) -> Mapping[str, float]:
        """The present estimates of one device, by way."""
        return {
            way: link.num_bytes / link.seconds
            for way, links in self._links.items()
            if (link := links.get(device)) is not None and link.seconds
        }
