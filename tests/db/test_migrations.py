"""The schema is what the migrations make of an empty database, and nothing else."""

import re
import subprocess
from pathlib import Path

import psycopg
import pytest

from neolayer.db.migrations import Migration, MigrationError, migrate, migrations
from neolayer.supervisor.postgres import binaries

SCHEMA = Path(__file__).parent / "schema.sql"


def dump(url: str) -> str:
    """pg_dump's schema without what differs from run to run."""
    text = subprocess.run(
        [str(binaries() / "pg_dump"), "--schema-only", "--no-owner", "--no-privileges", url],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lines = [line for line in text.splitlines() if line and not re.match(r"--|SET |SELECT pg_catalog|\\", line)]
    return "\n".join(lines) + "\n"


async def test_replaying_all_migrations_gives_the_recorded_schema(database_url: str) -> None:
    """After a new migration: remove schema.sql, run this test, and look at what it writes."""
    await migrate(database_url)
    schema = dump(database_url)
    if not SCHEMA.exists():
        SCHEMA.write_text(schema)
        pytest.fail(f"wrote {SCHEMA}: look at it and commit it")
    assert schema == SCHEMA.read_text()


async def test_a_second_run_applies_nothing(database_url: str) -> None:
    assert await migrate(database_url) == migrations()
    assert await migrate(database_url) == []


async def test_a_changed_migration_is_refused(database_url: str) -> None:
    await migrate(database_url)
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("UPDATE schema_migrations SET checksum = 'x' WHERE number = 1")
    with pytest.raises(MigrationError, match="was changed"):
        await migrate(database_url)


async def test_a_database_of_a_newer_version_is_refused(database_url: str) -> None:
    await migrate(database_url)
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("INSERT INTO schema_migrations VALUES (9999, 'future', 'x')")
    with pytest.raises(MigrationError, match="upgrade neolayer"):
        await migrate(database_url)


async def test_a_failing_migration_leaves_nothing_half_done(database_url: str) -> None:
    broken = [Migration(1, "broken", b"CREATE TABLE half (id int); SELECT 1 / 0;")]
    with pytest.raises(MigrationError, match="0001_broken"):
        await migrate(database_url, broken)
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        row = await (await connection.execute("SELECT to_regclass('half')")).fetchone()
        assert row == (None,)


async def test_what_waits_through_the_upgrade_keeps_the_order_of_its_ids(database_url: str) -> None:
    """The first was written again since it came, so it lies behind the others in the table."""
    await migrate(database_url, [migration for migration in migrations() if migration.number < 10])
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute("SET session_replication_role = replica")
        insert = """
            INSERT INTO transactions
                (tenant_id, id, wallet_id, idempotency_key, request_hash, calls, script, call_count, priority,
                 valid_for_blocks, grouping, on_expiry, speed, network, rank_at, state, fifo_key)
            VALUES
                (gen_random_uuid(), %s, gen_random_uuid(), %s, '', '[]', '', 1, 1,
                 10, 'auto', 'end', 'standard', 1, now(), 'queued', 'orders')"""
        ids = [f"00000000-0000-7000-8000-00000000000{number}" for number in range(1, 5)]
        for id in ids[:3]:
            await connection.execute(insert, (id, id))
        await connection.execute("UPDATE transactions SET tries = tries + 1 WHERE id = %s", (ids[0],))
        await migrate(database_url)
        await connection.execute(insert, (ids[3], ids[3]))
        rows = await (await connection.execute("SELECT id::text FROM transactions ORDER BY arrival")).fetchall()
        assert [id for (id,) in rows] == ids
