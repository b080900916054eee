"""Execution records on their way to PostgreSQL: a bounded write-behind buffer.

A record is in memory for some tens of milliseconds. It is lost only if the process is killed in that time; an
execution whose outcome must survive that is an asynchronous one.
"""

import asyncio
import logging
from typing import Final

import msgspec

from neolayer.core.errors import ServiceError
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.functions.errors import RecordsFull
from neolayer.functions.metrics import UNWRITTEN
from neolayer.functions.model import ExecutionRecord

_SQL: Final = load_queries("neolayer.functions")
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
CAPACITY: Final = 10_000
#: Rows of one INSERT.
BATCH: Final = 500
#: Records gather this long before they are written; seconds.
GATHER_S: Final = 0.02
#: A buffer that stays full this long refuses; seconds.
FULL_TIMEOUT_S: Final = 2.0
LAST_WRITE_S: Final = 3.0


class ExecutionRecords:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._pending: list[ExecutionRecord] = []
        self._writing: list[ExecutionRecord] = []
        #: Records ever added, and ever written: `settled` compares them.
        self._added = 0
        self._done = 0
        self._arrived = asyncio.Event()
        self._wrote = asyncio.Condition()
        UNWRITTEN.set_function(lambda: self._added - self._done)

    @property
    def full(self) -> bool:
        return len(self._pending) >= CAPACITY

    def add(self, record: ExecutionRecord) -> None:
        """Take a record. `reserve` before the execution bounds how many there are."""
        self._pending.append(record)
        self._added += 1
        self._arrived.set()

    async def reserve(self) -> None:
        """Wait until there is room.

        Raises:
            RecordsFull: none within `FULL_TIMEOUT_S`.
        """
        try:
            async with asyncio.timeout(FULL_TIMEOUT_S), self._wrote:
                await self._wrote.wait_for(lambda: not self.full)
        except TimeoutError:
            raise RecordsFull from None

    async def settled(self) -> None:
        """Wait until what was added before this call is written.

        Raises:
            RecordsFull: not within `FULL_TIMEOUT_S`.
        """
        target = self._added
        if self._done >= target:
            return
        try:
            async with asyncio.timeout(FULL_TIMEOUT_S), self._wrote:
                await self._wrote.wait_for(lambda: self._done >= target)
        except TimeoutError:
            raise RecordsFull from None

    async def run(self) -> None:
        """Write until cancelled; then write what is left, for `LAST_WRITE_S` at most."""
        try:
            while True:
                await self._arrived.wait()
                await asyncio.sleep(GATHER_S)
                self._arrived.clear()
                while self._pending or self._writing:
                    await self._write()
        finally:
            async with asyncio.timeout(LAST_WRITE_S):
                while self._pending or self._writing:
                    await self._write()

    async def _write(self) -> None:
        if not self._writing:
            self._writing, self._pending = self._pending[:BATCH], self._pending[BATCH:]
        try:
            await self._database.execute(_SQL["insert_executions"], {"records": _encode(self._writing).decode()})
        except ServiceError as error:
            _log.warning("%d execution records wait: %s", len(self._writing), error.detail)
            await asyncio.sleep(0.5)
            return
        self._done += len(self._writing)
        self._writing = []
        async with self._wrote:
            self._wrote.notify_all()
