"""A tenant's events as server-sent events, from now on or from where a client left off."""

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from typing import Final
from uuid import UUID

import msgspec

from neolayer.core.errors import InvalidRequest, ServiceError
from neolayer.events.feed import Feed, Subscription
from neolayer.events.outbox import Event, Outbox, Position

_log = logging.getLogger(__name__)
_encode: Final = msgspec.json.Encoder().encode
#: A comment goes out after so much silence, so that proxies keep the connection and dead ones are noticed;
#: seconds.
HEARTBEAT_S: Final = 10.0
#: Then the client connects again, by itself, and its key is checked again; seconds.
MAX_STREAM_S: Final = 900.0
#: Rows read at a time for one that comes back.
PAGE: Final = 200
#: What a client waits before it connects again; milliseconds.
RECONNECT_MS: Final = 1_000


class EventStreams:
    def __init__(self, outbox: Outbox, feed: Feed) -> None:
        self._outbox = outbox
        self._feed = feed

    async def open(
        self, tenant_id: UUID, last_event_id: str | None, kinds: Collection[str] | None = None
    ) -> AsyncIterator[bytes]:
        """Begin now, or after an event.

        Args:
            kinds: None: all of them.

        Raises:
            InvalidRequest: ``last_event_id`` is none of ours.
            TooManyRequests: too many follow already.
        """
        after = None
        if last_event_id:
            after = Position.parse(last_event_id)
            if after is None:
                raise InvalidRequest("Last-Event-ID is not one that this API gave out")
        stream = self._stream(tenant_id, after, kinds)
        # As far as the first bytes, so that a refusal is an answer and not the end of a stream.
        head = await anext(stream)
        return _joined(head, stream)

    async def _stream(
        self, tenant_id: UUID, after: Position | None, kinds: Collection[str] | None
    ) -> AsyncGenerator[bytes]:
        async with self._feed.subscribe(tenant_id, kinds=kinds) as subscription:
            start = subscription.start
            if after is not None and after > start and after > await self._outbox.now():
                after = None  # of a database that was restored since
            at = start if after is None else after
            horizon = await self._outbox.horizon()
            # The id makes a client that breaks off before the first event go on from here.
            yield b"retry: %d\nid: %b\n\n" % (RECONNECT_MS, str(at).encode())
            if at < start and at.transaction < horizon.transaction:
                yield b"event: gap\ndata: {}\n\n"
            try:
                while at < start:
                    found = await self._outbox.of_tenant(tenant_id, at, start, PAGE)
                    for event in found:
                        if kinds is None or event.kind in kinds:
                            yield _event(event)
                    at = found[-1].position if len(found) == PAGE else start
                async for piece in self._live(subscription, at):
                    yield piece
            except ServiceError as error:
                _log.warning("a stream of events ends: %s", error.detail)

    async def _live(self, subscription: Subscription, seen: Position) -> AsyncIterator[bytes]:
        """
        Args:
            seen: the client had events up to here, perhaps from a process that was ahead of this one.
        """
        end = time.monotonic() + MAX_STREAM_S
        while time.monotonic() < end:
            if subscription.overrun and subscription.empty:
                return  # too slow for the events that come: the client goes on from its last one
            event = await subscription.next(HEARTBEAT_S)
            if event is not None:
                if event.position > seen:
                    yield _event(event)
            elif (position := self._feed.position) is not None and subscription.empty:
                yield b": still here\nid: %b\n\n" % str(max(position, seen)).encode()


async def _joined(head: bytes, rest: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield head
        async for piece in rest:
            yield piece


def _event(event: Event) -> bytes:
    data = _encode(event.data | {"at": event.at})
    return b"event: %b\nid: %b\ndata: %b\n\n" % (event.kind.encode(), str(event.position).encode(), data)
