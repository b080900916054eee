"""News between processes over PostgreSQL's LISTEN/NOTIFY.

A notice says *that* something changed, never what it is now: whoever hears it reads the table. Notices may be
lost while the connection is down, so everything that rests on them also has a time limit of its own.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import psycopg

from neolayer.core.errors import ServiceError
from neolayer.db.pool import Connection, Database

CHANNEL: Final = "neolayer"
_log = logging.getLogger(__name__)

type Handler = Callable[[str], None]


async def notify(connection: Connection, topic: str, payload: str = "") -> None:
    """Tell all processes once the surrounding transaction commits."""
    await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, f"{topic} {payload}"))


class Announcer:
    """`notify` for what happens hundreds of times a second, after its own transaction has committed.

    Transactions with a notice commit one after the other, each with its wait for the disk: PostgreSQL holds a lock
    of the whole server from before to after (`PreCommit_Notify`). So these go out in transactions of their own,
    which write nothing, and what comes while one is under way shares the next. A process that dies in between
    tells nobody.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._topics: set[str] = set()
        self._telling: asyncio.Task[None] | None = None

    def announce(self, topic: str) -> None:
        """Returns at once."""
        self._topics.add(topic)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def close(self) -> None:
        """Returns when everything is told."""
        if self._telling is not None:
            await self._telling

    async def _tell(self) -> None:
        while self._topics:
            payloads = [f"{topic} " for topic in self._topics]
            self._topics.clear()
            try:
                await self._database.execute(
                    b"SELECT pg_notify(%(channel)s, payload) FROM unnest(%(payloads)s::text[]) payload",
                    {"channel": CHANNEL, "payloads": payloads},
                )
            except ServiceError as error:
                _log.warning("nobody is told: %s", error.detail)


class NoticeListener:
    """Calls handlers with the payload of each notice of their topic.

    After the connection was lost every handler is called with an empty payload, which means: anything of
    this topic may have changed.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._handlers: dict[str, list[Handler]] = {}

    def on(self, topic: str, handler: Handler) -> None:
        """``handler`` must not block: it drops a cache entry or sets an event."""
        self._handlers.setdefault(topic, []).append(handler)

    def dispatch(self, topic: str, payload: str) -> None:
        """Call the handlers of this process at once: its own changes must not wait for the way round."""
        for handler in self._handlers.get(topic, ()):
            handler(payload)

    async def run(self) -> None:
        """Listen until cancelled; reconnects by itself."""
        delay_s = 0.1
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}".encode())
                    self._reset()
                    delay_s = 0.1
                    async for notice in connection.notifies():
                        self.dispatch(*notice.payload.split(" ", 1))
            except psycopg.OperationalError as error:
                _log.warning("listening for notices: %s", str(error).strip())
            self._reset()
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 5.0)

    def _reset(self) -> None:
        for handlers in self._handlers.values():
            for handler in handlers:
                handler("")
