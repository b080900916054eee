"""``/api/v1/events``."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Controller, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter
from litestar.response import Stream

from neolayer.core.types import Principal
from neolayer.events.stream import EventStreams


class TransactionEvent(msgspec.Struct, frozen=True):
    """A change of a transaction's state. `id` and `number` together name it for ever."""

    id: UUID
    number: int
    state: str
    cause: dict[str, Any] | None
    txid: str | None
    block: int | None
    at: datetime


class EventsController(Controller):
    path = "/api/v1/events"
    tags = ("events",)

    @get(
        summary="Follow what happens",
        description="Server-sent events `transaction`, one for every change of a transaction's state. "
        "Reconnecting with `Last-Event-ID` misses none, at whichever API process; when the id is older than what "
        "is kept an event `gap` comes first.",
        media_type="text/event-stream",
        responses={200: ResponseSpec(TransactionEvent, media_type="text/event-stream", generate_examples=False)},
    )
    async def stream(
        self,
        principal: Principal,
        event_streams: EventStreams,
        last_event_id: Annotated[str | None, HeaderParameter(name="Last-Event-ID")] = None,
    ) -> Stream:
        events = await event_streams.open(principal.tenant_id, last_event_id)
        return Stream(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
