"""A long queue of transfers against the private network's blocks: how full they get, and what a transaction costs.

The queue is filled while the pool of workers has size 0; then the pool is scaled and the clock starts. Everything
runs on this machine: node, database, enclave, worker, API.

    python -m perf.queue --transfers 30000 --grouping off
"""

import argparse
import asyncio
import collections
import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psutil
from tests.system import RECEIVER, System

from neolayer.chain.payload import parse_account
from neolayer.chain.scripts import GAS, build_script, transfer
from neolayer.core.ids import uuid7
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.supervisor import leftovers
from neolayer.transactions.pool import scale
from perf.metered import MeteredNode

SQL: Final = load_queries("neolayer.transactions")
#: Transactions that a block of the private network takes.
CAPACITY: Final = 512
#: GAS that a wallet gets; a transfer costs some 0.012.
FUNDS: Final = 20_000
#: How the parts' command lines are known.
MARKS: Final = {
    "worker": " worker",
    "api": " api",
    "enclave": "neolayer_enclave",
    "postgres": "postgres",
    "node": "neogo",
}


@dataclass(frozen=True, slots=True)
class Drained:
    """How a queue of transfers became confirmed."""

    count: int
    seconds: float
    #: On-chain transactions of ours in each block from the first that has one to the last.
    blocks: tuple[int, ...]
    #: Processor time of each part for each transfer; ms.
    cpu_ms: dict[str, float]
    #: Commits for each transfer.
    commits: float
    #: JSON-RPC calls that the node answered.
    calls: collections.Counter[str]

    @property
    def per_second(self) -> float:
        return self.count / self.seconds

    @property
    def share(self) -> float:
        """Of the blocks' capacity over the busy period; the first block and the last are partly outside it."""
        busy = self.blocks[1:-1] or self.blocks
        return sum(busy) / (len(busy) * CAPACITY)

    def lines(self) -> list[str]:
        return [
            f"{self.count} transfers confirmed in {self.seconds:.1f} s: {self.per_second:.0f}/s",
            f"{sum(self.blocks)} on-chain transactions in {len(self.blocks)} blocks:"
            f" {' '.join(map(str, self.blocks))}",
            f"busy period: {self.share:.1%} of {CAPACITY} a block",
            "CPU ms a transfer: " + ", ".join(f"{part} {cost:.3f}" for part, cost in self.cpu_ms.items()),
            f"commits a transfer: {self.commits:.3f}",
            f"RPC calls a transfer: {self.calls.total() / self.count:.3f}"
            f" ({', '.join(f'{method} {calls}' for method, calls in self.calls.most_common(6))})",
        ]


