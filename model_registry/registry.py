"""The registry: models, versions, variants, deployments, tenants, keys and events, as plain records."""

from __future__ import annotations

from model_registry.catalog import CatalogQueries
from model_registry.events import EventQueries
from model_registry.tenants import TenantQueries

__all__ = ["Registry"]


class Registry(CatalogQueries, TenantQueries, EventQueries):
    """All queries over one database.

    Every method is one transaction, safe from any thread, and blocks: an event loop calls it on a thread.
    What a method has returned is committed to the disk. Any of them raises ``ConflictError`` where another
    writer changed the same thing at the same moment.
    """
