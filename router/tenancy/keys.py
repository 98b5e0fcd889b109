"""Finds the tenant of an API key, the same way for every door."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from model_registry.tenants import KEY_PREFIX, hash_key, is_key
from mooring.errors import AuthenticationError
from router.request.bounds import RouterConfig
from router.request.single_flight import SingleFlightCache
from router.tenancy.tenant import ANONYMOUS, KnownTenant, Tenant, tenant_from

__all__ = ["Tenancy", "api_key_of", "check_admin_key"]

_THREADS = 2


class Tenancy:
    """Checks keys, and remembers the answers for a few seconds.

    A text without the form of a key is never looked up, nor kept. Keys are looked up by their hash, in threads of
    their own, so that neither unknown keys nor a slow registry take the threads that other work needs. Keys that
    were good before have a cache and threads apart, so that whoever sends made-up ones stands in nobody's way.

    Args:
        authenticate: the registry's look-up of a key by its hash; blocking, and None for an unknown key.
        allow_anonymous: whether inference needs no key. A key that Mooring did not make then counts as none,
            since OpenAI's clients always send one; one of ours that was revoked is still refused.
        config: how long answers are remembered.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        authenticate: Callable[[str], KnownTenant | None],
        *,
        allow_anonymous: bool,
        config: RouterConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allow_anonymous = allow_anonymous

        def cache(max_loading: int | None, good_key_s: float) -> SingleFlightCache[str, KnownTenant | None]:
            return SingleFlightCache(
                authenticate,
                max_entries=config.key_cache_entries,
                max_loading=max_loading,
                executor=ThreadPoolExecutor(_THREADS, thread_name_prefix="keys"),
                ttl_s=lambda record: config.unknown_key_cache_s if record is None else good_key_s,
                clock=clock,
            )

        # A known key is one that is in here, however old: there are no more of them than are remembered.
        self._of_known = cache(None, config.key_cache_s)
        self._of_others = cache(config.max_key_checks, 0.0)  # a good one is known from then on

    async def tenant_of(self, api_key: str | None) -> Tenant:
        """The tenant whose key was sent.

        Raises:
            AuthenticationError: a key is needed and there is none, or the key is unknown.
            OverloadedError: too many keys are being looked up.
        """
        record = await self._look_up(hash_key(api_key)) if api_key and is_key(api_key) else None
        if record is not None:
            return tenant_from(record)
        if self._allow_anonymous and not (api_key or "").startswith(KEY_PREFIX):
            return ANONYMOUS
        if not api_key:
            raise AuthenticationError(
                "You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'."
            )
        raise AuthenticationError("Incorrect API key provided. Ask the operator of this server for one.")

    async def _look_up(self, key_hash: str) -> KnownTenant | None:
        if key_hash in self._of_known:
            record = await self._of_known.get(key_hash)
            if record is None:
                self._of_known.discard(key_hash)
            return record
        record = await self._of_others.get(key_hash)
        if record is not None:
            self._of_known.put(key_hash, record)
        return record


def api_key_of(headers: Mapping[str, str]) -> str | None:
    """The key in HTTP headers or gRPC metadata (names in lower case), or None."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return headers.get("x-api-key") or None


def check_admin_key(api_key: str | None, admin_key: str) -> None:
    """Checks that the key that was sent is the admin key.

    Raises:
        AuthenticationError: it is another key, or none.
    """
    if not hmac.compare_digest((api_key or "").encode(), admin_key.encode()):
        raise AuthenticationError("This needs the admin key: 'Authorization: Bearer KEY'.")
