"""One leader among the processes of a deployment, by a session lock in PostgreSQL.

The lock goes with the connection: a leader that is killed is followed by another within about `POLL_S`. One that
hangs, or whose machine is gone without a word, keeps its connection: the others see that no beat comes over it any
more, and end it. Together that is less than 5 s. A leader that is cut off or was thought to hang may go on for
`BEAT_S` + `BEAT_TIMEOUT_S`, so what it writes must be safe against a second writer anyway.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg

type _Connection = psycopg.AsyncConnection[tuple[object, ...]]

POLL_S: Final = 0.5
BEAT_S: Final = 0.5
BEAT_TIMEOUT_S: Final = 5.0
#: Of a leader without a beat.
HUNG_S: Final = 3.0
_log = logging.getLogger(__name__)
#: Whose connection has the lock, and since when it lies idle: each beat makes that another time. An advisory lock
#: of 64 bit stands in pg_locks as two halves.
_LEADER: Final = """
SELECT l.pid, a.state_change FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended(%s, 0)
"""


async def lead(url: str, name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` whenever this process is the leader of that name, until cancelled."""
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
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


async def _acquire(connection: _Connection, name: str) -> None:
    seen: tuple[object, ...] | None = None
    since_s = time.monotonic()
    while True:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (name,))
        row = await cursor.fetchone()
        if row is not None and row[0]:
            return
        leader = await (await connection.execute(_LEADER, (name,))).fetchone()
        # Only whether it changes counts: clocks may jump.
        if leader is None or leader != seen:
            seen, since_s = leader, time.monotonic()
        elif time.monotonic() - since_s >= HUNG_S:
            _log.warning("the leader of %s gives no sign of life: its connection is ended", name)
            await connection.execute("SELECT pg_terminate_backend(%s)", (leader[0],))
            continue
        await asyncio.sleep(POLL_S)


async def _beat(connection: _Connection) -> None:
    while True:
        await asyncio.sleep(BEAT_S)
        async with asyncio.timeout(BEAT_TIMEOUT_S):
            await connection.execute("SELECT 1")
