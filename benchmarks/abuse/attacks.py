"""Every attack by its name, the doors that it applies to, and who attacks."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from benchmarks.abuse import bodies
from benchmarks.abuse.calls import health_watches, many_streams, unread_calls
from benchmarks.abuse.connections import half_bodies, idle_connections, unread_streams
from benchmarks.abuse.doors import through_doors
from benchmarks.abuse.files import hostile_files
from benchmarks.abuse.heads import long_headers, unknown_keys
from benchmarks.abuse.target import Attack
from mooring.errors import ConfigurationError

__all__ = ["Caller", "Cell", "cells"]


class Caller(enum.Enum):
    """The attacker, by the key that is needed and sent."""

    OPEN = "no key needed"
    STRANGER = "no key"
    TENANT = "a tenant's key"
    OPERATOR = "the admin key"


@dataclass(frozen=True, slots=True)
class Cell:
    """One attack through one door.

    Attributes:
        max_files: how many files the server may open; None leaves it to the system.
    """

    attack: str
    door: str
    caller: Caller
    make: Attack
    max_files: int | None = None

    @property
    def name(self) -> str:
        return f"{self.attack}/{self.door}/{self.caller.name.lower()}"


_ANYBODY = (Caller.OPEN, Caller.STRANGER, Caller.TENANT)
_WITHOUT_KEY = (Caller.OPEN, Caller.STRANGER)
_FEW_FILES = 60


def cells(only: Collection[str] = ()) -> list[Cell]:
    """All cells of the table, or those whose names are, or begin, like one of ``only``: ``half-bodies``,
    ``half-bodies/admin``, ``half-bodies/admin/stranger``, ``*/*/stranger``.

    Raises:
        ConfigurationError: no name is like that.
    """
    found = [
        *_cells("tiny-parts", through_doors(bodies.tiny_parts(), compressed=True)),
        *_cells("wrong-items", through_doors(bodies.wrong_items())),
        *_cells("nested-json", through_doors(bodies.nested_json())),
        *_cells("many-choices", through_doors(bodies.many_choices())),
        *_cells("empty-messages", through_doors(bodies.empty_messages())),
        *_cells("long-text", through_doors(bodies.long_texts())),
        *_cells("bad-words", through_doors(bodies.bad_words())),
        *_cells("half-bodies", half_bodies()),
        *_cells("unread-streams", unread_streams() | unread_calls()),
        *_cells("idle-connections", idle_connections(), (Caller.OPEN,), _FEW_FILES),
        *_cells("many-streams", many_streams()),
        *_cells("health-watches", health_watches(), _WITHOUT_KEY),
        *_cells("unknown-keys", unknown_keys(), _WITHOUT_KEY),
        *_cells("long-headers", long_headers(), _WITHOUT_KEY),
        *_cells("hostile-files", hostile_files(), (Caller.OPERATOR,)),
    ]
    for wanted in only:
        if not any(_matches(cell, wanted) for cell in found):
            names = ", ".join(dict.fromkeys(cell.attack for cell in found))
            raise ConfigurationError(f"no attack {wanted!r}; there are {names}, each /DOOR and /DOOR/CALLER")
    return [cell for cell in found if not only or any(_matches(cell, wanted) for wanted in only)]


def _matches(cell: Cell, wanted: str) -> bool:
    return fnmatchcase(cell.name, wanted) or fnmatchcase(cell.name, f"{wanted}/*")


def _cells(
    name: str,
    attacks: Mapping[str, Attack],
    callers: Collection[Caller] = _ANYBODY,
    max_files: int | None = None,
) -> list[Cell]:
    return [
        Cell(name, door, caller, attack, max_files)
        for door, attack in attacks.items()
        for caller in (_callers_of_admin(callers) if door == "admin" else callers)
    ]


def _callers_of_admin(callers: Collection[Caller]) -> list[Caller]:
    """Nobody needs no key there, and a tenant's key is as good as none."""
    return [
        Caller.OPERATOR if caller is Caller.TENANT else caller
        for caller in callers
        if caller is not Caller.OPEN
    ]
