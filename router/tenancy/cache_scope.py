"""Decides which requests may share computed KV."""

from __future__ import annotations

import hashlib

from router.tenancy.tenant import Tenant

__all__ = ["cache_scope"]


def cache_scope(policy: str, tenant: Tenant, salt: str | None) -> bytes | None:
    """The scope of a request: requests of one scope, and no others, find each other's computed KV.

    Args:
        policy: the deployment's ``prefix_cache``: ``tenant``, ``shared`` or ``off``.
        tenant: the tenant of the request; without influence if tenants share.
        salt: the caller's own salt; requests with other salts are in other scopes.

    Returns:
        32 bytes that tell nothing of the tenant or the salt; None if nothing is shared.
    """
    if policy == "off":
        return None
    digest = hashlib.sha256()
    encoded_salt = (salt or "").encode("utf-8", "surrogatepass")
    for part in (policy.encode(), b"" if policy == "shared" else tenant.scope, encoded_salt):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
