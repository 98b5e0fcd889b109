"""Sends the messages of a call whose client may not read."""

from __future__ import annotations

import asyncio

from google.protobuf.message import Message

from router.doors.grpc.errors import Context
from router.request.reader_watch import SlowReaderError

__all__ = ["write"]

_PART_BYTES = 65_536  # gRPC does not tell how much of a message was taken: a large one has more time


async def write(context: Context, message: Message, max_stall_s: float) -> None:
    """Sends a message; waits until gRPC takes it, which it does as the client reads those before it.

    Args:
        max_stall_s: seconds to wait, for each 64 KiB that were begun.

    Raises:
        SlowReaderError: the client did not read. The call can only be ended then, and the status reaches the client
            when it reads on.
    """
    num_parts = 1 + message.ByteSize() // _PART_BYTES
    try:
        async with asyncio.timeout(max_stall_s * num_parts):
            await context.write(message)
    except TimeoutError as error:
        raise SlowReaderError(max_stall_s) from error
