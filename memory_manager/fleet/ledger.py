"""The bytes of a device, and who was promised them.

A lease is raised before the bytes are used and lowered only after whoever held them has said that they
are free, so the sum of leases is an upper bound of what is really in use, at every moment.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from memory_manager.kv_spec import PAGE_BYTES, round_to_pages
from mooring.errors import InternalError

__all__ = ["Ledger", "Owner", "OwnerKind"]

OwnerKind = Literal["reserve", "weights", "kv", "others"]


class Owner(NamedTuple):
    """The holder of a lease: a replica's weights, a worker's KV, the reserve, other processes."""

    kind: OwnerKind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


class Ledger:
    """The leases on one device. Every lease is whole pages; their sum never exceeds the budget.

    Args:
        device: its name.
        budget_bytes: rounded down to pages.
    """

    def __init__(self, device: str, budget_bytes: int) -> None:
        self.device = device
        self.budget_bytes = budget_bytes // PAGE_BYTES * PAGE_BYTES
        self._leases: dict[Owner, int] = {}
        self._leased_bytes = 0
        self._claim_bytes = 0

    @property
    def leased_bytes(self) -> int:
        return self._leased_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes that can be granted: nothing of what other processes claim."""
        return max(0, self.budget_bytes - self._leased_bytes - self._claim_bytes)

    @property
    def others_bytes(self) -> int:
        """Bytes that are to be left to other processes. ``owners`` shows how much of it they have: the rest is
        leased to us still, and theirs as soon as it is given back."""
        return self._claim_bytes

    def set_others(self, num_bytes: int) -> None:
        """Sets the claim of other processes, rounded up to pages, at most the budget; absolute."""
        self._claim_bytes = min(round_to_pages(max(0, num_bytes)), self.budget_bytes)

    def lease_bytes(self, owner: Owner) -> int:
        """Bytes that the owner was promised; 0 for one that holds nothing."""
        return self._leases.get(owner, 0)

    def owners(self) -> dict[Owner, int]:
        """A copy of all leases, and what other processes have of their claim."""
        others_bytes = min(self._claim_bytes, self.budget_bytes - self._leased_bytes)
        return {**self._leases, Owner("others"): others_bytes} if others_bytes else dict(self._leases)

    def bytes_of(self, *kinds: OwnerKind) -> int:
        """Sum of the leases of these kinds."""
        return sum(num_bytes for owner, num_bytes in self._leases.items() if owner.kind in kinds)

    def grant(self, owner: Owner, num_bytes: int) -> bool:
        """Adds ``num_bytes``, rounded up to pages, to the owner's lease; False if there is no room."""
        if num_bytes < 0:
            raise InternalError(f"grant of {num_bytes} bytes to {owner}")
        added = round_to_pages(num_bytes)
        if added > self.free_bytes:
            return False
        self._set(owner, self.lease_bytes(owner) + added)
        return True

    def shrink(self, owner: Owner, to_bytes: int) -> None:
        """Lowers the owner's lease to ``to_bytes``, rounded up to pages; a lower lease stays as it is."""
        if to_bytes < 0:
            raise InternalError(f"shrink of {owner} to {to_bytes} bytes")
        self._set(owner, min(self.lease_bytes(owner), round_to_pages(to_bytes)))

    def release(self, owner: Owner) -> int:
        """Ends the owner's lease; returns what it was."""
        released = self.lease_bytes(owner)
        self._set(owner, 0)
        return released

    def _set(self, owner: Owner, num_bytes: int) -> None:
        self._leased_bytes += num_bytes - self.lease_bytes(owner)
        if num_bytes:
            self._leases[owner] = num_bytes
        else:
            self._leases.pop(owner, None)
        if not 0 <= self._leased_bytes <= self.budget_bytes:
            raise InternalError(f"ledger of {self.device}: {self._leased_bytes} of {self.budget_bytes} bytes")

    def check(self) -> None:
        """Recounts.

        Raises:
            InternalError: the leases do not add up, or exceed the budget.
        """
        total = sum(self._leases.values())
        broken = [str(owner) for owner, held in self._leases.items() if held <= 0 or held % PAGE_BYTES]
        if total != self._leased_bytes or total > self.budget_bytes or broken:
            raise InternalError(
                f"ledger of {self.device}: leases sum to {total}, counted {self._leased_bytes}, "
                f"budget {self.budget_bytes}, broken leases {broken}"
            )
