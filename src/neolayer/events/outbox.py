"""The outbox: what happened, stored in the database transaction in which it happened.

Rows are read in the order of the database transactions that wrote them, up to the oldest that still runs: below
it nothing can appear any more, so a reader that goes on from a position misses nothing, whichever process wrote it
and however late. Two changes of one subject that overlapped may come in the other order; `number` has their right
one.
"""

import asyncio
import logging
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
from psycopg.rows import TupleRow

from neolayer.core.errors import ServiceError
from neolayer.db.pool import Connection, Database
from neolayer.db.sql import load_queries

_log = logging.getLogger(__name__)
_SQL: Final = load_queries("neolayer.events")
_POSITION: Final = re.compile(r"([0-9]{1,19})-([0-9]{1,18})")
#: Rows written by one statement.
APPENDED_AT_ONCE: Final = 1_000
#: Rows removed by one statement.
PRUNED_AT_ONCE: Final = 10_000
PRUNE_EVERY_S: Final = 600.0


class Position(msgspec.Struct, frozen=True, order=True):
    """A place in the outbox, as event ids tell it."""

    #: A database transaction's number; below 2⁶³.
    transaction: int
    #: Of a row that it wrote; 0 is before the first.
    sequence: int = 0

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        """None when it is none of ours."""
        match = _POSITION.fullmatch(text)
        if match is None or int(match[1]) >= 2**63:
            return None
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.transaction}-{self.sequence}"


class Event(msgspec.Struct, frozen=True):
    position: Position
    tenant_id: UUID
    #: Of what: ``transaction``, ``notification``, ``chain_rewound``.
    kind: str
    #: Which transaction or watch; with `number` the event's name, the same for ever.
    subject: UUID
    number: int
    data: dict[str, Any]
    at: datetime


class News(NamedTuple):
    """An event that is to be stored; see `Event`."""

    tenant_id: UUID
    kind: str
    subject: UUID
    number: int
    #: JSON of an object.
    data: str


async def append(connection: Connection, news: Sequence[News]) -> None:
    """Store what happened, in this order, with the caller's database transaction."""
    for first in range(0, len(news), APPENDED_AT_ONCE):
        columns = zip(*news[first : first + APPENDED_AT_ONCE], strict=True)
        await connection.execute(_SQL["append"], dict(zip(News._fields, map(list, columns), strict=True)))


class Outbox:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def now(self) -> Position:
        """What happens from now on is after this, and what is stored below it is complete."""
        row = await self._database.fetch_one(_SQL["now"])
        assert row is not None
        return Position(int(row[0]))

    async def horizon(self) -> Position:
        """Rows below this may have been removed."""
        row = await self._database.fetch_one(_SQL["horizon"])
        assert row is not None
        return Position(int(row[0]))

    async def of_tenant(self, tenant_id: UUID, after: Position, until: Position, limit: int) -> list[Event]:
        """The first ``limit`` events after one position and before another."""
        params = _range(after, until, limit) | {"tenant_id": tenant_id}
        return [_event(row) for row in await self._database.fetch(_SQL["of_tenant"], params)]

    async def of_tenants(
        self, tenants: Sequence[UUID], after: Position, until: Position, limit: int
    ) -> list[Event]:
        """`of_tenant` of several at once."""
        params = _range(after, until, limit) | {"tenants": list(tenants)}
        return [_event(row) for row in await self._database.fetch(_SQL["of_tenants"], params)]

    async def prune(self, keep_hours: int) -> int:
        """Remove what is older, in pieces; returns how much. Any number of processes may do this at a time."""
        removed = 0
        while True:
            params = {"hours": keep_hours, "limit": PRUNED_AT_ONCE}
            row = await self._database.fetch_one(_SQL["prune"], params)
            assert row is not None
            gone: int = row[0]
            removed += gone
            if gone < PRUNED_AT_ONCE:
                return removed

    async def run(self, keep_hours: int) -> None:
        """Prune from time to time, until cancelled."""
        while True:
            try:
                await self.prune(keep_hours)
            except ServiceError as error:
                _log.warning("old events stay: %s", error.detail)
            await asyncio.sleep(PRUNE_EVERY_S)


def _range(after: Position, until: Position, limit: int) -> dict[str, Any]:
    return {
        "after": str(after.transaction),
        "sequence": after.sequence,
        "until": str(until.transaction),
        "limit": limit,
    }


def _event(row: TupleRow) -> Event:
    written, sequence, *rest = row
    return Event(Position(int(written), sequence), *rest)