class Stand:
    """A node and a whole system on it whose wallet ``default`` is rich, with a way to its database."""

    def __init__(self, node: MeteredNode, system: System, database: Database, wallet: dict[str, Any]) -> None:
        self.node = node
        self.system = system
        self.database = database
        self.wallet = wallet

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, node: MeteredNode, home: Path, **settings: str) -> AsyncIterator["Stand"]:
        """``settings``: of the system, as `System` takes them."""
        system = System(home, rpc_urls=node.devnet.rpc_url, **{"lease_s": "10"} | settings)
        try:
            await system.start()
            wallet = await system.get("/wallets/default")
            funding = await node.devnet.fund(node.rpc, parse_account(wallet["address"]), FUNDS * 10**8)
            await node.devnet.wait(node.rpc, funding)
            database = Database(system.database_url)
            await database.open()
            try:
                yield cls(node, system, database, wallet)
            finally:
                await database.close()
        finally:
            try:
                await system.stop()
            finally:
                await leftovers.end(system.home)

    # --- what is measured ---------------------------------------------------------------------------------------

    async def drain(self, count: int, workers: int) -> Drained:
        """Fill the queue while nobody works on it, then let it go; returns when all are confirmed."""
        await scale(self.database, 0)
        await self.fill(count)
        await self.database.execute(b"ANALYZE")
        first_block = int(await self.system.rpc("getblockcount"))
        cpu, commits, calls = self._cpu(), await self._commits(), await self.node.calls()
        begun = time.monotonic()
        await scale(self.database, workers)
        await self.confirmed()
        seconds = time.monotonic() - begun
        calls_after, commits_after, cpu_after = await self.node.calls(), await self._commits(), self._cpu()
        rows = await self.database.fetch(
            b"SELECT block_index, count(*) FROM transaction_attempts WHERE block_index >= %(first)s"
            b" GROUP BY 1 ORDER BY 1",
            {"first": first_block},
        )
        sizes = dict(rows)
        return Drained(
            count,
            seconds,
            tuple(sizes.get(index, 0) for index in range(min(sizes), max(sizes) + 1)),
            {part: (cpu_after[part] - cpu[part]) * 1000 / count for part in MARKS},
            (commits_after - commits) / count,
            calls_after - calls,
        )

    async def fill(self, count: int) -> None:
        """Put so many transfers of the wallet into the queue, past the API."""
        row = await self.database.fetch_one(
            b"SELECT tenant_id FROM wallets WHERE id = %(id)s", {"id": self.wallet["id"]}
        )
        assert row is not None
        call = dict(transfer(GAS, parse_account(self.wallet["address"]), parse_account(RECEIVER), 1))
        rows = [_intent(UUID(str(row[0])), self.wallet["id"], call, amount) for amount in range(1, count + 1)]
        async with self.database.transaction() as connection:
            await connection.cursor().executemany(SQL["insert"], rows)

    async def confirmed(self) -> None:
        """Wait until nothing is on its way.

        Raises:
            AssertionError: something ended otherwise.
        """
        unfinished: bytes = (
            b"SELECT EXISTS (SELECT FROM transactions WHERE state = 'sent')"
            b" OR EXISTS (SELECT FROM transactions WHERE state = 'signed')"
            b" OR EXISTS (SELECT FROM transactions WHERE state = 'queued')"
        )
        while (row := await self.database.fetch_one(unfinished)) and row[0]:
            await asyncio.sleep(0.1)
        states = await self.database.fetch(b"SELECT DISTINCT state FROM transactions WHERE state <> 'confirmed'")
        assert not states, states

    def _cpu(self) -> dict[str, float]:
        """Seconds of processor that each part has used."""
        used = dict.fromkeys(MARKS, 0.0)
        # PostgreSQL's processes overwrite their environment, by which the others are found.
        found = [*self.system.processes(), self.node.process]
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

    async def _commits(self) -> int:
        row = await self.database.fetch_one(
            b"SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        )
        assert row is not None
        return int(row[0])


def _intent(tenant: UUID, wallet: str, call: dict[str, Any], amount: int) -> dict[str, Any]:
    args = list(call["args"])
    args[2] = {"type": "Integer", "value": str(amount)}
    calls = [call | {"args": args}]
    id = uuid7()
    return {
        "tenant_id": tenant, "id": id, "wallet_id": wallet, "idempotency_key": str(id),
        "request_hash": hashlib.sha256(str(id).encode()).digest(), "calls": json.dumps(calls),
        "script": build_script(calls), "call_count": 1, "priority": 1, "head_start_s": 0, "valid_for_blocks": 1000,
        "max_fee": None, "grouping": "auto", "fifo_key": None, "not_before": None, "not_before_block": None,
        "on_expiry": "end", "speed": "standard", "execution_id": None, "network": None,
    }  # fmt: skip


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[MeteredNode]:
    node = MeteredNode(folder)
    try:
        await node.start()
        yield node
    finally:
        await node.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transfers", type=int, default=30_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--grouping", choices=("on", "off"), default="on")
    options = parser.parse_args()
    grouping = "1" if options.grouping == "on" else "0"
    with tempfile.TemporaryDirectory() as folder:
        async with (
            running(Path(folder) / "node") as node,
            Stand.open(node, Path(folder) / "system", opt_transaction_grouping=grouping) as stand,
        ):
            print("\n".join((await stand.drain(options.transfers, options.workers)).lines()))


if __name__ == "__main__":
    asyncio.run(main())
