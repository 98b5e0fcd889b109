"""What a cache is given to move blocks with where none should move."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["move_nothing"]


def move_nothing(group: int, sources: NDArray[np.int64], destinations: NDArray[np.int64]) -> None:
    """``memory_manager.kv.block_store.MoveBlocks`` of a model alone, or of one without gaps."""
    raise AssertionError(f"blocks {sources} of group {group} are moved to {destinations}")
