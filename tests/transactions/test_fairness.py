"""One tenant whose transactions no block takes holds up nobody else's: windows, and turns at sending."""

import base64
import math
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web

from neolayer.accounts.service import ensure_tenant
from neolayer.core.ids import uuid7
from neolayer.core.types import Hash160
from neolayer.transactions.queue import WINDOW_BLOCKS, Window
from tests.chain.conftest import NewNode
from tests.enclave_process.host import Process
from tests.proxy import NodeProxy
from tests.transactions.conftest import Room, room_on
from tests.transactions.test_grouping import second_tenant
from tests.transactions.test_pipeline import running, stranger, until
from tests.transactions.test_queue import in_state, queue_of

#: Transactions that a block of the test's network takes.
CAPACITY = 16
WINDOW = WINDOW_BLOCKS * CAPACITY


class LosingNode(NodeProxy):
    """Answers as if it had taken the transactions of one account, and never shows them to the node."""

    loses: Hash160 | None = None
    lost = 0
    #: Refuses them instead, as a full memory pool does.
    full = False

    async def _forward(self, request: web.Request) -> web.Response:
        body = await request.json()
        many = body if isinstance(body, list) else [body]
        if self.loses is None or many[0]["method"] != "sendrawtransaction":
            return await super()._forward(request)
        answers = []
        for one in many:
            if not self._is_lost(one["params"][0]):
                answers.append(await self._passed_on(one))
                continue
            self.lost += 1
            outcome = (
                {"error": {"code": -502, "message": "Memory pool out of capacity"}}
                if self.full
                else {"result": {}}
            )
            answers.append({"jsonrpc": "2.0", "id": one["id"]} | outcome)
        return web.json_response(answers if isinstance(body, list) else answers[0])

    def _is_lost(self, raw: str) -> bool:
        assert self.loses is not None
        return self.loses.data in base64.b64decode(raw)

    async def _passed_on(self, call: dict[str, Any]) -> Any:
        assert self._session is not None
        async with self._session.post(self.target, json=call) as answer:
            return await answer.json(content_type=None)


@pytest.fixture
async def losing(
    new_node: NewNode, enclave: Process, database_url: str, valkey_url: str
) -> AsyncIterator[tuple[Room, Room, LosingNode]]:
    """Two tenants on a node with small blocks; what the first one sends is lost."""
    node = await new_node(MaxTransactionsPerBlock=CAPACITY)
    proxy = LosingNode(node.devnet.rpc_url)
    await proxy.start()
    try:
        async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
            other = await second_tenant(room.parts, node)
            proxy.loses = room.wallet.script_hash
            yield room, other, proxy
    finally:
        await proxy.close()


async def live_of(room: Room) -> int:
    rows = await room.parts.database.fetch(
        b"SELECT count(*) FROM transaction_attempts WHERE tenant_id = %(id)s AND state IN ('signed', 'sent')",
        {"id": room.tenant_id},
    )
    return int(rows[0][0])


@pytest.mark.parametrize("full", [False, True], ids=["lost", "refused for now"])
async def test_transactions_that_no_block_takes_hold_up_their_own_tenant_only(
    losing: tuple[Room, Room, LosingNode], full: bool
) -> None:
    stuck, other, proxy = losing
    proxy.full = full
    waiting = [await stuck.submit(stranger(), 1, group="never") for _ in range(2 * WINDOW)]

    async def window_full() -> bool:
        return await live_of(stuck) >= WINDOW

    async with running(stuck.monitor.run, stuck.pipeline().run):
        await until(window_full)
        height = await stuck.node.rpc.block_count()
        theirs = [await other.submit(stranger(), 1, group="never") for _ in range(2 * CAPACITY)]

        async def confirmed() -> bool:
            return all([await in_state(other, view, "confirmed") for view in theirs])

        await until(confirmed, 20)
        blocks = [(await other.show(view)).block or 0 for view in theirs]
        # The window opens again after its own length, and two blocks hold them.
        assert max(blocks) <= height + 4 * WINDOW_BLOCKS
        assert await live_of(stuck) == WINDOW
        assert [view for view in waiting if await in_state(stuck, view, "confirmed")] == []
        assert proxy.lost >= WINDOW
        # Nothing is lost by it: once blocks take them the rest follows.
        proxy.loses = None

        async def all_confirmed() -> bool:
            return all([await in_state(stuck, view, "confirmed") for view in waiting])

        await until(all_confirmed, 40)
    assert await live_of(stuck) == 0


