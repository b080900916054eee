"""Executions as they are recorded: listed, shown, followed."""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from neolayer.core.text import storable
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.functions.errors import ExecutionNotFound
from neolayer.functions.model import ExecutionView, LogLine, Status
from neolayer.functions.records import ExecutionRecords

_SQL: Final = load_queries("neolayer.functions")
#: A record is written well within this time; seconds.
YOUNG_S: Final = 0.25
_COLUMNS: Final = (
    b"SELECT id, function, version, alias, kind, parent_id, status, attempt, output, error, cold, wall_us, cpu_us,"
    b" queue_us, heap_bytes, peak_heap_bytes, bytes_in, bytes_out, phases, fetches, created_at"
)
_OF_TENANT: Final = b" FROM executions WHERE tenant_id = %(tenant_id)s"
#: By value, so that PostgreSQL sees that its index of what did not succeed will do.
_STATUS: Final[dict[Status, bytes]] = {
    "queued": b" AND status = 'queued'",
    "running": b" AND status = 'running'",
    "succeeded": b" AND status = 'succeeded'",
    "failed": b" AND status = 'failed'",
    "dead": b" AND status = 'dead'",
    "cancelled": b" AND status = 'cancelled'",
}


class Filter(msgspec.Struct, frozen=True):
    """Which executions; None is any."""

    function: str | None = None
    status: Status | None = None
    version: int | None = None
    #: Of the error.
    code: str | None = None
    #: Asked for at this time or later.
    since: datetime | None = None
    #: Asked for before this time.
    until: datetime | None = None

    def conditions(self) -> bytes:
        parts = []
        if self.function is not None:
            parts.append(b" AND function = %(function)s")
        if self.version is not None:
            parts.append(b" AND version = %(version)s")
        if self.status is not None:
            parts.append(_STATUS[self.status])
        if self.code is not None:
            parts.append(b" AND status <> 'succeeded' AND error->>'code' = %(code)s")
        if self.since is not None:
            parts.append(b" AND id >= %(since)s")
        if self.until is not None:
            parts.append(b" AND id < %(until)s")
        return b"".join(parts)

    def params(self) -> dict[str, Any]:
        times = {"since": _first_id(self.since), "until": _first_id(self.until)}
        return {"function": self.function, "version": self.version, "code": self.code} | times


class Position(msgspec.Struct, frozen=True):
    """How far a follower has read: everything of transactions before ``transaction``, and of that one the
    executions up to ``id``."""

    transaction: int
    id: UUID = UUID(int=0)

    def __str__(self) -> str:
        return f"{self.transaction}-{self.id}"

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        """None if it is none that we gave out."""
        transaction, _, id = text.partition("-")
        try:
            return cls(int(transaction), UUID(id)) if 0 <= int(transaction) < 2**64 else None
        except ValueError:
            return None


class History:
    def __init__(self, database: Database, records: ExecutionRecords) -> None:
        self._database = database
        self._records = records

    async def execution(self, tenant_id: UUID, id: UUID) -> ExecutionView:
        """
        Raises:
            ExecutionNotFound: the tenant has none with this id.
        """
        return _view(await self._find(_COLUMNS + _OF_TENANT + b" AND id = %(id)s", tenant_id, id))

    async def logs(self, tenant_id: UUID, id: UUID) -> list[LogLine]:
        """
        Raises:
            ExecutionNotFound: the tenant has none with this id.
        """
        (logs,) = await self._find(_SQL["execution_logs"], tenant_id, id)
        return log_lines(logs)

    async def _find(self, query: bytes, tenant_id: UUID, id: UUID) -> tuple[Any, ...]:
        params = {"tenant_id": tenant_id, "id": id}
        row = await self._database.fetch_one(query, params)
        if row is None:
            await self._records.settled()
            if _age_s(id) < YOUNG_S:
                # Another API process may have it in its buffer yet.
                await asyncio.sleep(YOUNG_S)
            row = await self._database.fetch_one(query, params)
        if row is None:
            raise ExecutionNotFound(f"no execution {id}")
        return row

    async def recent(self, tenant_id: UUID, which: Filter, before: UUID, limit: int) -> list[ExecutionView]:
        """Newest first."""
        await self._records.settled()
        query = _COLUMNS + _OF_TENANT + b" AND id < %(before)s" + which.conditions()
        query += b" ORDER BY id DESC LIMIT %(limit)s"
        params = {"tenant_id": tenant_id, "before": before, "limit": limit}
        return [_view(row) for row in await self._database.fetch(query, which.params() | params)]

    # --- following ----------------------------------------------------------------------------------------

    async def now(self) -> Position:
        """Before this position nothing will be written any more."""
        row = await self._database.fetch_one(_SQL["watermark"])
        assert row
        return Position(int(row[0]))

    async def written(
        self, tenant_id: UUID, which: Filter, after: Position, until: Position, limit: int
    ) -> list[tuple[Position, ExecutionView, list[LogLine]]]:
        """Executions in the order in which they were written, as they are by now; with their logs.

        ``until`` comes from `now`, so that what is before it cannot grow any more.
        """
        query = _COLUMNS + b", written::text, logs" + _OF_TENANT + which.conditions()
        query += (
            b" AND written >= %(from)s::text::xid8 AND written < %(to)s::text::xid8"
            b" AND (written, id) > (%(from)s::text::xid8, %(after)s) ORDER BY written, id LIMIT %(limit)s"
        )
        params = {
            "tenant_id": tenant_id,
            "from": str(after.transaction),
            "to": str(until.transaction),
            "after": after.id,
            "limit": limit,
        }
        rows = await self._database.fetch(query, which.params() | params)
        return [(Position(int(row[-2]), row[0]), _view(row[:-2]), log_lines(row[-1])) for row in rows]


def log_lines(logs: Sequence[tuple[float, str, str]] | None) -> list[LogLine]:
    return [LogLine(at_ms, level, storable(text)) for at_ms, level, text in logs or ()]


def _age_s(id: UUID) -> float:
    """Since the time that a UUIDv7 begins with; negative or huge for ids that are none of ours."""
    return abs(time.time() - (id.int >> 80) / 1000)


def _first_id(time: datetime | None) -> UUID | None:
    """No UUIDv7 of that time or later is lower."""
    if time is None:
        return None
    ms = int(time.timestamp() * 1000)
    return UUID(int=min(max(ms, 0), 2**48 - 1) << 80)


def _view(row: Sequence[Any]) -> ExecutionView:
    id, function, version, alias, kind, parent, status, attempt, output, error, cold, wall_us, cpu_us, *rest = row
    queue_us, heap_bytes, peak_heap_bytes, bytes_in, bytes_out, phases, fetches, created_at = rest
    return ExecutionView(
        id=id,
        function=function,
        version=version,
        alias=alias,
        kind=kind,
        parent=parent,
        status=status,
        attempt=attempt,
        output=msgspec.Raw(output.encode() if output else b"null"),
        error=error,
        cold=cold,
        wall_ms=wall_us / 1000,
        cpu_ms=cpu_us / 1000,
        queue_ms=None if queue_us is None else queue_us / 1000,
        heap_bytes=heap_bytes,
        peak_heap_bytes=peak_heap_bytes,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        phases=None if phases is None else {name: us / 1000 for name, us in phases.items()},
        fetches=fetches,
        created_at=created_at,
    )
