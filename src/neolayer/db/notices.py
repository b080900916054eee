"""News between processes over PostgreSQL's LISTEN/NOTIFY.

A notice says *that* something changed, never what it is now: whoever hears it reads the table. Notices may be
lost while the connection is down, so everything that rests on them also has a time limit of its own.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import psycopg

from neolayer.db.pool import Connection

CHANNEL: Final = "neolayer"
_log = logging.getLogger(__name__)

type Handler = Callable[[str], None]


async def notify(connection: Connection, topic: str, payload: str = "") -> None:
    """Tell all processes once the surrounding transaction commits."""
    await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, notice(topic, payload)))


def notice(topic: str, payload: str = "") -> str:
    """What `pg_notify` is to send on `CHANNEL`, for statements that do more than that."""
    return f"{topic} {payload}"


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
