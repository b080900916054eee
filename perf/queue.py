"""A long queue of transfers against the private network's blocks: how full they get, and what a transaction costs.

The queue is filled while the pool of workers has size 0; then the pool is scaled and the clock starts. Everything
runs on this machine: node, database, enclave, worker, API.

    python -m perf.queue --transfers 30000 --grouping off
"""

import argparse
import asyncio
import hashlib
import json
import tempfile
import time
from pathlib import Path
from uuid import UUID

import psutil
from tests.system import RECEIVER, System

from neolayer.chain.devnet import Devnet
from neolayer.chain.payload import parse_account
from neolayer.chain.rpc import RpcClient
from neolayer.chain.scripts import GAS, build_script, transfer
from neolayer.core.ids import uuid7
from neolayer.core.types import Hash160
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.supervisor import leftovers
from neolayer.transactions.pool import scale

SQL = load_queries("neolayer.transactions")
MARKS = {
    "worker": " worker",
    "api": " api",
    "enclave": "neolayer_enclave",
    "postgres": "postgres",
    "node": "neo-go",
}


def cpu_by_part(system: System) -> dict[str, float]:
    """Seconds of processor that each part has used."""
    used = dict.fromkeys(MARKS, 0.0)
    # PostgreSQL's processes overwrite their environment, by which the others are found.
    found = system.processes()
    for process in {*found, *(child for one in found for child in one.children(recursive=True))}:
        try:
            line = f"{process.name()} {' '.join(process.cmdline())}"
            times = process.cpu_times()
        except psutil.Error:
            continue
        for part, mark in MARKS.items():
            if mark in line:
                used[part] += times.user + times.system
                break
    return used


async def fill(database: Database, wallet: dict[str, str], count: int) -> None:
    sender = parse_account(wallet["address"])
    row = await database.fetch_one(b"SELECT tenant_id FROM wallets WHERE id = %(id)s", {"id": wallet["id"]})
    assert row is not None
    tenant = UUID(str(row[0]))
    call = dict(transfer(GAS, sender, parse_account(RECEIVER), 1))
    rows = [_intent(tenant, wallet["id"], call, amount) for amount in range(1, count + 1)]
    async with database.transaction() as connection:
        await connection.cursor().executemany(SQL["insert"], rows)


def _intent(tenant: UUID, wallet: str, call: dict[str, object], amount: int) -> dict[str, object]:
    args = list(call["args"])  # type: ignore[call-overload]
    args[2] = {"type": "Integer", "value": str(amount)}
    calls = [call | {"args": args}]
    id = uuid7()
    return {
        "tenant_id": tenant, "id": id, "wallet_id": wallet, "idempotency_key": str(id),
        "request_hash": hashlib.sha256(str(id).encode()).digest(), "calls": json.dumps(calls),
        "script": build_script(calls), "call_count": 1, "priority": 1, "head_start_s": 0, "valid_for_blocks": 1000,
        "max_fee": None, "grouping": "auto", "fifo_key": None, "not_before": None, "not_before_block": None,
        "on_expiry": "end", "execution_id": None, "network": None,
    }  # fmt: skip


async def statements(database: Database) -> int:
    row = await database.fetch_one(b"SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
    assert row is not None
    return int(row[0])


async def fund(system: System, account: Hash160, datoshi: int) -> None:
    devnet = Devnet.open(system.home / "devnet", int(system.environ["NEOLAYER_DEVNET_RPC_PORT"]))
    rpc = RpcClient([system.rpc_url])
    try:
        await devnet.wait(rpc, await devnet.fund(rpc, account, datoshi))
    finally:
        await rpc.aclose()


async def measure(system: System, count: int, workers: int) -> list[str]:
    wallet = await system.get("/wallets/default")
    await fund(system, parse_account(wallet["address"]), 20_000 * 10**8)
    database = Database(system.database_url)
    await database.open()
    try:
        await scale(database, 0)
        await fill(database, wallet, count)
        await database.execute(b"ANALYZE")
        first_block, begun = int(await system.rpc("getblockcount")), time.monotonic()
        before, commits = cpu_by_part(system), await statements(database)
        await scale(database, workers)
        while True:
            row = await database.fetch_one(b"SELECT count(*) FROM transactions WHERE state <> 'confirmed'")
            assert row is not None
            if row[0] == 0:
                break
            await asyncio.sleep(0.5)
        seconds = time.monotonic() - begun
        after, committed = cpu_by_part(system), await statements(database) - commits
        ours = await database.fetch(
            b"SELECT block_index, count(*) FROM transaction_attempts WHERE block_index >= %(first)s"
            b" GROUP BY 1 ORDER BY 1",
            {"first": first_block},
        )
    finally:
        await database.close()
    sizes = [number for _, number in ours]
    span = ours[-1][0] - ours[0][0] + 1
    busy = sizes[1:-1] or sizes
    lines = [f"{count} transfers confirmed in {seconds:.1f} s: {count / seconds:.0f}/s"]
    lines.append(f"{sum(sizes)} on-chain transactions in {span} blocks; {' '.join(map(str, sizes))}")
    lines.append(f"busy period: {sum(busy) / ((span - 2 or 1) * 512):.1%} of 512 a block")
    costs = {part: (after[part] - before[part]) * 1000 / count for part in MARKS}
    lines.append("CPU ms a transfer: " + ", ".join(f"{part} {cost:.3f}" for part, cost in costs.items()))
    lines.append(f"commits a transfer: {committed / count:.3f}")
    return lines


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transfers", type=int, default=30_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--grouping", choices=("on", "off"), default="on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        grouping = "1" if options.grouping == "on" else "0"
        system = System(Path(directory), opt_transaction_grouping=grouping, lease_s="10")
        try:
            await system.start()
            print("\n".join(await measure(system, options.transfers, options.workers)))
        finally:
            try:
                await system.stop()
            finally:
                await leftovers.end(system.home)


if __name__ == "__main__":
    asyncio.run(main())