async def test_a_tenant_has_no_turn_while_its_window_is_full_and_no_more_than_its_rest(
    losing: tuple[Room, Room, LosingNode],
) -> None:
    one, other, _ = losing
    network = (await one.node.rpc.version()).network
    for number in range(6):
        for room in (one, other):
            await room.submit(stranger(), 1, group="auto" if number > 2 else "never")
    queue = queue_of(one)
    first = await queue.lease(4, Window(network, 2, 1))
    assert sum(intent.tenant_id == one.tenant_id for intent in first.intents) == 2
    stored = await one.pipeline()._preparer.prepare(first, 1)
    assert len(stored) == 4
    assert (await queue.lease(4, Window(network, 2, 1))).intents == []
    # What goes alone takes as much room as two that share a transaction; what is leased takes it already.
    second = await queue.lease(20, Window(network, 4, 2))
    assert [intent.groupable for intent in second.intents] == [False, True, True] * 2
    assert (await queue.lease(20, Window(network, 4, 2))).intents == []
    assert len((await queue.lease(20, Window(network, 5, 2))).intents) == 2


async def test_only_what_was_signed_lately_counts_for_all(losing: tuple[Room, Room, LosingNode]) -> None:
    room, _, _ = losing
    network = (await room.node.rpc.version()).network
    for _ in range(3):
        await room.submit(stranger(), 1, group="never")
    await room.pipeline()._preparer.prepare(await queue_of(room).lease(3), 1)

    async def in_flight() -> int:
        return (await queue_of(room).traffic(network, block_capacity=CAPACITY, pooled=0)).in_flight

    async with running(room.monitor.run):
        assert await in_flight() == 3

        async def forgotten() -> bool:
            return await in_flight() == 0

        await until(forgotten)
    signed = await room.parts.database.fetch(b"SELECT DISTINCT signed_at_height FROM transaction_attempts")
    cursor = await room.monitor.load_cursor()
    assert cursor is not None
    assert cursor.index > signed[0][0] + WINDOW_BLOCKS


@pytest.mark.parametrize("seed", range(4))
async def test_a_batch_is_what_reading_the_whole_queue_would_give(room: Room, seed: int) -> None:
    """The statement jumps from wallet to wallet and looks at few rows of each."""
    chance = random.Random(seed)  # noqa: S311 - seeded inputs
    database, limit, begun = room.parts.database, 16, datetime.now(UTC) - timedelta(hours=1)
    due: dict[UUID, list[tuple[datetime, UUID]]] = {}
    for number in range(chance.choice([1, 3, 6])):
        tenant = await ensure_tenant(database, f"tenant-{number}")
        for name in range(chance.choice([1, 4, 30])):
            wallet = (await room.parts.wallets.create(tenant, f"wallet-{name}")).id
            burst = chance.choice([0.1, 100])
            closed = chance.random() < 0.1
            for _ in range(chance.choice([1, 2, 40])):
                rank, later = begun + timedelta(seconds=chance.uniform(0, burst)), chance.random() < 0.2
                id = await put(room, tenant, wallet, rank, later=later)
                if not later and not closed:
                    due.setdefault(tenant, []).append((rank, id))
            if closed:
                await room.parts.wallets.pause(tenant, f"wallet-{name}", "closed")
    turns = [(place, rank, id) for queue in due.values() for place, (rank, id) in enumerate(sorted(queue))]
    most = min(limit, 4 * math.ceil(limit / len(due)))
    expected = [id for place, _, id in sorted(turns) if place < most][:limit]
    batch = await queue_of(room).lease(limit)
    assert {intent.id for intent in batch.intents} == set(expected)
    assert len(batch.intents) == len(expected)


async def put(room: Room, tenant: UUID, wallet: UUID, rank: datetime, *, later: bool) -> UUID:
    """A queued intent, to be signed now or in an hour."""
    id = uuid7()
    await room.parts.database.execute(
        b"INSERT INTO transactions (tenant_id, id, wallet_id, idempotency_key, request_hash, calls, script,"
        b" call_count, priority, valid_for_blocks, state, rank_at, available_at) VALUES (%(tenant)s, %(id)s,"
        b" %(wallet)s, %(id)s::text, '', '[]', '', 1, 1, 100, 'queued', %(rank)s,"
        b" now() + CASE WHEN %(later)s THEN interval '1 hour' ELSE interval '0' END)",
        {"tenant": tenant, "id": id, "wallet": wallet, "rank": rank, "later": later},
    )
    return id
