"""The party that a request is served for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from model_registry.tenants import ANONYMOUS_NAME
from mooring.slo import SLOClass

__all__ = ["ANONYMOUS", "KnownTenant", "Tenant", "tenant_from"]


class KnownTenant(Protocol):
    """A tenant as the registry knows it."""

    @property
    def id(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def created_at_s(self) -> float: ...

    @property
    def slo_class(self) -> SLOClass | None: ...

    @property
    def weight(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Tenant:
    """The party that a request is served for.

    Attributes:
        name: its name in metrics and logs.
        scope: tells it from every other tenant there ever was, one of the same name too.
        slo_class: what its requests are promised; None if nothing. It may change while others of its requests run,
            and the tenant stays the same.
        weight: its share of a device among tenants of one priority, relative to theirs; it may change likewise.
    """

    name: str
    scope: bytes
    slo_class: SLOClass | None = field(default=None, compare=False)
    weight: float = field(default=1.0, compare=False)


ANONYMOUS = Tenant(ANONYMOUS_NAME, b"anonymous")


def tenant_from(known: KnownTenant) -> Tenant:
    """A registered tenant.

    Its scope is made from its row: a tenant made again under an old name has another id or, since a database
    may give a free id again, another time. A tenant that an older version let somebody call ``anonymous``
    keeps working; here it bears a name that no tenant can be given.
    """
    name = f"{known.name} (registered)" if known.name == ANONYMOUS_NAME else known.name
    return Tenant(name, f"{known.id} {known.created_at_s!r}".encode(), known.slo_class, known.weight)
