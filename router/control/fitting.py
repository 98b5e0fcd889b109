"""A dry run for an operator: how a model would fit on each device, registered or not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from memory_manager.policy.fit import DeviceFit
from memory_manager.ports import ArtifactRef
from model_registry.records import VariantRecord
from mooring.errors import InvalidRequestError
from mooring.policy import DeploymentPolicy, change_policy
from router.control.deployment_spec import spec_of
from router.control.registrar import Registrar

__all__ = ["Fitting"]

_UNNAMED = "(a new deployment)"  # which no deployment can be called


class _Candidate(NamedTuple):
    """A model that is to be fitted; ``key`` and ``num_bytes`` are of its artifact, if it has one."""

    name: str
    engine: str
    config: Mapping[str, Any]
    precision: str
    max_model_len: int
    policy: DeploymentPolicy
    key: str = ""
    num_bytes: int | None = None


class Fitting:
    """Finds how models would fit; changes nothing.

    Args:
        registrar: has the registry, the sources, the engines and the manager.
    """

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar

    async def fit(
        self, *, source: str | None, model: str | None, deployment: str | None, policy: Mapping[str, Any]
    ) -> dict[str, DeviceFit]:
        """Tells for each device by its name how a model would fit there: one of a source, of which its configuration
        alone is read; the newest version of a registered one; or a deployment.

        Args:
            policy: fields of the policy that are to be other than the default, or than the deployment's own.

        Raises:
            InvalidRequestError: not just one of the three is given, or the policy cannot be had.
            NotFoundError: there is no such model or deployment.
            ArtifactError: the source cannot be read, or is not supported.
        """
        given = {"source": source, "model": model, "deployment": deployment}
        if sum(each is not None for each in given.values()) != 1:
            raise InvalidRequestError("Say one of 'source', 'model' and 'deployment'.", param="source")
        change_policy(DeploymentPolicy(), policy)  # before anything is fetched
        if source is not None:
            candidate = await self._registrar.in_own_thread(partial(self._of_source, source, policy))
        elif model is not None:
            candidate = await asyncio.to_thread(self._of_model, model, policy)
        else:
            assert deployment is not None
            candidate = await asyncio.to_thread(self._of_deployment, deployment, policy)
        engine, num_bytes = self._registrar.engines[candidate.engine], candidate.num_bytes
        if num_bytes is None:
            num_bytes = await asyncio.to_thread(engine.weights_bytes, candidate.config, candidate.precision)
        spec = spec_of(
            candidate.name,
            ArtifactRef(candidate.key, Path(), num_bytes, b""),
            candidate.config,
            candidate.precision,
            candidate.max_model_len,
            candidate.policy,
            engine.kv_bytes,
            candidate.engine,
        )
        return self._registrar.manager.fit(spec)

    def _of_source(self, source: str, policy: Mapping[str, Any]) -> _Candidate:
        found = self._registrar.importer.outline(source)
        return _Candidate(
            _UNNAMED,
            self._registrar.engine,
            found.config,
            self._registrar.precision_for(found.precision),
            found.max_model_len,
            change_policy(DeploymentPolicy(), policy),
        )

    def _of_model(self, model: str, policy: Mapping[str, Any]) -> _Candidate:
        registry = self._registrar.registry
        version = registry.get_version(model)
        precision = self._registrar.precision_for(str(version.description["default_precision"]))
        variants = registry.list_variants(model, version.number)
        packed = next((each for each in variants if each.precision == precision), None)
        candidate = _Candidate(
            _UNNAMED,
            self._registrar.engine,
            version.description["config"],
            precision,
            int(version.description["max_model_len"]),
            change_policy(DeploymentPolicy(), policy),
        )
        return candidate if packed is None else _with_artifact(candidate, packed)

    def _of_deployment(self, name: str, policy: Mapping[str, Any]) -> _Candidate:
        record = self._registrar.registry.get_deployment(name)
        description = record.variant.version.description
        candidate = _Candidate(
            name,
            record.engine,
            description["config"],
            record.variant.precision,
            int(description["max_model_len"]),
            change_policy(record.policy, policy),
        )
        return _with_artifact(candidate, record.variant)


def _with_artifact(candidate: _Candidate, variant: VariantRecord) -> _Candidate:
    if variant.packed_key is None:
        return candidate
    return candidate._replace(key=variant.packed_key, num_bytes=variant.packed_bytes)
