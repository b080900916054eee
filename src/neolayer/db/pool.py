"""The connection pool."""

import select
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection
from psycopg.errors import IdleInTransactionSessionTimeout
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from neolayer.core.errors import InvalidRequest, Unavailable

#: A statement that takes longer is not one of ours but a stuck server.
STATEMENT_TIMEOUT_MS: Final = 30_000
#: Who says nothing for so long in the middle of a database transaction has stopped or is cut off, and others wait
#: for what it has locked.
IDLE_IN_TRANSACTION_MS: Final = 10_000
_OPTIONS: Final = (
    f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS}"
)
#: A connection that was used within this time is taken to be alive unless its socket says otherwise; seconds.
TRUSTED_S: Final = 5.0

type Connection = AsyncConnection[TupleRow]


class DatabaseUnavailable(Unavailable):
    """The database is not reachable just now; try again."""

    code = "database_unavailable"


class Database:
    """A pool of connections in autocommit mode; several statements go into one `transaction`."""

    def __init__(self, url: str, *, max_size: int = 16, timeout_s: float = 10.0) -> None:
        self.url = url
        self._timeout_s = timeout_s
        #: Monotonic; when each connection was given back.
        self._used_s: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()
        self.pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            min_size=1,
            max_size=max_size,
            timeout=timeout_s,
            check=self._check,
            reset=self._note_use,
            max_idle=300,
            max_lifetime=3600,
            open=False,
            kwargs={"autocommit": True, "options": _OPTIONS},
            name="neolayer",
        )

    async def open(self) -> None:
        """Connect.

        Raises:
            DatabaseUnavailable: no connection within the pool's timeout.
        """
        try:
            await self.pool.open(wait=True, timeout=self._timeout_s)
        except PoolTimeout as error:
            await self.pool.close()
            raise DatabaseUnavailable(
                f"no connection to the database within {self._timeout_s:g} s: is it running?"
            ) from error

    async def close(self) -> None:
        await self.pool.close()

    async def _note_use(self, connection: Connection) -> None:
        self._used_s[connection] = time.monotonic()

    async def _check(self, connection: Connection) -> None:
        """Before a connection is given out; one that fails here is replaced.

        A server that ended said so on the socket, and nothing else comes on one that nobody uses: looking at it
        takes 2 µs where asking takes a round trip. A machine that is gone says nothing, so after a while it is
        asked all the same.
        """
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        if poll.poll(0) or time.monotonic() - self._used_s.get(connection, 0.0) > TRUSTED_S:
            await AsyncConnectionPool.check_connection(connection)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in autocommit mode.

        Raises:
            DatabaseUnavailable: none is to be had, or it broke while in use.
        """
        try:
            async with self.pool.connection() as connection:
                yield connection
        except (PoolTimeout, psycopg.OperationalError, IdleInTransactionSessionTimeout) as error:
            raise DatabaseUnavailable(f"database: {str(error).strip()}") from error
        except psycopg.DataError as error:
            # U+0000 in text, numbers out of range: only what came from outside can be like that.
            raise InvalidRequest(f"the database cannot hold this: {str(error).strip()}") from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside one transaction: commits at the end, rolls back on any exception."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def fetch(self, query: bytes, params: dict[str, Any] | None = None) -> list[TupleRow]:
        """All rows of one statement."""
        async with self.connection() as connection:
            return await (await connection.execute(query, params)).fetchall()

    async def fetch_one(self, query: bytes, params: dict[str, Any] | None = None) -> TupleRow | None:
        """The first row of one statement."""
        async with self.connection() as connection:
            return await (await connection.execute(query, params)).fetchone()

    async def execute(self, query: bytes, params: dict[str, Any] | None = None) -> int:
        """Run one statement; returns the number of rows it touched."""
        async with self.connection() as connection:
            return (await connection.execute(query, params)).rowcount

    def stats(self) -> dict[str, int]:
        """psycopg_pool's own counters: ``pool_size``, ``requests_waiting``, ``requests_wait_ms``, …"""
        return self.pool.get_stats()
