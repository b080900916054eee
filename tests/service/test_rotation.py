"""Rotation: of the sealing key under all secrets, and of a value under a running function."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from neolayer.db.pool import Database
from neolayer.enclave import EnclaveClient, OwnedSecret
from neolayer.secrets.rotation import rotate_seal
from tests.system import System

MANY = 1_000


@asynccontextmanager
async def parts_of(system: System) -> AsyncIterator[tuple[Database, EnclaveClient]]:
    database = Database(system.database_url)
    enclave = EnclaveClient(Path(system.environ_of_parts["NEOLAYER_ENCLAVE_SOCKET"]))
    await database.open()
    try:
        yield database, enclave
    finally:
        await enclave.close()
        await database.close()


async def add_secrets(system: System, database: Database, enclave: EnclaveClient, tenant: str) -> UUID:
    """`MANY` secrets S0000, S0001, … of a new tenant."""
    await system.new_tenant(tenant)
    row = await database.fetch_one(b"SELECT id FROM tenants WHERE name = %(name)s", {"name": tenant})
    assert row is not None
    names = [f"S{number:04}" for number in range(MANY)]
    sealed = await asyncio.gather(
        *(enclave.seal(str(row[0]), name, 1, f"value of {name}".encode(), 0) for name in names)
    )
    async with database.transaction() as connection, connection.cursor() as cursor:
        await cursor.executemany(
            "INSERT INTO secrets (tenant_id, name, version, issued, ciphertext) VALUES (%s, %s, 1, 1, %s)",
            [(row[0], name, ciphertext) for name, ciphertext in zip(names, sealed, strict=True)],
        )
    return UUID(str(row[0]))


async def epochs(database: Database) -> dict[int, int]:
    query = b"SELECT seal_epoch, count(*) FROM secrets WHERE ciphertext IS NOT NULL GROUP BY 1"
    return dict(await database.fetch(query))


async def test_a_thousand_secrets_are_sealed_anew_while_functions_keep_reading_theirs(system: System) -> None:
    await system.request("PUT", "/secrets/STEADY", {"value": "steady"})
    body = {"source": "export default (input, ctx) => ctx.secrets.STEADY", "secrets": ["STEADY"]}
    await system.request("PUT", "/functions/reads-steady", body)
    async with parts_of(system) as (database, enclave):
        tenant = await add_secrets(system, database, enclave, "rotation")
        done = asyncio.Event()
        calls = 0

        async def keep_calling() -> None:
            nonlocal calls
            while not done.is_set():
                assert (await system.invoke("reads-steady"))[0] == "steady"
                calls += 1

        caller = asyncio.create_task(keep_calling())
        start = time.perf_counter()
        rotation = await rotate_seal(database, enclave)
        seconds = time.perf_counter() - start
        done.set()
        await caller
        print(f"\n{rotation.resealed} secrets sealed anew in {seconds:.2f} s beside {calls} calls")
        assert rotation.unreadable == []
        assert rotation.resealed >= MANY
        assert set(await epochs(database)) == {rotation.epoch}

        # New values are sealed in the epoch that is in use, and each ciphertext opens under its own name.
        await system.request("PUT", "/secrets/STEADY", {"value": "newer"})
        assert set(await epochs(database)) == {rotation.epoch}
        assert (await system.invoke("reads-steady"))[0] == "newer"
        rows = await database.fetch(
            b"SELECT name, version, ciphertext FROM secrets WHERE tenant_id = %(tenant)s", {"tenant": tenant}
        )
        owned = [OwnedSecret(str(tenant), name, version, bytes(text)) for name, version, text in rows]
        for at in range(0, MANY, 100):
            assert None not in await enclave.reseal(rotation.epoch, owned[at : at + 100])


async def test_a_rotation_that_was_killed_is_finished_by_the_next(system: System) -> None:
    command = (sys.executable, "-m", "neolayer", "secrets", "rotate-seal", "--json")
    async with (
        parts_of(system) as (database, enclave),
        await psycopg.AsyncConnection.connect(system.database_url) as blocker,
    ):
        tenant = await add_secrets(system, database, enclave, "killed-rotation")
        before = max(await epochs(database))
        await rotate_seal(database, enclave)
        # One row in the middle is held, so that the rotation stands still there.
        query = "SELECT 1 FROM secrets WHERE tenant_id = %s AND name = 'S0550' FOR UPDATE"
        await blocker.execute(query, [tenant])
        process = await asyncio.create_subprocess_exec(*command, env=system.environ)

        async def stuck() -> bool:
            found = await epochs(database)
            return len(found) == 2 and found[max(found)] >= 500

        await system.eventually(stuck)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await blocker.rollback()

        async def left_alone() -> bool:
            # The statement that the killed process had sent goes on until it is done.
            (others,) = await database.fetch_one(
                b"SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid()"
                b" AND query ILIKE '%UPDATE secrets%'"
            ) or (0,)
            return bool(others == 0)

        await system.eventually(left_alone)
        halfway = await epochs(database)
        assert len(halfway) == 2
        # Meanwhile a value is set, and another is damaged.
        await database.execute(
            b"UPDATE secrets SET ciphertext = '\\x0102' WHERE tenant_id = %(tenant)s AND name = 'S0999'",
            {"tenant": tenant},
        )
        await system.request("PUT", "/secrets/WHILE_ROTATING", {"value": "v"})

        process = await asyncio.create_subprocess_exec(
            *command, env=system.environ, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        done: dict[str, Any] = json.loads(out)
        assert done["resumed"]
        assert done["epoch"] == max(halfway) > before
        assert done["resealed"] == halfway[min(halfway)] - 1
        assert done["unreadable"] == [f"{tenant}/S0999"]
        await database.execute(b"DELETE FROM secrets WHERE tenant_id = %(tenant)s", {"tenant": tenant})
        assert set(await epochs(database)) == {done["epoch"]}


async def test_a_call_sees_every_value_that_was_set_before_it_began(system: System) -> None:
    await system.request("PUT", "/secrets/COUNTER", {"value": "0"})
    source = """export default async (input, ctx) => {
      const before = ctx.secrets.COUNTER;
      await new Promise((resolve) => setTimeout(resolve, 5));
      return [Number(before), Number(ctx.secrets.COUNTER)];
    }"""
    await system.request("PUT", "/functions/reads-counter", {"source": source, "secrets": ["COUNTER"]})
    latest, ended = 0, False
    seen = set()

    async def keep_calling() -> None:
        while not ended:
            least = latest
            first, second = (await system.invoke("reads-counter"))[0]
            assert first == second >= least
            seen.add(first)

    callers = [asyncio.create_task(keep_calling()) for _ in range(4)]
    for number in range(1, 21):
        await system.request("PUT", "/secrets/COUNTER", {"value": str(number)})
        latest = number
        await asyncio.sleep(0.02)
    ended = True
    await asyncio.gather(*callers)
    assert len(seen) > 5
