"""SLO classes: what the requests of a tenant are promised. The one declaration of a class's fields.

The registry's columns, the admin API's bodies and the command line's options are made from it, and the router gives
each request what the class of its tenant says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Literal

from mooring.declared import Bounds, Setting, broken_rule, declared
from mooring.errors import InvalidRequestError
from mooring.policy import PRIORITIES

__all__ = ["BEST_EFFORT", "OWN_CLASS", "SLOClass", "change_slo_class", "check_slo_class"]

BEST_EFFORT = "best-effort"
"""The name under which requests of tenants without a class are counted; no class has it."""

OWN_CLASS = ("auto", "default")
"""The names by which a request means the class of its tenant, as OpenAI's clients send them; no class has them."""


@dataclass(frozen=True, slots=True)
class SLOClass:
    """The promise to a tenant's requests. Its values are unchecked until ``check_slo_class`` has looked at them.

    Attributes:
        name: its name in the registry and in metrics.
    """

    name: str
    ttft_target_s: Annotated[
        float, Bounds(gt=0), Setting("Seconds within which a request is to have its first token.")
    ]
    tpot_target_s: Annotated[
        float,
        Bounds(gt=0),
        Setting("Seconds that each further token of a request may take, on average."),
    ]
    goal: Annotated[
        float, Bounds(gt=0, le=1), Setting("Share of the requests that are to meet both targets.")
    ] = 0.95
    priority: Annotated[
        int,
        PRIORITIES,
        Setting("Requests of a higher one go before others; 0 is that of tenants without a class."),
    ] = 0
    on_miss: Annotated[
        Literal["batch", "refuse"],
        Setting(
            "A request that cannot meet its targets is served as room allows, after all others (`batch`), or refused "
            "at once (`refuse`)."
        ),
    ] = "batch"


def change_slo_class(slo_class: SLOClass, changes: Mapping[str, Any]) -> SLOClass:
    """The class with some fields replaced, checked; None puts a field back to its default, if it has one.

    Raises:
        InvalidRequestError: a value that a field may not have.
    """
    fields = declared(SLOClass)
    defaults = {name: fields[name].default for name, value in changes.items() if value is None}
    known = {name: default for name, default in defaults.items() if default is not MISSING}
    changed = dataclasses.replace(slo_class, **{**changes, **known})
    check_slo_class(changed)
    return changed


def check_slo_class(slo_class: SLOClass) -> None:
    """Checks types as well as ranges, since values may come from JSON. The registry checks the name's form.

    Raises:
        InvalidRequestError: names the field.
    """
    if slo_class.name in OWN_CLASS:
        raise InvalidRequestError(
            f"{slo_class.name!r} is what requests say that name no class of their own", param="name"
        )
    if slo_class.name == BEST_EFFORT:
        raise InvalidRequestError(f"{BEST_EFFORT!r} is what tenants without a class have", param="name")
    for name, field in declared(SLOClass).items():
        if field.setting is not None and (wanted := broken_rule(field, getattr(slo_class, name))):
            raise InvalidRequestError(f"{name} must be {wanted}", param=name)
