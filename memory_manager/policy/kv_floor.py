"""The least KV that a worker must be left with, so that whatever it has admitted can be finished."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol

__all__ = ["KVFloor", "NeedsKV", "kv_floor_bytes"]


class NeedsKV(Protocol):
    """Whatever KV is kept for: a replica, or a deployment that has none yet."""

    @property
    def kv_guarantee_bytes(self) -> int: ...

    @property
    def kv_longest_bytes(self) -> int: ...


def kv_floor_bytes(replicas: Iterable[NeedsKV], *, is_elastic: bool) -> int:
    """The least KV of a worker with these replicas, in bytes.

    What an operator guarantees to a model is that model's alone. One sequence of full length is kept for all models
    of a worker together: their sequences can take from each other, and the first of them always does, so that they
    end one after the other. A model needs of it what its own guarantee does not cover.

    Args:
        is_elastic: whether replicas share the worker's KV. Otherwise each has its own from its load on and nobody can
            take any of it, so that each must have a whole sequence.
    """
    own_bytes = longest_bytes = 0
    for each in replicas:
        if is_elastic:
            own_bytes += each.kv_guarantee_bytes
            longest_bytes = max(longest_bytes, each.kv_longest_bytes - each.kv_guarantee_bytes)
        else:
            own_bytes += max(each.kv_guarantee_bytes, each.kv_longest_bytes)
    return own_bytes + longest_bytes


class KVFloor:
    """The least KV of one worker, as replicas come and go.

    Args:
        base_bytes: that the worker needs without any replica.
        is_elastic: as in ``kv_floor_bytes``.
    """

    def __init__(self, base_bytes: int, *, is_elastic: bool) -> None:
        self._base_bytes = base_bytes
        self._is_elastic = is_elastic
        self._replicas: dict[str, NeedsKV] = {}
        self._num_bytes = base_bytes

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    @property
    def num_replicas(self) -> int:
        return len(self._replicas)

    def add(self, replica_id: str, replica: NeedsKV) -> None:
        self._replicas[replica_id] = replica
        self._num_bytes = self.bytes_if()

    def remove(self, replica_id: str) -> None:
        """Takes a replica out; nothing happens if it is not there."""
        self._replicas.pop(replica_id, None)
        self._num_bytes = self.bytes_if()

    def bytes_if(self, leaving: Collection[str] = (), coming: NeedsKV | None = None) -> int:
        """Its bytes without some of the replicas and with another."""
        there = [each for replica_id, each in self._replicas.items() if replica_id not in leaving]
        there += [] if coming is None else [coming]
        return self._base_bytes + kv_floor_bytes(there, is_elastic=self._is_elastic)

    def growth_bytes(self, coming: NeedsKV) -> int:
        """By how much it would grow with another replica."""
        return self.bytes_if(coming=coming) - self._num_bytes
