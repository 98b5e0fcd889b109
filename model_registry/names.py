"""Names that an operator may give to models, deployments, tenants and SLO classes."""

from __future__ import annotations

import re

from mooring.errors import InvalidRequestError

__all__ = ["check_name"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


def check_name(name: str, param: str = "name") -> None:
    """Refuses names that could not stand as they are in a URL, a metric's label or a shell line.

    Raises:
        InvalidRequestError: with the rule.
    """
    if not NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{name!r} is not a name: 1 to 128 letters, digits and . _ : / - after a letter or digit",
            param=param,
        )
