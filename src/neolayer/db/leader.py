"""One leader among the processes of a deployment, by a session lock in PostgreSQL.

The lock goes with the connection. A leader that is killed is followed by another within about `POLL_S`; one that
stands still or is cut off, from which PostgreSQL hears nothing for `LOST_S`, within `LOST_S` + `POLL_S`. It may
think for `BEAT_S` + `BEAT_TIMEOUT_S` that it still is the leader, so what it writes must be safe against a
second writer anyway.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg

POLL_S: Final = 0.5
BEAT_S: Final = 0.5
BEAT_TIMEOUT_S: Final = 5.0
#: Some beats; seconds.
LOST_S: Final = 3.0
_OPTIONS: Final = f"-c idle_session_timeout={int(LOST_S * 1000)}"
_log = logging.getLogger(__name__)


async def lead(url: str, name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` whenever this process is the leader of that name, until cancelled."""
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(url, autocommit=True, options=_OPTIONS) as connection:
                await _acquire(connection, name)
                _log.info("leader of %s", name)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_beat(connection))
                    tasks.create_task(_run(work))
        except* (psycopg.OperationalError, TimeoutError) as group:
            _log.warning("leader lock of %s: %s", name, str(group.exceptions[0]).strip())
        await asyncio.sleep(POLL_S)


async def _run(work: Callable[[], Awaitable[None]]) -> None:
    await work()


async def _acquire(connection: psycopg.AsyncConnection[tuple[object, ...]], name: str) -> None:
    while True:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (name,))
        row = await cursor.fetchone()
        if row is not None and row[0]:
            return
        await asyncio.sleep(POLL_S)


async def _beat(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
    while True:
        await asyncio.sleep(BEAT_S)
        async with asyncio.timeout(BEAT_TIMEOUT_S):
            await connection.execute("SELECT 1")
