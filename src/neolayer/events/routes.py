"""``/api/v1/events``."""

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from litestar import Controller, get
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, QueryParameter
from litestar.response import Stream

from neolayer.core.errors import InvalidRequest
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


class NotificationEvent(msgspec.Struct, frozen=True):
    """What a watched contract notified of. `id` names it on the chain, `watch` and `number` name this event."""

    #: Hash of the block, position of the execution in it and of the notification in that.
    id: str
    watch: UUID
    number: int
    contract: str
    event: str
    #: A stack item as Neo's JSON: {type, value}.
    state: Any
    #: Null in OnPersist and PostPersist, which are the block's own.
    txid: str | None
    #: `Application`, `OnPersist` or `PostPersist`.
    trigger: str
    execution: int
    index: int
    block: int
    block_hash: str
    block_time: datetime
    at: datetime


class ChainRewoundEvent(msgspec.Struct, frozen=True):
    """A private chain lost its blocks above `block`: what a watch was told of them did not happen."""

    watch: UUID
    number: int
    block: int
    block_hash: str
    at: datetime


KINDS: Final = ("transaction", "notification", "chain_rewound")


class EventsController(Controller):
    path = "/api/v1/events"
    tags = ("events",)

    @get(
        summary="Follow what happens",
        description="Server-sent events: `transaction` for every change of a transaction's state, `notification` "
        "for what a watched contract notified of, `chain_rewound` for each watch when a private chain lost "
        "blocks. Reconnecting with `Last-Event-ID` misses none, at whichever API process; when the id is "
        "older than what is kept an event `gap` comes first.",
        media_type="text/event-stream",
        responses={
            200: ResponseSpec(
                TransactionEvent | NotificationEvent | ChainRewoundEvent,
                media_type="text/event-stream",
                generate_examples=False,
            )
        },
    )
    async def stream(
        self,
        principal: Principal,
        event_streams: EventStreams,
        last_event_id: Annotated[str | None, HeaderParameter(name="Last-Event-ID")] = None,
        kind: Annotated[str | None, QueryParameter(description="Only these, with commas between them.")] = None,
    ) -> Stream:
        kinds = None if kind is None else _kinds(kind)
        events = await event_streams.open(principal.tenant_id, last_event_id, kinds)
        return Stream(events, media_type="text/event-stream", headers={"cache-control": "no-store"})


def _kinds(text: str) -> frozenset[str]:
    """
    Raises:
        InvalidRequest: one of them is none.
    """
    kinds = frozenset(text.split(","))
    if not kinds <= set(KINDS):
        raise InvalidRequest(f"kind: expected {', '.join(KINDS)}, with commas between them, got {text[:100]!r}")
    return kinds
