"""Subscriptions: one reader of the outbox in each process, for all who wait or follow there.

It reads only while somebody subscribes, only the tenants of those who do, and hands each event to whom it
concerns.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from neolayer.core.errors import ServiceError, TooManyRequests
from neolayer.events.outbox import Event, Outbox, Position

_log = logging.getLogger(__name__)
#: Between two looks at the outbox; seconds.
POLL_S: Final = 0.1
#: After a failure; seconds.
RETRY_S: Final = 1.0
#: Rows read at a time.
PAGE: Final = 500
#: Of one tenant in one process.
MAX_SUBSCRIPTIONS: Final = 256
#: Events that wait for a subscriber; one that is slower is told so and reads the outbox itself.
MAX_WAITING: Final = 1_000


class Subscription:
    """A tenant's events, or those of one subject or of some kinds, from `start` on."""

    def __init__(
        self, tenant_id: UUID, subject: UUID | None, kinds: Collection[str] | None, start: Position
    ) -> None:
        self.tenant_id = tenant_id
        self.subject = subject
        self.kinds = kinds
        #: What is before it was committed when the subscription began.
        self.start = start
        #: Events were left out because too many waited.
        self.overrun = False
        self._events: asyncio.Queue[Event] = asyncio.Queue(MAX_WAITING)

    def offer(self, event: Event) -> None:
        if self.overrun or event.position < self.start or self.subject not in (None, event.subject):
            return
        if self.kinds is not None and event.kind not in self.kinds:
            return
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            self.overrun = True

    async def next(self, timeout_s: float) -> Event | None:
        """The next event; None when none came in this time."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._events.get()
        except TimeoutError:
            return None

    @property
    def empty(self) -> bool:
        """Everything that was offered has been taken."""
        return self._events.empty()


class Feed:
    """Run with `run`, stop by cancelling."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._subscriptions: dict[UUID, set[Subscription]] = {}
        self._wanted = asyncio.Event()
        self._starting = asyncio.Lock()
        #: Everything before it was handed out; None while nobody subscribes.
        self.position: Position | None = None
        #: Where the present look ends: whoever subscribes now gets what is written from there on.
        self._ahead: Position | None = None

    @asynccontextmanager
    async def subscribe(
        self, tenant_id: UUID, subject: UUID | None = None, kinds: Collection[str] | None = None
    ) -> AsyncIterator[Subscription]:
        """What happens from now on, until the block ends.

        Args:
            kinds: None: all of them.

        Raises:
            TooManyRequests: the tenant has as many as it may have here.
        """
        async with self._starting:
            if self._ahead is None:
                self._ahead = self.position = await self._outbox.now()
            # From here to the adding nothing else runs, so the next look is for this one too.
            subscription = Subscription(tenant_id, subject, kinds, self._ahead)
            mine = self._subscriptions.setdefault(tenant_id, set())
            if len(mine) >= MAX_SUBSCRIPTIONS:
                raise TooManyRequests(f"at most {MAX_SUBSCRIPTIONS} requests of a tenant wait for events here")
            mine.add(subscription)
            self._wanted.set()
        try:
            yield subscription
        finally:
            mine.discard(subscription)
            if not mine and self._subscriptions.get(tenant_id) is mine:
                del self._subscriptions[tenant_id]

    async def run(self) -> None:
        """Read while somebody subscribes."""
        while True:
            if not self._subscriptions:
                self.position = self._ahead = None
                self._wanted.clear()
                await self._wanted.wait()
            try:
                await self._look()
            except ServiceError as error:
                _log.warning("subscribers wait: %s", error.detail)
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(POLL_S)

    async def _look(self) -> None:
        """Hand out what was written since the last look."""
        self._ahead = until = await self._outbox.now()
        after = self.position
        assert after is not None
        while after < until and self._subscriptions:
            events = await self._outbox.of_tenants(list(self._subscriptions), after, until, PAGE)
            for event in events:
                for subscription in self._subscriptions.get(event.tenant_id, ()):
                    subscription.offer(event)
            after = self.position = events[-1].position if len(events) == PAGE else until
