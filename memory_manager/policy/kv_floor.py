"""The least KV that a worker must be left with, so that whatever it has admitted can be finished."""

from __future__ import annotations

import bisect
from collections.abc import Collection
from typing import Protocol

__all__ = ["KVFloor", "NeedsKV"]


class NeedsKV(Protocol):
    """Whatever KV is kept for: a replica, or a deployment that has none yet."""

    @property
    def kv_guarantee_bytes(self) -> int: ...

    @property
    def kv_longest_bytes(self) -> int: ...


class KVFloor:
    """The least KV of one worker, as replicas come and go.

    What an operator guarantees to a model is that model's alone. One sequence of full length is kept for all models
    of a worker together: their sequences can take from each other, and the first of them always does, so that they
    end one after the other. A model needs of it what its own guarantee does not cover.

    Args:
        base_bytes: that the worker needs without any replica.
        is_elastic: whether replicas share the worker's KV. Otherwise each has its own from its load on and nobody can
            take any of it, so that each must have a whole sequence.
    """

    def __init__(self, base_bytes: int, *, is_elastic: bool) -> None:
        self._is_elastic = is_elastic
        self._parts_of: dict[str, tuple[int, int]] = {}  # of each replica
        self._own_bytes = base_bytes
        self._shared: list[tuple[int, str]] = []  # what each needs beside its own, in ascending order

    @property
    def num_bytes(self) -> int:
        return self._own_bytes + self._longest_bytes()

    @property
    def num_replicas(self) -> int:
        return len(self._parts_of)

    def add(self, replica_id: str, replica: NeedsKV) -> None:
        """Counts a replica that is not there yet."""
        own_bytes, shared_bytes = self._parts_of[replica_id] = self._parts(replica)
        self._own_bytes += own_bytes
        bisect.insort(self._shared, (shared_bytes, replica_id))

    def remove(self, replica_id: str) -> None:
        """Takes a replica out; nothing happens if it is not there."""
        if replica_id in self._parts_of:
            own_bytes, shared_bytes = self._parts_of.pop(replica_id)
            self._own_bytes -= own_bytes
            self._shared.remove((shared_bytes, replica_id))

    def bytes_if(self, leaving: Collection[str] = (), coming: NeedsKV | None = None) -> int:
        """Its bytes without some of the replicas and with another.

        Args:
            leaving: ids; those that are not there count nothing.
        """
        own_bytes, longest_bytes = self._own_bytes, self._longest_bytes(leaving)
        for replica_id in leaving:
            if replica_id in self._parts_of:
                own_bytes -= self._parts_of[replica_id][0]
        if coming is not None:
            coming_bytes, shared_bytes = self._parts(coming)
            own_bytes += coming_bytes
            longest_bytes = max(longest_bytes, shared_bytes)
        return own_bytes + longest_bytes

    def growth_bytes(self, coming: NeedsKV) -> int:
        """By how much it would grow with another replica."""
        own_bytes, shared_bytes = self._parts(coming)
        return own_bytes + max(0, shared_bytes - self._longest_bytes())

    def _longest_bytes(self, leaving: Collection[str] = ()) -> int:
        """The longest of the sequences that share, without some of the replicas."""
        if not leaving:
            return self._shared[-1][0] if self._shared else 0
        return next((size for size, replica_id in reversed(self._shared) if replica_id not in leaving), 0)

    def _parts(self, replica: NeedsKV) -> tuple[int, int]:
        """Bytes that are a replica's alone, and those of its longest sequence that others may use as well."""
        own_bytes, whole_bytes = replica.kv_guarantee_bytes, replica.kv_longest_bytes
        if self._is_elastic:
            return own_bytes, max(0, whole_bytes - own_bytes)
        return max(own_bytes, whole_bytes), 0
