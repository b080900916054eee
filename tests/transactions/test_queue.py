"""Who is served when: turns, priorities, FIFO keys, schedules, pauses, bounds, and wallets short of GAS."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from neolayer.chain.rpc import RpcClient, SendOutcome
from neolayer.chain.scripts import GAS
from neolayer.core.errors import InvalidRequest
from neolayer.core.types import gas_parse
from neolayer.db.pool import Database
from neolayer.transactions.backpressure import QueueBound
from neolayer.transactions.errors import QueueFull, TenantPaused
from neolayer.transactions.model import TransactionView
from neolayer.transactions.pool import pool_size, scale
from neolayer.transactions.queue import Batch, Queue
from neolayer.wallets.service import WalletPaused
from tests.chain.conftest import Node
from tests.enclave_process.host import Process
from tests.transactions.conftest import Room, room_on
from tests.transactions.test_grouping import second_tenant
from tests.transactions.test_pipeline import running, stranger, until


def queue_of(room: Room, lease_s: float = 5.0) -> Queue:
    return Queue(room.parts.database, lease_s=lease_s)


async def in_state(room: Room, view: TransactionView, *states: str) -> bool:
    return (await room.show(view)).state in states


async def age(database: Database, view: TransactionView, seconds: float) -> None:
    """As if it had been waiting for so much longer."""
    await database.execute(
        b"UPDATE transactions SET rank_at = rank_at - make_interval(secs => %(s)s) WHERE id = %(id)s",
        {"s": seconds, "id": view.id},
    )


async def test_one_transaction_does_not_wait_behind_anothers_thousands(room: Room, node: Node) -> None:
    other = await second_tenant(room.parts, node)
    many = [await room.submit(stranger(), 1) for _ in range(60)]
    single = await other.submit(stranger(), 1)
    batch = await queue_of(room).lease(10)
    leased = [intent.id for intent in batch.intents]
    assert single.id in leased
    assert {view.id for view in many[:9]} < set(leased)


async def test_tenants_share_a_batch_evenly_whatever_their_priorities(room: Room, node: Node) -> None:
    other = await second_tenant(room.parts, node)
    for _ in range(20):
        await room.submit(stranger(), 1, priority="critical")
        await other.submit(stranger(), 1, priority="low")
    batch = await queue_of(room).lease(10)
    assert sum(intent.tenant_id == room.tenant_id for intent in batch.intents) == 5


async def test_priorities_go_first_and_age_lifts_what_waits(room: Room) -> None:
    low = await room.submit(stranger(), 1, priority="low")
    normal = await room.submit(stranger(), 1)
    high = await room.submit(stranger(), 1, priority="high")
    critical = await room.submit(stranger(), 1, priority="critical")
    queue = queue_of(room)
    order = [(await queue.lease(1)).intents[0].id for _ in range(2)]
    assert order == [critical.id, high.id]
    await age(room.parts.database, low, 59)
    assert (await queue.lease(1)).intents[0].id == normal.id
    late = await room.submit(stranger(), 1)
    await age(room.parts.database, low, 2)
    assert (await queue.lease(1)).intents[0].id == low.id
    assert (await queue.lease(1)).intents[0].id == late.id


async def test_leases_of_a_dead_worker_end_and_those_of_a_live_one_are_renewed(room: Room) -> None:
    views = [await room.submit(stranger(), 1) for _ in range(2)]
    queue = queue_of(room, lease_s=0.4)
    dead, alive = await queue.lease(1), await queue.lease(1)
    for _ in range(6):
        await asyncio.sleep(0.1)
        await queue.renew([alive.lease])
    await queue.wake(None)
    again = await queue.lease(10)
    assert [intent.id for intent in again.intents] == [dead.intents[0].id]
    assert {dead.intents[0].id, alive.intents[0].id} == {view.id for view in views}


async def test_what_was_leased_when_the_clock_went_back_is_served_when_it_comes_back(room: Room) -> None:
    """As if it had been accepted and leased while the database's clock was two hours ahead."""
    kept = await room.submit(stranger(), 1)
    planned = await room.submit(stranger(), 1, not_before=datetime.now(UTC) - timedelta(minutes=1))
    worker = queue_of(room)
    batch = await worker.lease(10)
    assert {intent.id for intent in batch.intents} == {kept.id, planned.id}
    await room.parts.database.execute(
        b"UPDATE transactions SET rank_at = rank_at + interval '2 hours',"
        b" lease_until = lease_until + interval '2 hours',"
        b" available_at = coalesce(not_before, available_at + interval '2 hours')"
    )
    await queue_of(room).wake(None)
    await worker.postpone(batch.lease, [(intent, 0.0, None) for intent in batch.intents])
    again = await worker.lease(10)
    assert {intent.id for intent in again.intents} == {kept.id, planned.id}


