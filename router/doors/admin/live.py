"""The admin API's live feed: the state of the server as a stream, as a document, and the last hour of its figures."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from model_registry.events import MAX_EVENTS_LISTED
from mooring.errors import NotFoundError, TransientError
from router.control.journal import Journal
from router.doors.admin import bodies as types
from router.doors.admin.events import POLL_S, event_body
from router.doors.http.sse import EventStream
from router.feed.feed import Feed
from router.feed.publisher import NUM_KEPT, Publisher
from router.feed.segments import FREE

__all__ = ["carry_events", "create_live_routes", "device_bodies"]

Seq = Annotated[
    int | None, Query(ge=0, description=f"The devices as they were published so, one of the last {NUM_KEPT}.")
]
Minutes = Annotated[float, Query(gt=0, le=60, description="How far back to go.")]


def create_live_routes(feed: Feed) -> APIRouter:
    """The routes ``/live``, ``/live/snapshot``, ``/history`` and ``/devices``."""
    router = APIRouter(tags=["live"])

    @router.get(
        "/live",
        response_class=Response,
        responses={200: {"content": {EventStream.media_type: {}}, "description": "Server-sent events."}},
    )
    async def live() -> Response:
        """The state of the server as it changes: a `snapshot`, then each `patch` (RFC 7396) with the number after the
        last one's, and each new `event`. A reader that falls behind is sent a snapshot again."""
        await feed.fresh()
        frames = feed.publisher.frames()
        return EventStream(frames, frames.aclose)

    @router.get("/live/snapshot", response_model=dict[str, Any])
    async def live_snapshot() -> Response:
        """The state of the server now, as the stream's `snapshot` has it."""
        published = await feed.fresh()
        return Response(published.as_json(), media_type="application/json")

    @router.get("/history")
    async def history(minutes: Minutes = 60.0) -> types.HistoryBody:
        """Figures of up to an hour, a row every few seconds."""
        return types.HistoryBody.model_validate(feed.history.since(feed.now_s() - 60 * minutes))

    @router.get("/devices")
    async def list_devices(response: Response, seq: Seq = None) -> list[types.DeviceBody]:
        """Budgets, and bytes by owner, as they were published under the number in `x-mooring-seq`."""
        if seq is None:
            published = await feed.fresh()
            seq, devices = published.seq, published.state["devices"]
        elif (devices := feed.publisher.devices_at(seq)) is None:
            raise NotFoundError(f"Nothing that was published as {seq} is kept.", param="seq")
        response.headers["x-mooring-seq"] = str(seq)
        return device_bodies(devices)

    return router


def device_bodies(devices: Mapping[str, Any]) -> list[types.DeviceBody]:
    """The devices of a published state as the admin API lists them."""
    return [
        types.DeviceBody(
            name=name,
            owners={
                owner: segment["promised_bytes"]
                for owner, segment in device["segments"].items()
                if owner != FREE and segment["promised_bytes"]
            },
            **device,
        )
        for name, device in devices.items()
    ]


async def carry_events(publisher: Publisher, journal: Journal) -> None:
    """Tells readers of the journal's new events until the server ends; work for ``Publisher.while_read``. While the
    registry does not answer, events wait."""
    seen: int | None = None
    while True:
        with contextlib.suppress(TransientError):  # the registry has logged why
            if seen is None:
                seen = await journal.newest_id()
            found = await journal.events(MAX_EVENTS_LISTED, after_id=seen, oldest_first=True)
            if found:
                seen = found[-1].id
                publisher.tell_events(event_body(each).model_dump_json().encode() for each in found)
        if not await journal.wait(POLL_S):
            return
