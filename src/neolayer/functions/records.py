"""Execution records on their way to PostgreSQL: a bounded write-behind buffer.

A record is in memory for about a tenth of a second. It is lost only if the process is killed in that time; an
execution whose outcome must survive that is an asynchronous one.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec

from neolayer.core.errors import ServiceError, Unavailable
from neolayer.core.text import storable
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.functions.errors import RecordsFull
from neolayer.functions.metrics import UNWRITABLE, UNWRITTEN
from neolayer.functions.model import ExecutionRecord

_SQL: Final = load_queries("neolayer.functions")
_log = logging.getLogger(__name__)
CAPACITY: Final = 10_000
CAPACITY_BYTES: Final = 64 * 1024 * 1024
#: What a row takes beside its texts, about.
ROW_BYTES: Final = 500
#: Rows that are made without letting a call come between.
AT_A_TIME: Final = 100
#: Of one COPY.
BATCH: Final = 2_000
BATCH_BYTES: Final = 4 * 1024 * 1024
#: Records gather this long before they are written, less when somebody asks for them; seconds.
GATHER_S: Final = 0.1
#: A buffer that stays full this long refuses; seconds.
FULL_TIMEOUT_S: Final = 2.0
LAST_WRITE_S: Final = 3.0


class Unmade(Protocol):
    """A record in the raw: made when it is written, not while somebody waits for an answer."""

    def make_record(self) -> ExecutionRecord: ...

    def make_line(self) -> bytes | None:
        """The same as `line`, for what is quicker to write in one go; null for anything unusual."""


class ExecutionRecords:
    def __init__(self, database: Database) -> None:
        self._database = database
        #: With the bytes that each holds.
        self._pending: list[tuple[int, ExecutionRecord | Unmade]] = []
        self._writing: list[ExecutionRecord | Unmade] = []
        self._pending_bytes = 0
        #: Records ever added, and ever written or given up: `settled` compares them.
        self._added = 0
        self._done = 0
        self._arrived = asyncio.Event()
        self._hurry = asyncio.Event()
        self._wrote = asyncio.Condition()
        UNWRITTEN.set_function(lambda: self._added - self._done)

    @property
    def full(self) -> bool:
        return len(self._pending) >= CAPACITY or self._pending_bytes >= CAPACITY_BYTES

    def add(self, record: "ExecutionRecord | Unmade", size: int) -> None:
        """Take a record. `reserve` before the execution bounds how many there are.

        Args:
            size: bytes of its texts.
        """
        size += ROW_BYTES
        self._pending.append((size, record))
        self._pending_bytes += size
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
            Unavailable: not within `FULL_TIMEOUT_S`.
        """
        target = self._added
        if self._done >= target:
            return
        self._hurry.set()
        try:
            async with asyncio.timeout(FULL_TIMEOUT_S), self._wrote:
                await self._wrote.wait_for(lambda: self._done >= target)
        except TimeoutError:
            raise Unavailable("the latest executions are not written yet; try again") from None

    async def run(self) -> None:
        """Write until cancelled; then write what is left, for `LAST_WRITE_S` at most."""
        try:
            while True:
                await self._arrived.wait()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(GATHER_S):
                        await self._hurry.wait()
                self._arrived.clear()
                self._hurry.clear()
                await self._write_up_to(self._added)
        finally:
            try:
                async with asyncio.timeout(LAST_WRITE_S):
                    await self._write_up_to(self._added)
            except TimeoutError:
                _log.error(
                    "%d execution records are lost: the database did not take them", self._added - self._done
                )

    async def _write_up_to(self, target: int) -> None:
        """Write as many as were ever added until now; those that come meanwhile gather for the next time."""
        while self._done < target:
            if not self._writing:
                self._writing = self._next_batch()
            try:
                await self._write()
            except ServiceError as error:
                _log.warning("%d execution records wait: %s", len(self._writing), error.detail)
                await asyncio.sleep(0.5)
                continue
            self._done += len(self._writing)
            self._writing = []
            async with self._wrote:
                self._wrote.notify_all()

    def _next_batch(self) -> "list[ExecutionRecord | Unmade]":
        count = total = 0
        for size, _ in self._pending[:BATCH]:
            if count and total + size > BATCH_BYTES:
                break
            count, total = count + 1, total + size
        batch, self._pending = self._pending[:count], self._pending[count:]
        self._pending_bytes -= total
        return [record for _, record in batch]

    async def _write(self) -> None:
        """Write `_writing`. One record that the database cannot hold must not keep the others back."""
        try:
            await self._copy(self._writing)
        except Unavailable:
            raise
        except Exception:
            for record in self._writing:
                try:
                    row = msgspec.structs.asdict(_made(record))
                    await self._database.execute(_SQL["insert_execution"], row)
                except Unavailable:
                    raise
                except Exception:
                    UNWRITABLE.inc()
                    _log.exception("an execution cannot be recorded")

    async def _copy(self, records: "list[ExecutionRecord | Unmade]") -> None:
        # A COPY is a transaction of its own, so one need not be begun and committed around it.
        async with (
            self._database.connection() as connection,
            connection.cursor() as cursor,
            cursor.copy(_SQL["copy_executions"]) as copy,
        ):
            # Text of our own: adapting the values of a row one by one costs four times as much.
            for at in range(0, len(records), AT_A_TIME):
                await copy.write(b"".join([_encoded(record) for record in records[at : at + AT_A_TIME]]))
                await asyncio.sleep(0)


def _made(record: ExecutionRecord | Unmade) -> ExecutionRecord:
    return record if isinstance(record, ExecutionRecord) else record.make_record()


def _encoded(record: ExecutionRecord | Unmade) -> bytes:
    if isinstance(record, ExecutionRecord):
        return line(record).encode()
    return record.make_line() or line(record.make_record()).encode()


def line(record: ExecutionRecord) -> str:
    """A row in the text format of COPY (PostgreSQL manual, "COPY", File Formats)."""
    return "\t".join([_FORMATS[type(value)](value) for value in msgspec.structs.astuple(record)]) + "\n"


def is_plain(text: bytes) -> bool:
    """Whether the text format of COPY has it as it is."""
    return _SPECIAL_BYTES.search(text) is None


def _text(value: str) -> str:
    return value.translate(_ESCAPES) if _SPECIAL.search(value) else value


_SPECIAL: Final = re.compile(r"[\\\t\n\r]")
_SPECIAL_BYTES: Final = re.compile(rb"[\\\t\n\r]")
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
_FORMATS: Final[dict[type, Callable[[Any], str]]] = {
    type(None): lambda _: r"\N",
    bool: lambda value: "t" if value else "f",
    int: str,
    str: _text,
    UUID: str,
    datetime: str,
}


def error_json(code: str, message: str, stack: str) -> str:
    """The ``error`` of a record."""
    error: dict[str, Any] = {"code": code, "message": storable(message), "stack": storable(stack)}
    return msgspec.json.encode(error).decode()
