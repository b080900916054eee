"""Young tables are analysed soon after they fill, so that plans made while they were empty do not stay."""

import asyncio

import psycopg

from neolayer.db.pool import Database
from neolayer.db.statistics import keep_statistics


async def test_a_table_is_analysed_when_it_fills_and_not_again_for_a_few_rows(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as writer:

        async def analysed() -> int:
            cursor = await writer.execute("SELECT analyze_count FROM pg_stat_user_tables WHERE relname = 'things'")
            row = await cursor.fetchone()
            assert row is not None
            return int(row[0])

        async def fill(count: int) -> None:
            await writer.execute("INSERT INTO things SELECT g FROM generate_series(1, %s) g", (count,))
            await writer.execute("SELECT pg_stat_force_next_flush()")

        await writer.execute("CREATE TABLE things (id int)")
        database = Database(database_url)
        await database.open()
        keeping = [asyncio.create_task(keep_statistics(database)) for _ in range(2)]
        try:
            await fill(2_000)
            async with asyncio.timeout(10):
                while not await analysed():
                    await asyncio.sleep(0.05)
            cursor = await writer.execute("SELECT reltuples FROM pg_class WHERE relname = 'things'")
            assert await cursor.fetchone() == (2_000,)
            await asyncio.sleep(1.5)
            before = await analysed()
            await fill(100)
            await asyncio.sleep(2)
            assert await analysed() == before
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
            await database.close()
