"""The admin API's events: decisions and mishaps with their reasons, as a list and as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from memory_manager.fleet.events import EventKind
from model_registry.events import MAX_EVENTS_LISTED
from model_registry.records import EventRecord
from mooring.errors import InvalidRequestError
from router.control.journal import Journal
from router.doors.admin import bodies as types
from router.doors.admin.paging import tell_next
from router.doors.admin.times import utc
from router.doors.http.sse import EventStream

__all__ = ["create_event_routes", "event_body"]

KEEP_ALIVE = b": nothing new\n\n"
KEEP_ALIVE_S = 10.0
POLL_S = 1.0  # other servers may write to the same registry
MAX_ID = 2**63 - 1

Limit = Annotated[int, Query(ge=1, le=MAX_EVENTS_LISTED, description="Most events to list.")]
Before = Annotated[int | None, Query(ge=0, le=MAX_ID, description="Only those older than this id.")]
After = Annotated[int | None, Query(ge=0, le=MAX_ID, description="Only those newer than this id.")]
OfDeployment = Annotated[str | None, Query(max_length=128, description="Only those about this deployment.")]
OfKinds = Annotated[list[EventKind] | None, Query(description="Only those of these kinds.")]


def create_event_routes(journal: Journal) -> APIRouter:
    """The routes under ``/events``."""
    router = APIRouter(tags=["events"])

    @router.get("/events")
    async def list_events(
        request: Request,
        response: Response,
        limit: Limit = 100,
        before: Before = None,
        after: After = None,
        deployment: OfDeployment = None,
        kind: OfKinds = None,
    ) -> list[types.EventBody]:
        """Decisions and mishaps, newest first. For the next page ask for those before the last id."""
        found = await journal.events(
            limit, before_id=before, after_id=after, deployment=deployment, kinds=_names(kind)
        )
        if len(found) == limit:
            tell_next(request, response, "before", str(found[-1].id))
        return [event_body(each) for each in found]

    @router.get(
        "/events/stream",
        response_class=Response,
        responses={200: {"content": {EventStream.media_type: {}}, "description": "Server-sent events."}},
    )
    async def stream_events(
        after: After = None,
        deployment: OfDeployment = None,
        kind: OfKinds = None,
        last_event_id: Annotated[
            str | None, Header(description="The last one seen; takes precedence.")
        ] = None,
    ) -> Response:
        """Events as they come, oldest first: from now on, or from those after an id."""
        seen = _parse_id(last_event_id) if last_event_id is not None else after
        if seen is None:
            seen = await journal.newest_id()
        return EventStream(_frames(journal, seen, deployment, _names(kind)), _nothing)

    return router


def event_body(record: EventRecord) -> types.EventBody:
    """A record as the admin API shows it."""
    return types.EventBody(
        id=record.id,
        at=utc(record.at_s),
        kind=record.kind,
        deployment=record.deployment,
        replica=record.replica_id,
        worker=record.worker_id,
        device=record.device,
        reason=record.reason,
        figures=dict(record.figures),
        detail=types.EventDetailBody.model_validate(record.detail) if record.detail else None,
    )


async def _frames(
    journal: Journal, seen: int, deployment: str | None, kinds: Sequence[str]
) -> AsyncIterator[bytes]:
    yield KEEP_ALIVE  # so that the client knows at once that it is connected
    quiet_s = 0.0
    while True:
        found = await journal.events(
            MAX_EVENTS_LISTED, after_id=seen, deployment=deployment, kinds=kinds, oldest_first=True
        )
        for each in found:
            seen = each.id
            body = event_body(each).model_dump_json()
            yield f"id: {each.id}\nevent: {each.kind}\ndata: {body}\n\n".encode()
        quiet_s = 0.0 if found else quiet_s + POLL_S
        if quiet_s >= KEEP_ALIVE_S:
            quiet_s = 0.0
            yield KEEP_ALIVE
        if not await journal.wait(POLL_S):
            return


def _parse_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_ID):
        raise InvalidRequestError("Last-Event-ID must be the id of an event", param="Last-Event-ID")
    return int(text)


def _names(kinds: Sequence[EventKind] | None) -> tuple[str, ...]:
    return tuple(each.value for each in kinds or ())


async def _nothing() -> None:
    """Does nothing: a stream of events holds nothing that must be given back."""
