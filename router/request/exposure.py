"""The reach of the doors: who can send them requests, and what they believe of those."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Exposure"]


@dataclass(frozen=True, slots=True)
class Exposure:
    """The reach of a server's doors, as its settings make it.

    Attributes:
        allow_anonymous: whether inference needs no key.
        is_public: whether others than this machine's users reach the doors, or keys are wanted for another
            reason. Metrics then need a key, and the doors do not describe themselves to strangers.
        behind_proxy: whether a reverse proxy passes all requests on. Only then are forwarded headers believed.
        checks_hosts: whether the HTTP door serves only requests for the names that it knows: loopback names
            and ``allowed_hosts``.
        allowed_hosts: further names, in lower case and without ports.
    """

    allow_anonymous: bool = True
    is_public: bool = False
    behind_proxy: bool = False
    checks_hosts: bool = True
    allowed_hosts: frozenset[str] = frozenset()
