"""The deployments that the doors may name, kept in memory beside the registry."""

from __future__ import annotations

from collections.abc import Sequence

from mooring.errors import ModelNotFoundError, ModelUnavailableError
from router.request.served_model import ServedModel

__all__ = ["DeploymentDirectory"]


class DeploymentDirectory:
    """The ``ModelDirectory`` of a server, over two tables: deployments that are served, and those that are
    not, with the reason.

    The registrar alone writes it, on the event loop.
    """

    def __init__(self) -> None:
        self._served: dict[str, ServedModel] = {}
        self._unavailable: dict[str, str] = {}
        self._complete = False

    def get(self, name: str) -> ServedModel:
        model = self._served.get(name)
        if model is not None:
            return model
        if name in self._unavailable:
            raise ModelUnavailableError(f"model '{name}' is not served: {self._unavailable[name]}")
        if not self._complete:
            raise ModelUnavailableError(
                f"the server is starting and does not know yet whether it serves '{name}'", retry_after_s=1
            )
        raise ModelNotFoundError(
            f"The model '{name}' does not exist. GET /v1/models lists those that do.", param="model"
        )

    def list(self) -> Sequence[ServedModel]:
        return [self._served[name] for name in sorted(self._served)]

    def is_served(self, name: str) -> bool:
        """Whether a deployment takes requests."""
        return name in self._served

    def reason(self, name: str) -> str | None:
        """Why a deployment is not served; None if it is, or if it is unknown."""
        return self._unavailable.get(name)

    def complete(self) -> None:
        """Notes that all deployments that were to be served from the start are known: any other name does not
        exist."""
        self._complete = True

    def serve(self, model: ServedModel) -> None:
        self._unavailable.pop(model.name, None)
        self._served[model.name] = model

    def withhold(self, name: str, reason: str) -> None:
        """Notes that a deployment exists and is not served, for this reason."""
        self._served.pop(name, None)
        self._unavailable[name] = reason

    def forget(self, name: str) -> None:
        self._served.pop(name, None)
        self._unavailable.pop(name, None)
