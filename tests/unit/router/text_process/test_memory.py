"""What a text process gives back."""

from __future__ import annotations

import pytest

from mooring.units import MIB
from router.text_process.memory import SpareMemory


def test_a_large_piece_of_work_does_not_raise_what_is_kept_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    resident, trims = [20 * MIB], []
    monkeypatch.setattr(SpareMemory, "_resident_bytes", lambda self: resident[0])
    spare = SpareMemory()
    monkeypatch.setattr(spare, "_malloc_trim", lambda pad: trims.append(resident[0]))
    for now, is_trimmed in ((300, True), (20, False), (40, True), (45, False)):
        resident[0] = now * MIB
        before = len(trims)
        spare.give_back()
        assert (len(trims) > before) == is_trimmed, now
