"""Turns rows of the database into frozen records."""

from __future__ import annotations

import dataclasses

from model_registry.records import (
    DeploymentRecord,
    KeyRecord,
    ModelRecord,
    SLOClassRecord,
    TenantRecord,
    VariantRecord,
    VersionRecord,
)
from model_registry.schema import (
    DeploymentRow,
    KeyRow,
    ModelRow,
    SLOClassRow,
    TenantRow,
    VariantRow,
    VersionRow,
)
from mooring.policy import DeploymentPolicy
from mooring.slo import SLOClass

__all__ = [
    "deployment_record",
    "key_record",
    "model_record",
    "slo_class_record",
    "tenant_record",
    "variant_record",
    "version_record",
]


def model_record(row: ModelRow) -> ModelRecord:
    return ModelRecord(row.name, tuple(version.number for version in row.versions), row.created_at_s)


def version_record(row: VersionRow) -> VersionRecord:
    return VersionRecord(
        model=row.model.name,
        number=row.number,
        digest=row.digest,
        source=row.source,
        license=row.license,
        architecture=row.architecture,
        description=row.description,
        num_bytes=row.num_bytes,
        created_at_s=row.created_at_s,
    )


def variant_record(row: VariantRow) -> VariantRecord:
    version = version_record(row.version)
    return VariantRecord(row.id, version, row.precision, row.packed_key, row.packed_bytes)


def deployment_record(row: DeploymentRow) -> DeploymentRecord:
    fields = dataclasses.fields(DeploymentPolicy)
    return DeploymentRecord(
        name=row.name,
        variant=variant_record(row.variant),
        engine=row.engine,
        policy=DeploymentPolicy(**{field.name: getattr(row, field.name) for field in fields}),
        created_at_s=row.created_at_s,
        updated_at_s=row.updated_at_s,
    )


def slo_class_record(row: SLOClassRow) -> SLOClassRecord:
    return SLOClassRecord(_slo_class(row), tuple(tenant.name for tenant in row.tenants))


def _slo_class(row: SLOClassRow) -> SLOClass:
    return SLOClass(**{field.name: getattr(row, field.name) for field in dataclasses.fields(SLOClass)})


def tenant_record(row: TenantRow) -> TenantRecord:
    slo_class = None if row.slo_class is None else _slo_class(row.slo_class)
    allowed = sorted(map(_slo_class, row.allowed_slo_classes), key=lambda each: each.name)
    return TenantRecord(row.id, row.name, row.created_at_s, slo_class, row.weight, tuple(allowed))


def key_record(row: KeyRow) -> KeyRecord:
    return KeyRecord(row.id, row.tenant.name, row.name, row.prefix, row.created_at_s, row.revoked_at_s)
