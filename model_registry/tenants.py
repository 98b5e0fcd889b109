"""Queries over tenants and their keys."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from model_registry.names import check_name
from model_registry.paging import WHOLE, Page, by_name, starts_with
from model_registry.records import KeyRecord, TenantRecord
from model_registry.rows import key_record, tenant_record
from model_registry.schema import KeyRow, TenantRow
from model_registry.slo_classes import slo_class_row
from model_registry.transactions import Transactions, one
from mooring.errors import ConflictError, InvalidRequestError
from mooring.policy import WEIGHTS

__all__ = [
    "ANONYMOUS_NAME",
    "KEY_PREFIX",
    "PLAYGROUND_NAME",
    "RESERVED_NAMES",
    "TenantQueries",
    "hash_key",
    "is_key",
]

ANONYMOUS_NAME = "anonymous"
PLAYGROUND_NAME = "playground"
RESERVED_NAMES = {
    ANONYMOUS_NAME: "those who need no key",
    PLAYGROUND_NAME: "what an operator tries in the playground",
}
"""Names that no registered tenant can be given, and whom they mean."""
KEY_PREFIX = "mk-"
KEY_RANDOM_BYTES = 32
KEY_FORM = re.compile(KEY_PREFIX + r"[A-Za-z0-9_-]{43}")  # the random bytes, in URL-safe base64
KEY_NAME_CHARS = 128
SHOWN_CHARS = 8
MAX_ID = 2**31 - 1
DEFAULT_WEIGHT = 1.0


def is_key(text: str) -> bool:
    """Whether a text has the form of the keys that are made here."""
    return KEY_FORM.fullmatch(text) is not None


def hash_key(key: str) -> str:
    """The form in which a key is kept: its SHA-256, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


