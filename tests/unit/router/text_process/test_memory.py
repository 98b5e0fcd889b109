"""What a text process gives back."""

from __future__ import annotations

import numpy as np
import pytest

from mooring.units import MIB
from router.text_process.memory import SpareMemory


def test_a_large_piece_of_work_does_not_raise_what_is_kept_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    spare = SpareMemory()
    collections: list[None] = []
    monkeypatch.setattr("gc.collect", lambda: collections.append(None))
    held = np.ones(64 * MIB, np.uint8)
    spare.give_back()  # it is needed while that is called
    del held
    spare.give_back()
    before = len(collections)
    held = np.ones(48 * MIB, np.uint8)
    spare.give_back()
    assert len(collections) == before + 1
    del held
