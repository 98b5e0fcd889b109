"""Queries over models, versions, variants and deployments."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session, selectinload

from model_registry.names import check_name
from model_registry.paging import WHOLE, Page, by_name
from model_registry.records import (
    DeploymentRecord,
    ModelRecord,
    NewVersion,
    VariantRecord,
    VersionRecord,
)
from model_registry.rows import deployment_record, model_record, variant_record, version_record
from model_registry.schema import DeploymentRow, ModelRow, VariantRow, VersionRow
from model_registry.transactions import Transactions, one
from mooring.errors import ConflictError, InvalidRequestError, NotFoundError
from mooring.policy import DeploymentPolicy, change_policy, check_policy

__all__ = ["AUTO", "PRECISIONS", "CatalogQueries"]

AUTO = "auto"
PRECISIONS = ("bf16", "fp32", "fp8", "nvfp4", "awq-int4")
MAX_NUMBER = 2**31 - 1  # the largest that the column holds; databases refuse to compare it with a larger one


class CatalogQueries(Transactions):
    """Models that are registered, and how they are deployed.

    Args:
        database: of ``database.open_database``.
        engines: names of the engines that a deployment may have; the first is the usual one.
        now: seconds of the Unix epoch.
    """

    def __init__(
        self, database: Engine, engines: Sequence[str], now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(database, now)
        self._engines = tuple(engines)

    def register_version(self, model: str, new: NewVersion) -> VersionRecord:
        """Adds a version to a model, and the model itself if there is none. If a version has the same digest
        already, returns that one and changes nothing.

        Raises:
            InvalidRequestError: the name is not allowed.
        """
        check_name(model, "model")
        with self._writing() as session:
            row = session.scalar(select(ModelRow).where(ModelRow.name == model))
            if row is None:
                row = ModelRow(name=model, last_number=0, created_at_s=self._now())
                session.add(row)
            known = next((version for version in row.versions if version.digest == new.digest), None)
            if known is not None:
                return version_record(known)
            row.last_number += 1
            values = dataclasses.asdict(new)
            version = VersionRow(model=row, number=row.last_number, created_at_s=self._now(), **values)
            session.add(version)
            session.flush()
            return version_record(version)

    def list_models(self, page: Page = WHOLE) -> list[ModelRecord]:
        """Models by name."""
        query = select(ModelRow).options(selectinload(ModelRow.versions).defer(VersionRow.description))
        with self._reading() as session:
            return [model_record(row) for row in session.scalars(by_name(query, ModelRow.name, page))]

    def deployments_of_models(self, models: Sequence[str]) -> dict[str, list[str]]:
        """Names of the deployments of some models, by model; those that have none are left out."""
        query = (
            select(ModelRow.name, DeploymentRow.name)
            .join(VersionRow, VersionRow.model_id == ModelRow.id)
            .join(VariantRow, VariantRow.version_id == VersionRow.id)
            .join(DeploymentRow, DeploymentRow.variant_id == VariantRow.id)
            .where(ModelRow.name.in_(models))
            .order_by(DeploymentRow.name)
        )
        found: dict[str, list[str]] = {}
        with self._reading() as session:
            for model, deployment in session.execute(query):
                found.setdefault(model, []).append(deployment)
        return found

    def get_model(self, name: str) -> ModelRecord:
        """One model. Raises ``NotFoundError``."""
        with self._reading() as session:
            return model_record(_model(session, name))

    def get_version(self, model: str, number: int | None = None) -> VersionRecord:
        """One version of a model, by default its newest. Raises ``NotFoundError``."""
        with self._reading() as session:
            return version_record(_version(session, model, number))

    def list_versions(self, model: str) -> list[VersionRecord]:
        """All versions of a model, oldest first. Raises ``NotFoundError``."""
        with self._reading() as session:
            return [version_record(row) for row in _model(session, model).versions]

    def has_digest(self, digest: str) -> bool:
        """Whether any version has this artifact."""
        with self._reading() as session:
            return (
                session.scalar(select(VersionRow.id).where(VersionRow.digest == digest).limit(1)) is not None
            )

    def delete_version(self, model: str, number: int) -> None:
        """Removes a version and its variants.

        Raises:
            NotFoundError: there is no such version.
            ConflictError: a deployment uses the version.
        """
        with self._writing() as session:
            _delete_version(session, _version(session, model, number))

    def delete_model(self, name: str) -> None:
        """Removes a model with all its versions.

        Raises:
            NotFoundError: there is no such model.
            ConflictError: a deployment uses one of the versions.
        """
        with self._writing() as session:
            row = _model(session, name)
            for version in list(row.versions):
                _delete_version(session, version)
            session.flush()
            session.delete(row)

    # Variants

    def list_variants(self, model: str, number: int) -> list[VariantRecord]:
        """The variants of a version by precision. Raises ``NotFoundError``."""
        with self._reading() as session:
            version = _version(session, model, number)
            query = (
                select(VariantRow).where(VariantRow.version_id == version.id).order_by(VariantRow.precision)
            )
            return [variant_record(row) for row in session.scalars(query)]

    def set_packed(self, variant_id: int, packed_key: str, packed_bytes: int) -> VariantRecord:
        """Notes the packed artifact of a variant, and of all that had the same one before: it was renamed for them
        too. Raises ``NotFoundError``."""
        with self._writing() as session:
            row = one(session, select(VariantRow).where(VariantRow.id == variant_id), f"variant {variant_id}")
            if row.packed_key is not None and row.packed_key != packed_key:
                renamed = update(VariantRow).where(VariantRow.packed_key == row.packed_key)
                session.execute(renamed.values(packed_key=packed_key, packed_bytes=packed_bytes))
            row.packed_key, row.packed_bytes = packed_key, packed_bytes
            session.flush()
            return variant_record(row)

    # Deployments

    def create_deployment(
        self,
        name: str,
        model: str,
        version: int | None = None,
        precision: str = AUTO,
        engine: str | None = None,
        policy: DeploymentPolicy | None = None,
    ) -> DeploymentRecord:
        """Makes a deployment, and its variant if there is none.

        Args:
            version: number of the version; None means the newest now, and a later version does not change the
                deployment.
            engine: None is the usual one.
            precision: one of ``PRECISIONS``, or ``"auto"``, which is the checkpoint's own.

        Raises:
            InvalidRequestError: a value is not allowed; ``param`` names it.
            NotFoundError: there is no such model or version.
            ConflictError: the name is taken.
        """
        check_name(name)
        engine = engine or self._engines[0]
        if engine not in self._engines:
            raise InvalidRequestError(
                f"engine {engine!r} is not one of {', '.join(self._engines)}", param="engine"
            )
        policy = policy or DeploymentPolicy()
        check_policy(policy)
        with self._writing() as session:
            if session.scalar(select(DeploymentRow.id).where(DeploymentRow.name == name)) is not None:
                raise ConflictError(f"a deployment {name!r} exists already", param="name")
            variant = _variant(session, _version(session, model, version), precision)
            _check_context(policy, variant.version)
            now = self._now()
            values = dataclasses.asdict(policy)
            row = DeploymentRow(
                name=name, variant=variant, engine=engine, created_at_s=now, updated_at_s=now, **values
            )
            session.add(row)
            session.flush()
            return deployment_record(row)

    def get_deployment(self, name: str) -> DeploymentRecord:
        """One deployment. Raises ``NotFoundError``."""
        with self._reading() as session:
            return deployment_record(_deployment(session, name))

    def list_deployments(self, page: Page = WHOLE) -> list[DeploymentRecord]:
        """Deployments by name."""
        query = by_name(select(DeploymentRow), DeploymentRow.name, page)
        with self._reading() as session:
            return [deployment_record(row) for row in session.scalars(query)]

    def update_deployment(self, name: str, changes: Mapping[str, object]) -> DeploymentRecord:
        """Changes some settings of a deployment: fields of its policy, ``version`` or ``precision``.

        Raises:
            InvalidRequestError: a setting is unknown or its value bad; ``param`` names it.
            NotFoundError: there is no such deployment or version.
        """
        variant_changes = {key: value for key, value in changes.items() if key in ("version", "precision")}
        policy_changes = {key: value for key, value in changes.items() if key not in variant_changes}
        with self._writing() as session:
            row = _deployment(session, name)
            policy = change_policy(deployment_record(row).policy, policy_changes)
            if variant_changes:
                row.variant = _changed_variant(session, row.variant, variant_changes)
            _check_context(policy, row.variant.version)
            for field, value in dataclasses.asdict(policy).items():
                setattr(row, field, value)
            row.updated_at_s = self._now()
            session.flush()
            return deployment_record(row)

    def delete_deployment(self, name: str) -> None:
        """Removes a deployment. Raises ``NotFoundError``."""
        with self._writing() as session:
            session.delete(_deployment(session, name))


def _model(session: Session, name: str) -> ModelRow:
    return one(session, select(ModelRow).where(ModelRow.name == name), f"model {name!r}")


def _version(session: Session, model: str, number: int | None) -> VersionRow:
    query = select(VersionRow).where(VersionRow.model_id == _model(session, model).id)
    if number is None:
        return one(session, query.order_by(VersionRow.number.desc()).limit(1), f"version of model {model!r}")
    if abs(number) > MAX_NUMBER:
        raise NotFoundError(f"there is no version {number} of model {model!r}")
    return one(session, query.where(VersionRow.number == number), f"version {number} of model {model!r}")


def _deployment(session: Session, name: str) -> DeploymentRow:
    return one(session, select(DeploymentRow).where(DeploymentRow.name == name), f"deployment {name!r}")


def _variant(session: Session, version: VersionRow, precision: str) -> VariantRow:
    """The variant of this precision, made if there is none."""
    if precision == AUTO:
        precision = str(version.description["default_precision"])
    if precision not in PRECISIONS:
        raise InvalidRequestError(
            f"precision {precision!r} is not one of {', '.join((AUTO, *PRECISIONS))}", param="precision"
        )
    query = select(VariantRow).where(VariantRow.version_id == version.id, VariantRow.precision == precision)
    return session.scalar(query) or VariantRow(version=version, precision=precision)


def _changed_variant(session: Session, variant: VariantRow, changes: Mapping[str, object]) -> VariantRow:
    number = changes.get("version", variant.version.number)
    precision = changes.get("precision", variant.precision)
    if not isinstance(number, int) or isinstance(number, bool):
        raise InvalidRequestError("version must be a whole number", param="version")
    if not isinstance(precision, str):
        raise InvalidRequestError("precision must be a word", param="precision")
    return _variant(session, _version(session, variant.version.model.name, number), precision)


def _check_context(policy: DeploymentPolicy, version: VersionRow) -> None:
    longest = int(version.description["max_model_len"])
    if policy.max_model_len is not None and policy.max_model_len > longest:
        raise InvalidRequestError(
            f"max_model_len {policy.max_model_len} exceeds the model's {longest}", param="max_model_len"
        )


def _delete_version(session: Session, version: VersionRow) -> None:
    variants = session.scalars(select(VariantRow).where(VariantRow.version_id == version.id)).all()
    user = session.scalar(
        select(DeploymentRow.name).where(DeploymentRow.variant_id.in_([v.id for v in variants]))
    )
    if user is not None:
        raise ConflictError(
            f"version {version.number} of model {version.model.name!r} is used by deployment {user!r}: "
            "delete that first"
        )
    for variant in variants:
        session.delete(variant)
    session.flush()  # children first: the mapper does not order rows that no loaded relationship joins
    session.delete(version)
