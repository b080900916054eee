"""What a broken connection looks like to those who use it."""

import asyncio

import pytest

from neolayer.db.pool import Database, DatabaseUnavailable


async def stand_still(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 100")
        await asyncio.sleep(0.5)
        await connection.execute("SELECT 1")


async def test_who_stood_still_in_a_transaction_too_long_finds_the_database_unavailable(
    database_url: str,
) -> None:
    database = Database(database_url)
    await database.open()
    try:
        with pytest.raises(DatabaseUnavailable, match="idle-in-transaction"):
            await stand_still(database)
        assert await database.fetch_one(b"SELECT 1") == (1,)
    finally:
        await database.close()
