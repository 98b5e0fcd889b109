"""What a core signal says, without asking for the cores."""

from __future__ import annotations

import select

from memory_manager.cores import CoreSignal

__all__ = ["is_clear"]


def is_clear(signal: CoreSignal) -> bool:
    return bool(select.select([signal.descriptors[0]], [], [], 0)[0])
