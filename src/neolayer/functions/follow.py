"""Executions as they are written, for whoever follows them: server-sent events.

Nothing is done for followers while executions are written. A follower reads, a few times a second, the rows of
transactions that ended since it last looked: in this order nothing is missed, whichever process wrote it and
however late. An event's id is a position in that order; `Last-Event-ID` goes on after it, at any API process.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

import msgspec

from neolayer.core.errors import InvalidRequest, ServiceError, TooManyRequests
from neolayer.functions.history import Filter, History, Position
from neolayer.functions.model import ExecutionView, LogLine

_log = logging.getLogger(__name__)
_encode: Final = msgspec.json.Encoder().encode
POLL_S: Final = 0.3
#: A comment goes out after so much silence, so that proxies keep the connection and dead ones are noticed;
#: seconds.
HEARTBEAT_S: Final = 10.0
#: Then the client connects again, by itself, and its key is checked again; seconds.
MAX_STREAM_S: Final = 900.0
#: Rows read at a time.
PAGE: Final = 100
#: Of one tenant at one API process: each asks the database a few times a second.
MAX_FOLLOWERS: Final = 32
#: What a client waits before it connects again; milliseconds.
RECONNECT_MS: Final = 1_000


class FollowedExecution(msgspec.Struct, frozen=True):
    execution: ExecutionView
    logs: list[LogLine]


class Followers:
    def __init__(self, history: History) -> None:
        self._history = history
        self._count: Counter[UUID] = Counter()

    async def follow(self, tenant_id: UUID, which: Filter, last_event_id: str | None) -> AsyncIterator[bytes]:
        """Begin now, or after an event.

        Raises:
            InvalidRequest: ``last_event_id`` is none of ours, or the filter is nonsense.
            TooManyRequests: too many follow already.
        """
        after = await self._history.now()
        if last_event_id:
            given = Position.parse(last_event_id)
            if given is None:
                raise InvalidRequest("Last-Event-ID is not one that this API gave out")
            # One from the future is of a database that was restored since.
            after = min(given, after, key=lambda position: (position.transaction, position.id))
        if self._count[tenant_id] >= MAX_FOLLOWERS:
            raise TooManyRequests(f"at most {MAX_FOLLOWERS} connections of a tenant follow executions here")
        # What the database cannot look for is refused now, not in the middle of the stream.
        await self._history.written(tenant_id, which, after, after, 1)
        return self._events(tenant_id, which, after)

    async def _events(self, tenant_id: UUID, which: Filter, after: Position) -> AsyncIterator[bytes]:
        self._count[tenant_id] += 1
        try:
            end = time.monotonic() + MAX_STREAM_S
            # The id makes a client that breaks off before the first event go on from here.
            yield b"retry: %d\nid: %b\n\n" % (RECONNECT_MS, str(after).encode())
            said = time.monotonic()
            while time.monotonic() < end:
                try:
                    until = await self._history.now()
                    found = await self._history.written(tenant_id, which, after, until, PAGE)
                except ServiceError as error:
                    _log.warning("a follower waits: %s", error.detail)
                    found, until = [], after
                for position, execution, logs in found:
                    yield _event(position, FollowedExecution(execution, logs))
                if found:
                    said = time.monotonic()
                if len(found) == PAGE:
                    after = found[-1][0]
                    continue
                # A client that comes back after the last event passes over what its filter left out once more.
                after = until
                if time.monotonic() - said >= HEARTBEAT_S:
                    said = time.monotonic()
                    yield b": still here\nid: %b\n\n" % str(after).encode()
                await asyncio.sleep(POLL_S)
        finally:
            self._count[tenant_id] -= 1
            if not self._count[tenant_id]:
                del self._count[tenant_id]


def _event(position: Position, followed: FollowedExecution) -> bytes:
    return b"event: execution\nid: %b\ndata: %b\n\n" % (str(position).encode(), _encode(followed))
