"""The outbox on a database of its own, with a reader beside it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID, uuid4

import psycopg
import pytest

from neolayer.accounts.service import ensure_tenant
from neolayer.db.pool import Database
from neolayer.events.feed import Feed
from neolayer.events.outbox import Outbox
from neolayer.events.stream import EventStreams

INSERT = (
    b"INSERT INTO outbox (tenant_id, kind, subject, number, data)"
    b" VALUES (%(tenant)s, 'thing', %(subject)s, %(number)s, json_build_object('number', %(number)s::int))"
)


@dataclass
class News:
    database: Database
    outbox: Outbox
    feed: Feed
    streams: EventStreams
    tenant: UUID
    other: UUID

    async def write(self, number: int, *, tenant: UUID | None = None, subject: UUID | None = None) -> None:
        params = {"tenant": tenant or self.tenant, "subject": subject or uuid4(), "number": number}
        await self.database.execute(INSERT, params)

    @contextlib.asynccontextmanager
    async def open_writer(self, number: int) -> AsyncIterator[psycopg.AsyncConnection[tuple[object, ...]]]:
        """A database transaction that has written one row and is not committed."""
        async with await psycopg.AsyncConnection.connect(self.database.url) as connection:
            await connection.execute(INSERT, {"tenant": self.tenant, "subject": uuid4(), "number": number})
            yield connection


@pytest.fixture
async def news(migrated_url: str) -> AsyncIterator[News]:
    database = Database(migrated_url)
    await database.open()
    outbox = Outbox(database)
    feed = Feed(outbox)
    reader = asyncio.create_task(feed.run())
    tenants = [await ensure_tenant(database, name) for name in ("one", "other")]
    yield News(database, outbox, feed, EventStreams(outbox, feed), *tenants)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await database.close()
