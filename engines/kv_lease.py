"""The KV lease of a worker, of any engine."""

from __future__ import annotations

from memory_manager.ports import LeaseStatus

__all__ = ["KVLease"]


class KVLease:
    """The bytes and the revision in force: absolute, revisioned, idempotent.

    Attributes:
        num_bytes: KV bytes that may be committed; 0 until the first grant.
        revision: revision of that grant; 0 until the first grant, which has 1 or more.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self.revision = 0

    def accept(self, num_bytes: int, revision: int) -> LeaseStatus | None:
        """Takes a grant. Returns None if the grant is in force now (even if it was already): the caller then
        carries it out. Otherwise returns why nothing changed."""
        if revision < self.revision:
            return LeaseStatus.STALE
        if revision == self.revision and num_bytes != self.num_bytes:
            return LeaseStatus.CONFLICT
        self.num_bytes, self.revision = num_bytes, revision
        return None
