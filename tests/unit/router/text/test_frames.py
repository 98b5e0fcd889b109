"""Frames between the server and the process of a text."""

from __future__ import annotations

import pytest

from router.text.frames import MAX_FRAME_BYTES, Frame, FrameKind, FrameReader, pack_frame

FRAMES = [
    Frame(1, FrameKind.CALL, {"do": "encode", "prompts": ["é🦀", {"messages": []}]}),
    Frame(2, FrameKind.RESULT, {}, b"\x00" * 70),
    Frame(0, FrameKind.READY, {"num_ids": 3}, b""),
]


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_frames_come_out_as_they_went_in_however_they_are_cut(step: int) -> None:
    sent = b"".join(pack_frame(*frame) for frame in FRAMES)
    reader = FrameReader()
    read = [frame for at in range(0, len(sent), step) for frame in reader.feed(sent[at : at + step])]
    assert read == FRAMES


def test_what_json_cannot_write_is_refused() -> None:
    for content in ({"prompts": ["\ud800"]}, {"ids": [1 << 70]}):
        with pytest.raises(TypeError):
            pack_frame(1, FrameKind.CALL, content)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(
            bytes(8) + bytes([99]) + (2).to_bytes(4, "little") + bytes(4) + b"{}", id="unknown kind"
        ),
        pytest.param(pack_frame(1, FrameKind.CALL, {})[:-2] + b"[]", id="no object"),
        pytest.param(pack_frame(1, FrameKind.CALL, {})[:-2] + b"{{", id="no JSON"),
        pytest.param(
            bytes(9) + (0).to_bytes(4, "little") + MAX_FRAME_BYTES.to_bytes(4, "little"), id="too long"
        ),
    ],
)
def test_what_is_no_frame_is_refused_before_more_is_read(sent: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        list(FrameReader().feed(sent))
