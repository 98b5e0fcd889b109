"""The worker's leases, as its arena keeps to them: what it may hold of its device's memory."""

from __future__ import annotations

import threading

from memory_manager.arena.protocol import Arena

__all__ = ["LeasedMemory"]


class LeasedMemory:
    """Holds the arena to the worker's leases: the weights of its replicas and its KV. Any thread may call it.

    What is leased may be committed at once. What is no longer leased stays ready until ``settle``, because giving
    pages back to the system takes its time, which the step thread has none to spare for.

    Args:
        arena: until the first ``allow`` it may hold as much as its present limit, or the leases if they are more.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._lock = threading.Lock()
        self._allowed_bytes = arena.limit_bytes
        self._kv_bytes = 0
        self._weights_bytes: dict[str, int] = {}

    @property
    def leased_bytes(self) -> int:
        return self._kv_bytes + sum(self._weights_bytes.values())

    def lease_weights(self, replica_id: str, num_bytes: int) -> None:
        """Takes in the lease of a replica's weights; absolute, 0 ends it."""
        with self._lock:
            self._weights_bytes[replica_id] = num_bytes
            if not num_bytes:
                del self._weights_bytes[replica_id]
            self._raise_limit()

    def lease_kv(self, num_bytes: int) -> None:
        """Takes in the lease of the KV; absolute."""
        with self._lock:
            self._kv_bytes = num_bytes
            self._raise_limit()

    def allow(self, num_bytes: int) -> int:
        """Lets the arena hold so much in all even if less is leased; absolute. Returns the bytes that left."""
        with self._lock:
            self._allowed_bytes = num_bytes
        return self.settle()

    def settle(self) -> int:
        """Gives back what is ready beyond what the arena may hold; returns the bytes."""
        with self._lock:
            return self._arena.set_limit(max(self._allowed_bytes, self.leased_bytes))

    def _raise_limit(self) -> None:
        if self.leased_bytes > self._arena.limit_bytes:
            self._arena.set_limit(self.leased_bytes)
