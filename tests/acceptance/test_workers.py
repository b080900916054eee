"""Several API and worker processes on one queue: stopped past leases, scaled in the middle of a batch, killed."""

import asyncio
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
from aiohttp import web
from perf.effects import gas_transfers

from neolayer.chain.payload import parse_account
from neolayer.db.pool import Database
from neolayer.transactions.pool import scale
from tests.chain.conftest import Node
from tests.conftest import ended
from tests.proxy import NodeProxy
from tests.system import System, new_receiver

SEED = 20261126


class GatedNode(NodeProxy):
    """Keeps the next request of one method until it is let go."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.open()

    def open(self) -> None:
        self._method = ""
        self.reached = asyncio.Event()
        self.let_go = asyncio.Event()

    def close_for(self, method: str) -> None:
        self.open()
        self._method = method

    async def _forward(self, request: web.Request) -> web.Response:
        body = await request.json()
        method = body[0]["method"] if isinstance(body, list) else body["method"]
        if method == self._method:
            self._method, let_go = "", self.let_go
            self.reached.set()
            await let_go.wait()
        return await super()._forward(request)


class Stand:
    """Two API processes and a worker on a node behind a gate."""

    def __init__(self, system: System, gate: GatedNode, node: Node, database: Database) -> None:
        self.system = system
        self.gate = gate
        self.node = node
        self.database = database

    async def submit(self, receiver: str, amounts: range) -> list[str]:
        """Transfers, half of which may share on-chain transactions; their ids."""
        views = await asyncio.gather(
            *(
                self.system.transfer(
                    "default",
                    receiver,
                    amount,
                    idempotency_key=f"{receiver}-{amount}",
                    group="auto" if amount % 2 else "never",
                    status=None,
                )
                for amount in amounts
            )
        )
        return [view["id"] for view in views]

    async def confirmed(self, ids: list[str]) -> None:
        for id in ids:
            assert (await self.system.settled(id))["state"] == "confirmed"

    async def effects(self, receiver: str) -> Counter[int]:
        """Amounts that the chain shows, counted past the service."""
        return Counter(
            one.amount for one in await gas_transfers(self.node.devnet.rpc_url) if one.receiver == receiver
        )

    async def attempts(self, ids: list[str]) -> list[int]:
        """How many on-chain transactions were signed for each."""
        rows = await self.database.fetch(
            b"SELECT count(*) FROM transaction_attempt_intents WHERE transaction_id = ANY(%(ids)s::uuid[])"
            b" GROUP BY transaction_id",
            {"ids": ids},
        )
        return [count for (count,) in rows]

    def processes(self, part: str) -> list[psutil.Process]:
        return [process for process in self.system.processes() if part in process.cmdline()]


@pytest.fixture(scope="module")
async def stand(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    node = Node(tmp_path_factory.mktemp("devnet"))
    gate = GatedNode(node.devnet.rpc_url)
    system = None
    try:
        await node.start()
        await gate.start()
        # A stopped process finds its answers when it goes on, and not that they came too late.
        settings = {"rpc_urls": gate.url, "api_workers": "2", "rpc_timeout_s": "30"}
        system = System(tmp_path_factory.mktemp("system"), **settings)
        wallet = parse_account((await system.start())["wallet_address"])
        system.rpc_url = node.devnet.rpc_url
        await node.devnet.wait(node.rpc, await node.devnet.fund(node.rpc, wallet, 1000 * 10**8))
        database = Database(system.database_url)
        await database.open()
        try:
            yield Stand(system, gate, node, database)
        finally:
            await database.close()
    finally:
        if system:
            await ended(system)
        await gate.close()
        await node.close()


@asynccontextmanager
async def another_worker(system: System) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "neolayer", "worker"),
        env=system.environ_of_parts,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert b"ready" in await process.stdout.readline()
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.mark.parametrize("at", ["invokescript", "sendrawtransaction"])
async def test_a_worker_that_stood_still_past_its_lease_stores_and_sends_nothing_twice(
    stand: Stand, at: str
) -> None:
    """It stops between leased and stored, or between stored and sent; another takes all of it up."""
    system, gate, receiver = stand.system, stand.gate, new_receiver()
    await scale(stand.database, 0)
    ids = await stand.submit(receiver, range(1, 21))
    gate.close_for(at)
    await scale(stand.database, 1)
    async with asyncio.timeout(10):
        await gate.reached.wait()
    (still,) = stand.processes("worker")
    still.suspend()
    try:
        async with another_worker(system):
            await stand.confirmed(ids)
    finally:
        gate.let_go.set()
        still.resume()
    # It has one batch at a time, so what comes after shows that it is done with that one.
    after = await stand.submit(receiver, range(100, 101))
    await stand.confirmed(after)
    assert (still.is_running(), stand.processes("worker")) == (True, [still])
    assert await stand.effects(receiver) == Counter([*range(1, 21), 100])
    assert await stand.attempts([*ids, *after]) == [1] * 21


async def test_a_pool_scaled_to_zero_in_the_middle_of_a_batch_ends_with_it(stand: Stand) -> None:
    gate, receiver = stand.gate, new_receiver()
    await scale(stand.database, 0)
    leased = await stand.submit(receiver, range(1, 11))
    gate.close_for("invokescript")
    await scale(stand.database, 1)
    async with asyncio.timeout(10):
        await gate.reached.wait()
    await scale(stand.database, 0)
    gate.let_go.set()
    await stand.confirmed(leased)
    later = await stand.submit(receiver, range(11, 21))
    await asyncio.sleep(1.5)
    for id in later:
        assert (await stand.system.get(f"/transactions/{id}"))["state"] == "queued"
    await scale(stand.database, 3)
    await stand.confirmed(later)
    assert await stand.effects(receiver) == Counter(range(1, 21))


async def test_two_api_and_three_worker_processes_and_one_killed_have_one_effect_each(stand: Stand) -> None:
    system, receiver = stand.system, new_receiver()
    moment = random.Random(SEED).uniform(0.2, 1.0)  # noqa: S311 - a seeded moment
    await scale(stand.database, 4)
    assert sum(len(api.children()) for api in stand.processes("api")) >= 2
    amounts = range(1, 301)
    async with another_worker(system) as second, another_worker(system):
        submitting = asyncio.create_task(stand.submit(receiver, amounts))
        await asyncio.sleep(moment)
        second.kill()
        ids = await submitting
        # The same keys again, at whichever process.
        assert await stand.submit(receiver, amounts) == ids
        await stand.confirmed(ids)
    assert len(set(ids)) == len(amounts)
    assert await stand.effects(receiver) == Counter(amounts), f"killed after {moment:.3f} s, seed {SEED}"