async def test_what_a_worker_signed_after_its_lease_ended_is_not_stored(room: Room) -> None:
    """It was too slow; another has the intent."""
    await room.submit(stranger(), 1)
    slow = room.pipeline(lease_s=0.1)
    queue = queue_of(room, lease_s=0.1)
    late = await queue.lease(1)
    await asyncio.sleep(0.2)
    await queue.wake(None)
    other = await queue.lease(1)
    assert await slow._preparer.prepare(late, 1) == []
    assert len(await slow._preparer.prepare(other, 1)) == 1


async def test_of_one_fifo_key_the_next_is_sent_when_the_one_before_is_final(room: Room) -> None:
    to = stranger()
    views = [await room.submit(to, 1, fifo_key="orders") for _ in range(4)]
    free = await room.submit(to, 1, fifo_key="other")
    seen: list[list[str]] = []

    async def done() -> bool:
        states = [(await room.show(view)).state for view in views]
        seen.append(states)
        return set(states) == {"confirmed"}

    async with running(room.monitor.run, room.pipeline().run):
        await until(done, 30)
    for states in seen:
        assert sum(state in ("signed", "sent") for state in states) <= 1
        assert states == sorted(states, key=("confirmed", "sent", "signed", "queued").index)
    blocks = [(await room.show(view)).block or 0 for view in views]
    assert blocks == sorted(set(blocks))
    assert (await room.show(free)).block == blocks[0]


async def test_two_workers_release_one_of_a_key_only(room: Room) -> None:
    for _ in range(10):
        await room.submit(stranger(), 1, fifo_key="one")
    queues = [queue_of(room) for _ in range(4)]
    await asyncio.gather(*(queue.wake(0) for queue in queues))
    batches: list[Batch] = await asyncio.gather(*(queue.lease(10) for queue in queues))
    assert sum(len(batch.intents) for batch in batches) == 1


async def test_a_scheduled_transaction_is_in_no_earlier_block(room: Room, node: Node) -> None:
    height = await node.rpc.block_count() - 1
    at = datetime.now(UTC) + timedelta(seconds=2)
    by_block = await room.submit(stranger(), 1, not_before_block=height + 12)
    by_time = await room.submit(stranger(), 1, not_before=at)
    now = await room.submit(stranger(), 1)

    async def done() -> bool:
        return all([await in_state(room, view, "confirmed") for view in (by_block, by_time, now)])

    async with running(room.monitor.run, room.pipeline().run):
        await until(done, 30)
    by_block, by_time, now = [await room.show(view) for view in (by_block, by_time, now)]
    assert now.block is not None
    assert now.block < height + 8
    assert by_block.block is not None
    assert height + 12 <= by_block.block <= height + 15
    assert by_time.block_time is not None
    assert at - timedelta(seconds=0.3) <= by_time.block_time <= at + timedelta(seconds=3)
    sent = (await room.parts.transactions.events(room.tenant_id, by_time.id))[1]
    assert sent.at >= at


async def test_a_block_that_comes_before_the_time_delays_nothing(room: Room) -> None:
    """Both were asked for: the later one decides, and the rank is that of the time."""
    at = datetime.now(UTC) + timedelta(days=1)
    view = await room.submit(stranger(), 1, not_before=at, not_before_block=3)
    await queue_of(room).wake(10)
    row = await room.parts.database.fetch_one(
        b"SELECT rank_at, held FROM transactions WHERE id = %(id)s", {"id": view.id}
    )
    assert row == (at, False)


