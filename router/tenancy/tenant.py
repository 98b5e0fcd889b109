"""The party that a request is served for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from model_registry.tenants import ANONYMOUS_NAME, PLAYGROUND_NAME, RESERVED_NAMES
from mooring.errors import PermissionDeniedError
from mooring.slo import BEST_EFFORT, OWN_CLASS, SLOClass

__all__ = [
    "ANONYMOUS",
    "PLAYGROUND",
    "SLO_CLASS_HEADER",
    "TENANT_HEADER",
    "KnownTenant",
    "Tenant",
    "tenant_from",
]

SLO_CLASS_HEADER = "x-mooring-slo-class"
"""The header of HTTP, and the metadata of gRPC, by which a request names a class."""

TENANT_HEADER = "x-mooring-tenant"
"""The header by which the operator's request to the playground names a tenant."""


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

    @property
    def allowed_slo_classes(self) -> tuple[SLOClass, ...]: ...


@dataclass(frozen=True, slots=True)
class Tenant:
    """The party that a request is served for.

    Attributes:
        name: its name in metrics and logs.
        scope: tells it from every other tenant there ever was, one of the same name too.
        slo_class: what its requests are promised; None if nothing. It may change while others of its requests run,
            and the tenant stays the same.
        weight: its share of a device among tenants of one priority, relative to theirs; it may change likewise.
        allowed_slo_classes: classes that a request may name beside that one; they may change likewise.
        given_up: its own class, for a request that is to be served as best can be instead; None for any other.
    """

    name: str
    scope: bytes
    slo_class: SLOClass | None = field(default=None, compare=False)
    weight: float = field(default=1.0, compare=False)
    allowed_slo_classes: tuple[SLOClass, ...] = field(default=(), compare=False)
    given_up: SLOClass | None = field(default=None, compare=False)

    def in_class(self, name: str | None, *, param: str) -> Tenant:
        """The tenant as the party of a request that names a class.

        Args:
            name: a class; best effort; ``OWN_CLASS``, nothing or None for the tenant's own.
            param: the door's name for the field.

        Raises:
            PermissionDeniedError: the tenant may not use it; an unknown one looks the same.
        """
        own = self.slo_class
        if not name or name in OWN_CLASS or (own is not None and name == own.name):
            return self
        if name == BEST_EFFORT:
            return replace(self, slo_class=None, given_up=own)
        for each in self.allowed_slo_classes:
            if each.name == name:
                return replace(self, slo_class=each)
        usable = dict.fromkeys(each.name for each in (*([own] if own else ()), *self.allowed_slo_classes))
        names = ", ".join(f"'{each}'" for each in (*usable, BEST_EFFORT))
        raise PermissionDeniedError(
            f"Your requests may use the SLO classes {names}, and not '{name}'.", param=param
        )


ANONYMOUS = Tenant(ANONYMOUS_NAME, b"anonymous")
PLAYGROUND = Tenant(PLAYGROUND_NAME, b"playground")
"""The tenant of what an operator tries: it has no key, no class and no row in the registry."""


def tenant_from(known: KnownTenant) -> Tenant:
    """A registered tenant.

    Its scope is made from its row: a tenant made again under an old name has another id or, since a database
    may give a free id again, another time. A tenant that an older version let somebody give one of the
    reserved names keeps working; here it bears a name that no tenant can be given.
    """
    name = f"{known.name} (registered)" if known.name in RESERVED_NAMES else known.name
    return Tenant(
        name,
        f"{known.id} {known.created_at_s!r}".encode(),
        known.slo_class,
        known.weight,
        known.allowed_slo_classes,
    )
