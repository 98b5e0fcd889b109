"""The registry's tables, in SQL that both SQLite and PostgreSQL take.

::

    models 1─n versions 1─n variants 1─n deployments        slo_classes 1─n tenants 1─n api_keys        events
                                                                     n─n

Times are seconds of the Unix epoch, sizes are bytes. A row that another row points to cannot be deleted: the
database itself refuses, so that no race between two administrators leaves a deployment without its files.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedColumn, mapped_column, relationship

from mooring.declared import Declared, declared
from mooring.policy import DeploymentPolicy

__all__ = [
    "Base",
    "DeploymentRow",
    "EventRow",
    "KeyRow",
    "ModelRow",
    "SLOClassRow",
    "TenantRow",
    "VariantRow",
    "VersionRow",
]

NAME_CHARS = 128
DIGEST_CHARS = 64


class Base(DeclarativeBase):
    """Base of all tables. Constraints are named, so that migrations can name them on every database."""

    type_annotation_map: ClassVar = {float: Double}
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ModelRow(Base):
    """A registered name. ``last_number`` only grows, so the number of a deleted version never comes back with
    other bytes behind it."""

    __tablename__ = "models"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_CHARS), unique=True)
    last_number: Mapped[int]
    created_at_s: Mapped[float]

    versions: Mapped[list[VersionRow]] = relationship(
        back_populates="model", order_by="VersionRow.number", passive_deletes="all"
    )


class VersionRow(Base):
    """An immutable artifact of a model, in the store under ``digest``. A row is written once."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("model_id", "number"), UniqueConstraint("model_id", "digest"))

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id", ondelete="RESTRICT"))
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(String(DIGEST_CHARS), index=True)
    source: Mapped[str] = mapped_column(Text)
    license: Mapped[str | None] = mapped_column(String(NAME_CHARS))
    architecture: Mapped[str] = mapped_column(String(NAME_CHARS))
    description: Mapped[dict[str, Any]] = mapped_column(JSON)
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at_s: Mapped[float]

    model: Mapped[ModelRow] = relationship(back_populates="versions", lazy="joined")


class VariantRow(Base):
    """One precision of a version; the packed columns are filled in when the variant is first packed."""

    __tablename__ = "variants"
    __table_args__ = (UniqueConstraint("version_id", "precision"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id", ondelete="RESTRICT"))
    precision: Mapped[str] = mapped_column(String(32))
    packed_key: Mapped[str | None] = mapped_column(String(2 * NAME_CHARS))
    packed_bytes: Mapped[int | None] = mapped_column(BigInteger)

    version: Mapped[VersionRow] = relationship(lazy="joined")


class DeploymentRow(Base):
    """A variant, the engine that runs it, and a column for each field of its policy (``DeploymentPolicy``)."""

    __tablename__ = "deployments"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_CHARS), unique=True)
    variant_id: Mapped[int] = mapped_column(ForeignKey("variants.id", ondelete="RESTRICT"), index=True)
    engine: Mapped[str] = mapped_column(String(32))
    created_at_s: Mapped[float]
    updated_at_s: Mapped[float]

    variant: Mapped[VariantRow] = relationship(lazy="joined")


def _policy_column(field: Declared) -> MappedColumn[Any]:
    types: dict[Any, Any] = {bool: Boolean, int: BigInteger if field.is_size else Integer, float: Double}
    return mapped_column(types.get(field.value_kind, String(16)), nullable=field.is_optional)


for _name, _field in declared(DeploymentPolicy).items():
    setattr(DeploymentRow, _name, _policy_column(_field))


ALLOWED_CLASSES = Table(
    "tenant_slo_classes",
    Base.metadata,
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    Column("slo_class_id", ForeignKey("slo_classes.id", ondelete="RESTRICT"), primary_key=True, index=True),
)
"""The classes that a tenant's requests may name beside its own."""


class SLOClassRow(Base):
    """A promise to tenants' requests: a column for each field of ``SLOClass``."""

    __tablename__ = "slo_classes"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_CHARS), unique=True)
    ttft_target_s: Mapped[float]
    tpot_target_s: Mapped[float]
    goal: Mapped[float]
    priority: Mapped[int]
    on_miss: Mapped[str] = mapped_column(String(16))

    tenants: Mapped[list[TenantRow]] = relationship(
        back_populates="slo_class", order_by="TenantRow.name", passive_deletes="all"
    )
    allowed_tenants: Mapped[list[TenantRow]] = relationship(
        secondary=ALLOWED_CLASSES, order_by="TenantRow.name", viewonly=True
    )


class TenantRow(Base):
    """A party that is served."""

    __tablename__ = "tenants"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_CHARS), unique=True)
    # Without ON DELETE, which forbids as RESTRICT does: of a column that was added later SQLite tells no such clause.
    slo_class_id: Mapped[int | None] = mapped_column(ForeignKey("slo_classes.id"), index=True)
    weight: Mapped[float]
    created_at_s: Mapped[float]

    slo_class: Mapped[SLOClassRow | None] = relationship(back_populates="tenants", lazy="joined")
    allowed_slo_classes: Mapped[list[SLOClassRow]] = relationship(
        secondary=ALLOWED_CLASSES, order_by="SLOClassRow.name", lazy="selectin"
    )


class KeyRow(Base):
    """A tenant's key. The key itself is never kept, only its SHA-256: a key has 256 random bits, so a slow
    password hash would add nothing but time to every request."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("tenant_id", "prefix"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="RESTRICT"))
    name: Mapped[str] = mapped_column(String(NAME_CHARS))
    prefix: Mapped[str] = mapped_column(String(8))
    key_hash: Mapped[str] = mapped_column(String(DIGEST_CHARS), unique=True)
    created_at_s: Mapped[float]
    revoked_at_s: Mapped[float | None]

    tenant: Mapped[TenantRow] = relationship(lazy="joined")


class EventRow(Base):
    """A decision of the memory manager (``records.EventRecord``). The deployments that it names may be gone
    by the time it is read, so no column refers to another table."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_deployment_id", "deployment", "id"),
        Index("ix_events_kind_id", "kind", "id"),
    )

    # SQLite numbers rows by itself only if the key is an INTEGER.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    at_s: Mapped[float]
    kind: Mapped[str] = mapped_column(String(32))
    deployment: Mapped[str | None] = mapped_column(String(NAME_CHARS))
    replica_id: Mapped[str | None] = mapped_column(String(160))
    worker_id: Mapped[str | None] = mapped_column(String(NAME_CHARS))
    device: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str] = mapped_column(Text)
    figures: Mapped[dict[str, Any]] = mapped_column(JSON)
    detail: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # NULL in rows from before there was one
