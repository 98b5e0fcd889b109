"""Bounds on what each tenant, and all together, have in flight: bytes of bodies, requests, choices."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from mooring.errors import MooringError, OverloadedError, RateLimitError
from mooring.units import format_bytes
from router.request.bounds import RouterConfig
from router.tenancy.tenant import Tenant

__all__ = ["Held", "InFlight"]

_RETRY_AFTER_S = 1.0


class InFlight:
    """Counts what is in flight and refuses what would be too much. Belongs to one event loop.

    Args:
        config: the bounds.
    """

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._bytes: Counter[Tenant] = Counter()
        self._requests: Counter[Tenant] = Counter()
        self._choices: Counter[Tenant] = Counter()
        self._total_bytes = 0

    @property
    def body_bytes(self) -> int:
        """Bytes of bodies in flight, of all tenants."""
        return self._total_bytes

    def take(self, tenant: Tenant, *, body_bytes: int = 0, requests: int = 0, choices: int = 0) -> Held:
        """Takes amounts for a tenant until the caller releases them.

        Raises:
            RateLimitError: the tenant has too much in flight; the message names the setting.
            OverloadedError: all tenants together have too many bytes in flight.
        """
        held = Held(self, tenant)
        held.add(body_bytes=body_bytes, requests=requests, choices=choices)
        return held

    def change(self, tenant: Tenant, body_bytes: int, requests: int, choices: int) -> None:
        """Adds to what is in flight, or takes away from it; only ``Held`` calls it.

        Raises:
            MooringError: as ``take``; nothing has changed then.
        """
        if max(body_bytes, requests, choices) > 0:
            self._check(tenant, body_bytes, requests, choices)
        for counts, amount in (
            (self._bytes, body_bytes),
            (self._requests, requests),
            (self._choices, choices),
        ):
            counts[tenant] += amount
            if not counts[tenant]:
                del counts[tenant]
        self._total_bytes += body_bytes

    def _check(self, tenant: Tenant, body_bytes: int, requests: int, choices: int) -> None:
        config = self._config
        if self._bytes[tenant] + body_bytes > config.max_tenant_body_bytes:
            most = format_bytes(config.max_tenant_body_bytes)
            raise _too_much(f"{most} of bodies", "max_tenant_body_bytes")
        if self._requests[tenant] + requests > config.max_tenant_requests:
            raise _too_much(f"{config.max_tenant_requests} requests", "max_tenant_requests")
        if self._choices[tenant] + choices > config.max_tenant_choices:
            raise _too_much(f"{config.max_tenant_choices} choices", "max_tenant_choices")
        if self._total_bytes + body_bytes > config.max_total_body_bytes:
            raise OverloadedError(
                "The server is reading as many bytes as it may at a time (max_total_body_bytes): try again.",
                retry_after_s=_RETRY_AFTER_S,
            )


class Held:
    """Amounts that a tenant has in flight; a context manager that releases them."""

    def __init__(self, in_flight: InFlight, tenant: Tenant) -> None:
        self._in_flight = in_flight
        self._tenant = tenant
        self._amounts = (0, 0, 0)

    def add(self, *, body_bytes: int = 0, requests: int = 0, choices: int = 0) -> None:
        """Takes more.

        Raises:
            MooringError: as ``InFlight.take``; what was held before is still held.
        """
        self._in_flight.change(self._tenant, body_bytes, requests, choices)
        held_bytes, held_requests, held_choices = self._amounts
        self._amounts = (held_bytes + body_bytes, held_requests + requests, held_choices + choices)

    def release(self) -> None:
        """Gives everything back. Safe to call more than once."""
        held_bytes, held_requests, held_choices = self._amounts
        self._amounts = (0, 0, 0)
        self._in_flight.change(self._tenant, -held_bytes, -held_requests, -held_choices)

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _too_much(most: str, setting: str) -> MooringError:
    return RateLimitError(
        f"A tenant may have at most {most} in flight ({setting}): wait until some have ended.",
        code=f"{setting.removeprefix('max_')}_in_flight",
        retry_after_s=_RETRY_AFTER_S,
    )
