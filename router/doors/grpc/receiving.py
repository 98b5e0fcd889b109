"""Receives the messages of calls, and looks at each before it is parsed.

gRPC tells of a message when all of it is there. Until then its bytes, up to those of the largest message, are in
memory and nobody can count them; so what is bounded is how many messages may be arriving.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from google.protobuf.message import DecodeError

from mooring.errors import DeadlineExceededError, InvalidRequestError, OverloadedError, RateLimitError
from router.doors.grpc.errors import Context, client_network_of
from router.doors.grpc.limits import GrpcLimits
from router.doors.grpc.turns import Turns
from router.doors.grpc.wire import check_wire
from router.request.bounds import RouterConfig

__all__ = ["Parse", "Receiver"]

Parse = Callable[[bytes], Any]
"""A message type's ``FromString``."""


class Receiver:
    """Receives the messages of a server's calls.

    Args:
        config: at a time, a caller's messages that arrive may be so many that ``max_tenant_body_bytes`` holds
            them at their largest, and those of all callers so many that ``max_total_body_bytes`` does. Calls
            that need no key are together one caller, in which no address can take the turns of all others. A
            caller's calls of several messages are bounded by ``max_tenant_streams``.
        limits: the further bounds.
    """

    def __init__(self, config: RouterConfig, limits: GrpcLimits) -> None:
        self._limits = limits
        self._max_streams = config.max_tenant_streams
        self._max_turns = max(1, config.max_tenant_body_bytes // config.max_body_bytes)
        num_turns = max(1, config.max_total_body_bytes // config.max_body_bytes)
        self._all_turns = self._new_turns(num_turns, limits.message_hurried_s)
        self._stranger_turns = self._new_turns(self._max_turns, limits.stranger_hurried_s)
        self._turns: dict[Hashable, Turns] = {}
        self._num_streams = Counter[Hashable]()

    async def message(self, context: Context, caller: Hashable | None) -> bytes:
        """The bytes of a call's only message.

        Args:
            caller: whoever shares turns to send a message; None if the call needs no key.

        Raises:
            DeadlineExceededError: it did not arrive in time.
            InvalidRequestError: the client sent none.
            OverloadedError: too many calls wait that need no key.
        """
        receive = partial(self._all_turns.receive, context.read)
        hurried_s = self._limits.message_hurried_s
        if is_stranger := caller is None:
            caller, hurried_s = client_network_of(context), self._limits.stranger_hurried_s
            receive = partial(self._stranger_turns.receive, receive)
        turns = self._turns.get(caller)
        if turns is None:
            turns = self._turns[caller] = self._new_turns(self._max_turns, hurried_s)
        elif is_stranger and turns.num_waiting >= self._limits.max_waiting_strangers:
            raise OverloadedError(
                "Too many calls from your address wait for their messages.", retry_after_s=1
            )
        try:
            message = await turns.receive(receive)
        except TimeoutError as error:
            raise DeadlineExceededError("The message did not arrive in time.") from error
        finally:
            if turns.is_unused:
                self._turns.pop(caller, None)
        if not isinstance(message, bytes):  # the end of the stream
            raise InvalidRequestError("The call came without a message.")
        return message

    @contextmanager
    def stream(self, context: Context, caller: Hashable, parse: Parse) -> Iterator[AsyncIterator[Any]]:
        """The messages of a call that sends several. A message that is wrong ends the iterator with an
        ``InvalidRequestError``.

        Raises:
            RateLimitError: the caller has too many such calls.
        """
        most = self._max_streams
        if self._num_streams[caller] >= most:
            raise RateLimitError(
                f"A tenant may have at most {most} streams at a time (max_tenant_streams): send further requests in "
                "those.",
                code="tenant_streams_in_flight",
                retry_after_s=1,
            )
        self._num_streams[caller] += 1
        try:
            yield self._messages(context, parse)
        finally:
            self._num_streams[caller] -= 1
            if not self._num_streams[caller]:
                del self._num_streams[caller]

    async def _messages(self, context: Context, parse: Parse) -> AsyncIterator[Any]:
        while isinstance(message := await context.read(), bytes):
            request = [self.parsed(message, parse)]
            del message
            yield request.pop()  # only its reader keeps it while the next one is awaited

    def parsed(self, data: bytes, parse: Parse) -> Any:
        """The message that the bytes are.

        Raises:
            InvalidRequestError: they are none, or it has more fields than it may, or one that is not known here.
        """
        limits = self._limits
        check_wire(
            parse.__self__.DESCRIPTOR,  # type: ignore[attr-defined]
            data,
            max_fields=limits.max_fields,
            max_numbers=limits.max_numbers,
        )
        try:
            return parse(data)
        except DecodeError as error:  # text that is not UTF-8, say
            raise InvalidRequestError(f"The message cannot be read: {error}.") from error

    def _new_turns(self, num_turns: int, hurried_s: float) -> Turns:
        return Turns(num_turns, patient_s=self._limits.message_s, hurried_s=hurried_s)
