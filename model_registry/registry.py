"""The registry: models, versions, variants, deployments, tenants, keys, SLO classes and events, as plain records."""

from __future__ import annotations

from model_registry.catalog import CatalogQueries
from model_registry.events import EventQueries
from model_registry.slo_classes import SLOClassQueries
from model_registry.tenants import TenantQueries

__all__ = ["Registry"]


class Registry(CatalogQueries, TenantQueries, SLOClassQueries, EventQueries):
    """All queries over one database.

    Every method is one transaction, safe from any thread, and blocks: an event loop calls it on a thread.
    When a method returns, its changes are committed to the disk. Any method raises ``ConflictError`` if
    another writer changed the same thing at the same moment.
    """
