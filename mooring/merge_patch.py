"""JSON merge patches (RFC 7396): what has changed between two documents, as a document. Pure.

A merge patch has no way to say null other than to delete, so documents here hold none: a member without a value is
left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Document", "filled", "merge_patch", "patched"]

Document = dict[str, Any]
"""A JSON object without nulls; lists in it are values, which are replaced whole."""


def filled(**members: Any) -> Document:
    """The members that have a value."""
    return {name: value for name, value in members.items() if value is not None}


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> Document:
    """The patch that makes ``after`` of ``before``; empty if they are equal."""
    patch: Document = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if old is value:
            continue
        if isinstance(value, dict) and isinstance(old, dict):
            if changes := merge_patch(old, value):
                patch[name] = changes
        elif old != value or type(old) is not type(value):
            patch[name] = value
    return patch


def patched(before: Any, patch: Any) -> Any:
    """The value that a patch makes of ``before``. Neither is changed."""
    if not isinstance(patch, dict):
        return patch
    result = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = patched(result.get(name), value)
    return result
