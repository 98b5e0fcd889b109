"""A registration: what was asked for, how far it has come, and the files in which it outlives the server."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from model_registry.importing.hub import HUB_SCHEME

__all__ = ["Registration", "RegistrationEnd", "RegistrationFiles", "RegistrationStage"]

logger = logging.getLogger(__name__)

RegistrationEnd = Literal["done", "failed", "cancelled", "interrupted"]


@dataclass(slots=True)
class RegistrationStage:
    """One step of a registration. It waits, runs, is done, or ended as its registration did; a total of 0 is not
    known."""

    name: str
    state: Literal["waiting", "running", "done", "failed", "cancelled", "interrupted"] = "waiting"
    done_bytes: int = 0
    total_bytes: int = 0


@dataclass(slots=True)
class Registration:
    """A model that is registered, or was to be.

    Attributes:
        policy: what is named of the policy of its deployment; None if it is not to be deployed.
        created_at_s: in seconds of the Unix epoch.
        stages: those that have begun, and those that are expected to come, in their order.
        error: why it failed or was interrupted.
        number: of the version that it has registered; None if none yet.
        is_new: whether that version was not there before.
    """

    id: str
    name: str
    source: str
    policy: Mapping[str, Any] | None = None
    created_at_s: float = 0.0
    state: Literal["running", "done", "failed", "cancelled", "interrupted"] = "running"
    stages: list[RegistrationStage] = field(default_factory=list)
    error: str | None = None
    number: int | None = None
    is_new: bool = False

    @property
    def stage(self) -> str:
        """Name of the last stage that has begun."""
        last = self._last
        return "waiting" if last is None else last.name

    @property
    def done_bytes(self) -> int:
        """Bytes done of that stage."""
        last = self._last
        return 0 if last is None else last.done_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of that stage in all; 0 if that is not known."""
        last = self._last
        return 0 if last is None else last.total_bytes

    @property
    def _last(self) -> RegistrationStage | None:
        begun = [each for each in self.stages if each.state != "waiting"]
        return begun[-1] if begun else None

    def begin(self) -> None:
        """Starts it, or starts it again."""
        self.state, self.error = "running", None
        self.stages = [RegistrationStage(name) for name in self._planned()]

    def note(self, stage: str, done_bytes: int, total_bytes: int) -> bool:
        """Takes a report of progress; returns whether a stage begins with it."""
        begun = [each for each in self.stages if each.state != "waiting"]
        begins = not begun or begun[-1].name != stage
        if begins:
            for each in begun:
                each.state = "done"
            ahead = self.stages[len(begun) :]
            names = [each.name for each in ahead]
            # What stands before it is not needed this time; what nobody expected comes before what is still to come.
            ahead = ahead[names.index(stage) :] if stage in names else [RegistrationStage(stage), *ahead]
            begun.append(ahead[0])
            self.stages = [*begun, *ahead[1:]]
        now = begun[-1]
        now.state, now.done_bytes, now.total_bytes = "running", done_bytes, total_bytes
        return begins

    def end(self, state: RegistrationEnd, error: str | None = None) -> None:
        """Ends it, and the stage that runs with it."""
        self.state, self.error = state, error
        if state == "done":  # the stages that were not needed have not begun
            self.stages = [each for each in self.stages if each.state != "waiting"]
        for each in self.stages:
            if each.state == "running":
                each.state = state

    def _planned(self) -> tuple[str, ...]:
        fetch: tuple[str, ...] = ()
        if self.source.startswith(HUB_SCHEME):
            fetch = ("download", "verify")
        elif self.source.endswith(".gguf"):
            fetch = ("convert",)
        kept = ("pack",) if self.number is not None else (*fetch, "check", "copy", "check the copy", "pack")
        return kept if self.policy is not None else kept[:-1]


class RegistrationFiles:
    """Registrations in a folder of the server's own, a file for each. Its methods block.

    Args:
        folder: made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> list[Registration]:
        """All of them, oldest first; a file that is none of ours, or was cut short, is left out."""
        found = []
        for path in self._folder.glob("*.json"):
            try:
                raw = json.loads(path.read_text())
                stages = [RegistrationStage(**each) for each in raw.pop("stages")]
                found.append(Registration(**raw, stages=stages))
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                logger.warning("%s is no registration: %s", path, error)
        return sorted(found, key=lambda each: (each.created_at_s, each.id))

    def save(self, registration: Registration) -> None:
        """Writes one; a file is there whole or not at all."""
        self._folder.mkdir(exist_ok=True)
        part = self._folder / f"{registration.id}.part"
        part.write_text(json.dumps(asdict(registration)))
        os.replace(part, self._path(registration.id))

    def remove(self, registration_id: str) -> None:
        """Forgets one; no error if it is not there."""
        self._path(registration_id).unlink(missing_ok=True)

    def _path(self, registration_id: str) -> Path:
        return self._folder / f"{registration_id}.json"