async def test_a_paused_wallet_signs_nothing_and_goes_on_when_resumed(room: Room) -> None:
    wallets = room.parts.wallets
    view = await room.submit(stranger(), 1)
    late = await queue_of(room).lease(1)
    paused = await wallets.pause(room.tenant_id, "default", "key under review")
    assert (await wallets.view(paused)).paused is not None
    # Leased before the pause, it is not stored after it.
    pipeline = room.pipeline()
    assert await pipeline._preparer.prepare(late, 1) == []
    with pytest.raises(WalletPaused, match="key under review"):
        await room.submit(stranger(), 1)
    async with running(room.monitor.run, pipeline.run):
        await asyncio.sleep(2)
        assert await in_state(room, view, "queued")
        await wallets.resume(room.tenant_id, "default")

        async def confirmed() -> bool:
            return await in_state(room, view, "confirmed")

        await until(confirmed)


async def test_a_paused_tenant_is_refused_and_left_alone_while_others_go_on(room: Room, node: Node) -> None:
    other = await second_tenant(room.parts, node)
    view, theirs = await room.submit(stranger(), 1), await other.submit(stranger(), 1)
    await room.parts.database.execute(
        b"UPDATE tenants SET paused_at = now(), pause_reason = 'unpaid' WHERE id = %(id)s", {"id": room.tenant_id}
    )
    with pytest.raises(TenantPaused, match="unpaid"):
        await room.submit(stranger(), 1)

    async def confirmed() -> bool:
        return await in_state(other, theirs, "confirmed")

    async with running(room.monitor.run, room.pipeline().run):
        await until(confirmed)
        assert await in_state(room, view, "queued")


async def test_a_full_queue_refuses_until_there_is_room(room: Room) -> None:
    bound = QueueBound(room.parts.database, tenant_max=3, total_max=100)
    for _ in range(3):
        await bound.admit(room.tenant_id)
        await room.submit(stranger(), 1)
    with pytest.raises(QueueFull) as refusal:
        await bound.admit(room.tenant_id)
    assert (refusal.value.status, refusal.value.code) == (429, "queue_full")
    assert refusal.value.extra["retry_after_s"] > 0
    await room.parts.database.execute(b"UPDATE transactions SET state = 'rejected'")
    await asyncio.sleep(0.15)
    await bound.admit(room.tenant_id)
    total = QueueBound(room.parts.database, tenant_max=100, total_max=0)
    with pytest.raises(QueueFull):
        await total.admit(room.tenant_id)


async def test_transactions_are_counted_by_state_and_history_for_a_part_of_the_time_only(room: Room) -> None:
    transactions = room.parts.transactions
    await room.submit(stranger(), 1)
    assert await transactions.count_by_state() == {"queued": 1}
    async with room.parts.database.transaction() as connection:
        # Nobody can count while this lasts: the next count of history is a long time away.
        await connection.execute(b"LOCK TABLE transactions")
        transactions._final_good_until = 0.0
        counting = asyncio.create_task(transactions.count_by_state())
        await asyncio.sleep(0.3)
        await connection.execute(b"UPDATE transactions SET state = 'confirmed'")
    assert await counting == {"confirmed": 1}
    await room.parts.database.execute(b"UPDATE transactions SET state = 'faulted'")
    await room.submit(stranger(), 1)
    assert await transactions.count_by_state() == {"confirmed": 1, "queued": 1}
    transactions._final_good_until = 0.0
    assert await transactions.count_by_state() == {"faulted": 1, "queued": 1}


async def test_the_pool_is_scaled_while_it_runs(room: Room) -> None:
    database = room.parts.database
    assert await pool_size(database) is None
    await scale(database, 0)
    view = await room.submit(stranger(), 1)
    async with running(room.parts.notices.run, room.monitor.run, room.pipeline().run):
        await asyncio.sleep(1.5)
        assert await in_state(room, view, "queued")
        await scale(database, 2)

        async def confirmed() -> bool:
            return await in_state(room, view, "confirmed")

        await until(confirmed)
    assert await pool_size(database) == 2


