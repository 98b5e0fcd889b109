"""The deployments that the doors may name, kept in memory beside the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mooring.errors import ModelNotFoundError, ModelNotReadyError, ModelUnavailableError
from router.request.served_model import ServedModel

__all__ = ["DeploymentDirectory", "Preparation"]

_RETRY_S = 30.0  # if nobody knows how long it will take


@dataclass(frozen=True, slots=True)
class Preparation:
    """How far a model has come that is still being made.

    Attributes:
        stage: the work that is going on.
        done_share: part of the stage that is done, 0 to 1; None if that is unknown.
        left_s: estimated seconds until the stage ends; None if that is unknown.
    """

    stage: str
    done_share: float | None = None
    left_s: float | None = None

    def __str__(self) -> str:
        share = "" if self.done_share is None else f", {self.done_share:.0%} done"
        left = "" if self.left_s is None else f", about {self.left_s:.0f} s left"
        return f"{self.stage}{share}{left}"


class DeploymentDirectory:
    """The ``ModelDirectory`` of a server, over three tables: deployments that are served, models that are still
    being made, and deployments that are not served, with the reason.

    The registrar and the maker of samples write it, on the event loop.

    Args:
        on_unserved: called with the folder of a version when the last deployment that served it is gone.
    """

    def __init__(self, on_unserved: Callable[[Path], None] = lambda _: None) -> None:
        self._on_unserved = on_unserved
        self._served: dict[str, ServedModel] = {}
        self._preparing: dict[str, Preparation] = {}
        self._unavailable: dict[str, str] = {}
        self._complete = False

    def get(self, name: str) -> ServedModel:
        model = self._served.get(name)
        if model is not None:
            return model
        if (preparation := self._preparing.get(name)) is not None:
            raise ModelNotReadyError(
                f"model '{name}' is still being made ({preparation}): try again later",
                retry_after_s=preparation.left_s or _RETRY_S,
            )
        if name in self._unavailable:
            raise ModelUnavailableError(f"model '{name}' is not served: {self._unavailable[name]}")
        if not self._complete:
            raise ModelUnavailableError(
                f"the server is starting and does not know yet whether it serves '{name}'", retry_after_s=1
            )
        raise ModelNotFoundError(
            f"The model '{name}' does not exist. GET /v1/models lists those that do.", param="model"
        )

    def is_known(self, name: str) -> bool:
        return name in self._served or name in self._preparing or name in self._unavailable

    def list(self) -> Sequence[ServedModel]:
        return [self._served[name] for name in sorted(self._served)]

    def is_served(self, name: str) -> bool:
        """Whether a deployment takes requests."""
        return name in self._served

    def reason(self, name: str) -> str | None:
        """Why a deployment is not served; None if it is, or if it is unknown."""
        return self._unavailable.get(name)

    def preparing(self) -> Mapping[str, Preparation]:
        """The models that are still being made, by name; without those of which an older version is served."""
        return {name: each for name, each in self._preparing.items() if name not in self._served}

    def complete(self) -> None:
        """Notes that all deployments that were to be served from the start are known: any other name does not
        exist."""
        self._complete = True

    def prepare(self, name: str, preparation: Preparation) -> None:
        """Notes how far a model is that is still being made. A version of it that is served stays so."""
        self._preparing[name] = preparation

    def serve(self, model: ServedModel) -> None:
        self._preparing.pop(model.name, None)
        self._unavailable.pop(model.name, None)
        earlier = self._served.get(model.name)
        self._served[model.name] = model
        self._look_at_folder_of(earlier)

    def withhold(self, name: str, reason: str) -> None:
        """Notes that a deployment exists and is not served, for this reason."""
        self.forget(name)
        self._unavailable[name] = reason

    def forget(self, name: str) -> None:
        self._preparing.pop(name, None)
        self._unavailable.pop(name, None)
        self._look_at_folder_of(self._served.pop(name, None))

    def _look_at_folder_of(self, earlier: ServedModel | None) -> None:
        if earlier is not None and all(each.folder != earlier.folder for each in self._served.values()):
            self._on_unserved(earlier.folder)
