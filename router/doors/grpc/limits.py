"""Limits of the gRPC port."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GrpcLimits"]


@dataclass(frozen=True, slots=True)
class GrpcLimits:
    """Bounds on what clients of the gRPC port can make it keep and wait for. A /64 network counts as one address.

    Attributes:
        max_connections: most connections at a time, for each address that is listened on; a further one is closed
            at once.
        max_calls: most calls of a connection that run at a time; its client keeps further ones back.
        max_idle_s: seconds for which a connection may have no call.
        handshake_s: seconds within which a new connection must have said that it speaks gRPC.
        ping_every_s: seconds of silence after which a client is asked whether it is still there.
        min_ping_interval_s: a client that has nothing to say asks no more often than this, or is hung up on.
        max_metadata_bytes: most bytes of a call's metadata.
        message_s: seconds within which the message of a call must have arrived.
        message_hurried_s: the same while further messages wait for their turn to arrive.
        stranger_hurried_s: as ``message_hurried_s``, for calls that need no key. Their messages are small, and come
            together with the call.
        max_waiting_strangers: most calls of one address, of those that need no key, that wait for their turn.
        max_fields: most fields of a message, those of its parts included.
        max_numbers: most numbers in a message's packed lists, such as token ids.
        max_watches: most calls of ``Watch`` of the health service.
        max_address_watches: most calls of ``Watch`` from one address, unless a proxy stands before the server.
    """

    max_connections: int = 512
    max_calls: int = 100
    max_idle_s: float = 300.0
    handshake_s: float = 10.0
    ping_every_s: float = 60.0
    min_ping_interval_s: float = 10.0
    max_metadata_bytes: int = 16 << 10
    message_s: float = 60.0
    message_hurried_s: float = 2.0
    stranger_hurried_s: float = 0.25
    max_waiting_strangers: int = 64
    max_fields: int = 16_384
    max_numbers: int = 1 << 18
    max_watches: int = 256
    max_address_watches: int = 16

    def options(self, max_message_bytes: int) -> list[tuple[str, int]]:
        """The limits that gRPC itself keeps, as options of a server.

        Args:
            max_message_bytes: most bytes of a message once it is decompressed.
        """
        return [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_allowed_incoming_connections", self.max_connections),
            ("grpc.max_concurrent_streams", self.max_calls),
            ("grpc.max_connection_idle_ms", _ms(self.max_idle_s)),
            ("grpc.server_handshake_timeout_ms", _ms(self.handshake_s)),
            ("grpc.keepalive_time_ms", _ms(self.ping_every_s)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.min_ping_interval_s)),
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.max_metadata_bytes),
            # The window of a call whose message nobody reads yet stays small.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.so_reuseport", 0),
        ]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
