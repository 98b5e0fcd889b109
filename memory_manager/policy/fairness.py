"""How much service each tenant of a device has had: virtual token counters, in device-seconds.

Fair sharing by counters that are lifted when a tenant comes back is the Virtual Token Counter's (Sheng et al.,
*Fairness in Serving Large Language Models*, OSDI 2024). Here a counter is of all models of a device together, counts
seconds of it instead of tokens, and is divided by the tenant's weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

__all__ = ["ServiceCounters", "jain_index"]

_CREDIT_S = 5.0


class ServiceCounters:
    """The service of each tenant of one device, in seconds of the device for each unit of its weight.

    A tenant is backlogged while requests of it wait. One that becomes so is lifted to 5 s below the least of those
    that are: its absence gives it a claim on the others that is enough for a burst, and no more. Nobody else is ever
    lifted, so between two tenants that stay backlogged the difference of service grows by no more than what was given
    out before it was counted (docs/scheduling.md states the bound).
    """

    def __init__(self) -> None:
        self._service_s: dict[str, float] = {}
        self._num_waiting: Counter[str] = Counter()
        self._last_s = 0.0  # the most of the tenants that left nobody backlogged

    def of(self, tenant: str) -> float:
        """Seconds of service for each unit of the tenant's weight."""
        return self._service_s.get(tenant, 0.0)

    def arrive(self, tenant: str) -> None:
        """Notes that one more request of a tenant waits."""
        if not self._num_waiting[tenant]:
            least_s = min((self.of(each) for each in self._num_waiting), default=self._last_s)
            self._service_s[tenant] = max(self.of(tenant), least_s - _CREDIT_S)
        self._num_waiting[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Notes that one request fewer of a tenant waits."""
        self._num_waiting[tenant] -= 1
        if not self._num_waiting[tenant]:
            del self._num_waiting[tenant]
            if not self._num_waiting:
                self._last_s = max(self._last_s, self.of(tenant))

    def charge(self, tenant: str, seconds: float, weight: float) -> None:
        """Adds seconds of the device that a tenant's request took, or is about to take."""
        self._service_s[tenant] = self.of(tenant) + seconds / weight

    def services_s(self) -> dict[str, float]:
        """Returns the service of every tenant that was ever served, by its name."""
        return dict(self._service_s)


def jain_index(shares: Iterable[float]) -> float:
    """Jain's index of fairness: 1 if all that have anything have the same, 1 / N if one of N has nearly all (Jain,
    Chiu and Hawe, 1984)."""
    values = [each for each in shares if each > 0]
    if not values:
        return 1.0
    return sum(values) ** 2 / (len(values) * sum(each**2 for each in values))