class TenantQueries(Transactions):
    """Tenants, and the keys by which they are known."""

    def create_tenant(self, name: str, weight: float = DEFAULT_WEIGHT) -> TenantRecord:
        """Makes a tenant.

        Args:
            weight: as in ``TenantRecord``.

        Raises:
            InvalidRequestError: the name is not allowed, or one of ``RESERVED_NAMES``; or the weight is not allowed.
            ConflictError: the name is taken.
        """
        check_name(name)
        _check_weight(weight)
        if name in RESERVED_NAMES:
            raise InvalidRequestError(f"{name!r} is the name of {RESERVED_NAMES[name]}", param="name")
        with self._writing() as session:
            if session.scalar(select(TenantRow.id).where(TenantRow.name == name)) is not None:
                raise ConflictError(f"a tenant {name!r} exists already", param="name")
            row = TenantRow(name=name, weight=weight, created_at_s=self._now())
            session.add(row)
            session.flush()
            return tenant_record(row)

    def get_tenant(self, name: str) -> TenantRecord:
        """One tenant. Raises ``NotFoundError``."""
        with self._reading() as session:
            return tenant_record(_tenant(session, name))

    def list_tenants(self, page: Page = WHOLE) -> list[TenantRecord]:
        """Tenants by name."""
        query = by_name(select(TenantRow), TenantRow.name, page)
        with self._reading() as session:
            return [tenant_record(row) for row in session.scalars(query)]

    def change_tenant(self, name: str, changes: Mapping[str, Any]) -> TenantRecord:
        """Changes what is named of a tenant, all of it or nothing.

        Args:
            changes: ``slo_class``, the name of its class, or None for none; ``weight``, or None for the default;
                ``allowed_slo_classes``, the names of those that its requests may name beside it, all of them, or
                None for none.

        Raises:
            InvalidRequestError: a value is not allowed; ``param`` names it.
            NotFoundError: there is no such tenant, or no such class.
        """
        with self._writing() as session:
            row = _tenant(session, name)
            if "slo_class" in changes:
                wanted = changes["slo_class"]
                row.slo_class = None if wanted is None else slo_class_row(session, wanted)
            if "weight" in changes:
                weight = changes["weight"]
                row.weight = DEFAULT_WEIGHT if weight is None else weight
                _check_weight(row.weight)
            if "allowed_slo_classes" in changes:
                names = dict.fromkeys(changes["allowed_slo_classes"] or ())
                row.allowed_slo_classes = [slo_class_row(session, each) for each in names]
            session.flush()
            return tenant_record(row)

    def delete_tenant(self, name: str) -> None:
        """Removes a tenant with its revoked keys.

        Raises:
            NotFoundError: there is no such tenant.
            ConflictError: the tenant has keys that still work.
        """
        with self._writing() as session:
            tenant = _tenant(session, name)
            keys = KeyRow.tenant_id == tenant.id
            in_use = select(KeyRow.id).where(keys, KeyRow.revoked_at_s.is_(None)).limit(1)
            if session.scalar(in_use) is not None:
                raise ConflictError(f"tenant {name!r} has keys in use: revoke them first")
            session.execute(delete(KeyRow).where(keys))
            session.delete(tenant)

    def create_key(self, tenant: str, name: str = "") -> tuple[str, KeyRecord]:
        """Makes a key of a tenant. The key itself is returned this once and kept nowhere.

        Args:
            name: purpose of the key, in free words.

        Raises:
            InvalidRequestError: the name is too long.
            NotFoundError: there is no such tenant.
        """
        if len(name) > KEY_NAME_CHARS:
            raise InvalidRequestError(f"a key's name has at most {KEY_NAME_CHARS} characters", param="name")
        with self._writing() as session:
            owner = _tenant(session, tenant)
            key = _new_key()
            while _is_shown(session, owner, key):  # a tenant tells its keys apart by these characters
                key = _new_key()
            row = KeyRow(
                tenant=owner,
                name=name,
                prefix=key[:SHOWN_CHARS],
                key_hash=hash_key(key),
                created_at_s=self._now(),
            )
            session.add(row)
            session.flush()
            return key, key_record(row)

    def list_keys(self, tenant: str, page: Page = WHOLE) -> list[KeyRecord]:
        """The keys of a tenant, revoked ones too, oldest first.

        Args:
            page: begins after the key of an id; finds keys whose name or whose shown characters begin so.

        Raises:
            NotFoundError: there is no such tenant.
            InvalidRequestError: the page begins after what is no id.
        """
        with self._reading() as session:
            owner = _tenant(session, tenant)
            query = select(KeyRow).where(KeyRow.tenant_id == owner.id).order_by(KeyRow.id).limit(page.limit)
            if page.after is not None:
                query = query.where(KeyRow.id > _id(page.after))
            if page.search:
                found = starts_with(KeyRow.name, page.search) | starts_with(KeyRow.prefix, page.search)
                query = query.where(found)
            return [key_record(row) for row in session.scalars(query)]

    def count_valid_keys(self, tenant_ids: Sequence[int]) -> dict[int, int]:
        """Number of the keys that are not revoked of each of some tenants, by the tenant's id; those that have none
        are left out."""
        query = (
            select(KeyRow.tenant_id, func.count())
            .where(KeyRow.tenant_id.in_(tenant_ids), KeyRow.revoked_at_s.is_(None))
            .group_by(KeyRow.tenant_id)
        )
        with self._reading() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def has_valid_key(self) -> bool:
        """Whether any tenant has a key that is not revoked."""
        with self._reading() as session:
            return session.scalar(select(KeyRow.id).where(KeyRow.revoked_at_s.is_(None)).limit(1)) is not None

    def authenticate(self, key_hash: str) -> TenantRecord | None:
        """The tenant of the key with this hash (``hash_key``), or None if the key is unknown or revoked."""
        query = select(KeyRow).where(KeyRow.key_hash == key_hash, KeyRow.revoked_at_s.is_(None))
        with self._reading() as session:
            row = session.scalar(query)
            return None if row is None else tenant_record(row.tenant)

    def revoke_key(self, tenant: str, prefix: str) -> KeyRecord:
        """Ends the key of a tenant that begins with ``prefix``. A key that was revoked before keeps the time
        of that. Raises ``NotFoundError``."""
        with self._writing() as session:
            owner = _tenant(session, tenant)
            query = select(KeyRow).where(KeyRow.tenant_id == owner.id, KeyRow.prefix == prefix)
            row = one(session, query, f"key {prefix}... of tenant {tenant!r}")
            if row.revoked_at_s is None:
                row.revoked_at_s = self._now()
            session.flush()
            return key_record(row)


def _tenant(session: Session, name: str) -> TenantRow:
    return one(session, select(TenantRow).where(TenantRow.name == name), f"tenant {name!r}")


def _is_shown(session: Session, owner: TenantRow, key: str) -> bool:
    """Whether a key of the tenant begins as this one."""
    same = select(KeyRow.id).where(KeyRow.tenant_id == owner.id, KeyRow.prefix == key[:SHOWN_CHARS])
    return session.scalar(same) is not None


def _id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_ID):
        raise InvalidRequestError("a page of keys begins after the id of one", param="after")
    return int(text)


def _check_weight(weight: object) -> None:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not WEIGHTS.holds(weight):
        raise InvalidRequestError(f"weight must be a number, {WEIGHTS}", param="weight")


def _new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(KEY_RANDOM_BYTES)