class Counting(RpcClient):
    """Remembers what nodes said to transactions."""

    kinds: Sequence[str] = ()

    async def send_raw_transactions(self, many):  # type: ignore[no-untyped-def]
        outcomes = await super().send_raw_transactions(many)
        self.kinds = [*self.kinds, *(o.kind if isinstance(o, SendOutcome) else "none" for o in outcomes)]
        return outcomes


@pytest.mark.parametrize("group", ["auto", "never"])
async def test_a_nearly_empty_wallet_waits_and_earns_no_refusal(room: Room, node: Node, group: str) -> None:
    """Each transfer to a new account costs about 0.11 GAS; there is enough for about four at a time."""
    wallet = await room.parts.wallets.create(room.tenant_id, "thin")
    await node.devnet.wait(node.rpc, await node.devnet.fund(node.rpc, wallet.script_hash, 3 * 10**8 // 2))
    thin = Room(room.parts, node, room.tenant_id, wallet)
    rpc = Counting([node.devnet.rpc_url])
    try:
        receivers = [stranger() for _ in range(12)]
        views = [await thin.submit(to, 3_000_000, group=group, wallet="thin") for to in receivers]
        pipelines = [thin.pipeline(), thin.pipeline()]
        for pipeline in pipelines:
            pipeline._sender._rpc = rpc

        async def waits() -> bool:
            shown = [await thin.show(view) for view in views]
            causes = [view.cause["code"] for view in shown if view.state == "queued" and view.cause]
            return "waiting_for_gas" in causes

        async def settled_or_poor() -> bool:
            shown = [await thin.show(view) for view in views]
            return all(
                view.state == "confirmed" or (view.cause and view.cause["code"] == "waiting_for_gas")
                for view in shown
            )

        async with running(thin.monitor.run, *(pipeline.run for pipeline in pipelines)):
            await until(waits)
            await until(settled_or_poor, 30)
            some = [await thin.show(view) for view in views]
            assert {"confirmed", "queued"} == {view.state for view in some}
            await node.devnet.wait(node.rpc, await node.devnet.fund(node.rpc, wallet.script_hash, 10**8))

            async def all_confirmed() -> bool:
                return all([await in_state(thin, view, "confirmed") for view in views])

            await until(all_confirmed, 30)
        assert set(rpc.kinds) == {"accepted"}
    finally:
        await rpc.aclose()
    done = [await thin.show(view) for view in views]
    fees = sum(gas_parse(view.system_fee or "") + gas_parse(view.network_fee or "") for view in done)
    funded = 3 * 10**8 // 2 + 10**8
    assert await node.rpc.balance_of(GAS, wallet.script_hash) == funded - fees - 12 * 3_000_000
    reserved = await room.parts.database.fetch(
        b"SELECT reserved FROM wallet_reservations WHERE wallet_id = %(id)s", {"id": wallet.id}
    )
    assert reserved == [(0,)]


async def test_intents_for_another_network_are_not_signed(
    node: Node, enclave: Process, database_url: str, valkey_url: str
) -> None:
    async with room_on(node, enclave, database_url, valkey_url) as room:
        view = await room.submit(stranger(), 1)
        await room.parts.database.execute(b"UPDATE transactions SET network = network + 1")

        async def told() -> bool:
            cause = (await room.show(view)).cause
            return cause is not None and cause["code"] == "wrong_network"

        async with running(room.pipeline().run):
            await until(told)
        assert await in_state(room, view, "queued")


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+10:00", "9999-12-31T23:59:59-10:00"])
async def test_a_time_that_no_calendar_shows_is_refused(room: Room, time: str) -> None:
    """The database holds it, and nobody could read it back, nor any list that has it in it."""
    with pytest.raises(InvalidRequest, match="not_before"):
        await room.submit(stranger(), 1, not_before=datetime.fromisoformat(time))
    assert await room.parts.transactions.recent(room.tenant_id, None, UUID(int=2**128 - 1), 5) == []
