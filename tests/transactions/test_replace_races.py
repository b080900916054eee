"""Cancels and speed-ups at random moments, on fast blocks: each intent happens once or not at all, as its state
says, and the wallet's balance is what our records add up to, to the last datoshi."""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from neolayer.chain.scripts import GAS
from neolayer.core.types import Hash160, gas_parse
from neolayer.transactions.errors import TooLate
from neolayer.transactions.model import UNFINISHED, TransactionView
from tests.chain.conftest import Node
from tests.enclave_process.host import Process
from tests.proxy import NodeProxy, nothing, sending
from tests.transactions.conftest import Room, room_on
from tests.transactions.test_pipeline import running, until

INTENTS = 30


async def meddle(room: Room, view: TransactionView, rng: random.Random) -> None:
    for _ in range(rng.randrange(4)):
        await asyncio.sleep(rng.random() * 0.2)
        with contextlib.suppress(TooLate):
            if rng.random() < 0.7:
                await room.parts.replacements.cancel(room.tenant_id, view.id, None)
            else:
                await room.parts.replacements.speed_up(room.tenant_id, view.id, "fast", None)


async def hinder(proxy: NodeProxy, rng: random.Random) -> None:
    """Now and then the node hears nothing, or its answers are lost."""
    while True:
        proxy.swallow = sending if rng.random() < 0.3 else nothing
        proxy.drop_answer = sending if rng.random() < 0.3 else nothing
        await asyncio.sleep(rng.random() * 0.3)


async def settled(room: Room, views: list[TransactionView]) -> list[TransactionView]:
    async def all_final() -> bool:
        return all([(await room.show(view)).state not in UNFINISHED for view in views])

    await until(all_final, timeout_s=40)
    return [await room.show(view) for view in views]


@pytest.mark.parametrize("seed", range(2))
async def test_random_cancels_and_speed_ups_leave_one_effect_or_none(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy, seed: int
) -> None:
    rng = random.Random(seed)  # noqa: S311 - repeatable
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        before = await node.rpc.balance_of(GAS, room.wallet.script_hash)
        grouping: dict[str, Any] = {"group": "never"} if seed == 0 else {}
        accounts = [Hash160(os.urandom(20)) for _ in range(INTENTS)]
        parts = room.parts
        work = [parts.notices.run, room.monitor.run, room.pipeline().run, room.pipeline().run]
        async with running(*work):
            hindering = asyncio.ensure_future(hinder(proxy, rng))
            views = []
            meddlers = []
            for account in accounts:
                view = await room.submit(account, 7, valid_for_blocks=40, **grouping)
                views.append(view)
                meddlers.append(asyncio.ensure_future(meddle(room, view, rng)))
                await asyncio.sleep(rng.random() * 0.05)
            await asyncio.gather(*meddlers)
            hindering.cancel()
            proxy.swallow = proxy.drop_answer = nothing
            done = await settled(room, views)
        spent = 0
        for view, account in zip(done, accounts, strict=True):
            balance = await node.rpc.balance_of(GAS, account)
            assert balance == (7 if view.state == "confirmed" else 0), view
            assert view.state in ("confirmed", "cancelled"), view
            spent += balance
            made = await parts.transactions.attempts(room.tenant_id, view.id)
            included = [one for one in made if one.state == "included"]
            assert len(included) == (0 if view.block is None else 1)
            assert not [one for one in made if one.state in ("signed", "sent")]
            spent += sum(gas_parse(one.system_fee) + gas_parse(one.network_fee) for one in included)
        assert before - await node.rpc.balance_of(GAS, room.wallet.script_hash) == spent
        counts = {state: sum(view.state == state for view in done) for state in ("confirmed", "cancelled")}
        assert min(counts.values()) >= 1, counts


async def reaches(room: Room, view: TransactionView, state: str) -> TransactionView:
    async def reached() -> bool:
        return (await room.show(view)).state == state

    await until(reached, timeout_s=20)
    return await room.show(view)


async def test_what_expires_is_rebuilt_only_when_no_attempt_can_come_any_more(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy
) -> None:
    """The first one and its speed-up vanish; the new one is signed past both."""
    proxy.swallow = sending
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        account = Hash160(os.urandom(20))
        view = await room.submit(account, 3, valid_for_blocks=12, on_expiry="rebuild")
        parts = room.parts

        async with running(parts.notices.run, room.monitor.run, room.pipeline().run):
            await reaches(room, view, "sent")
            await node.reach(await node.rpc.block_count() + 1)
            await parts.replacements.speed_up(room.tenant_id, view.id, "fast", None)
            first, second = await parts.transactions.attempts(room.tenant_id, view.id)
            assert first.valid_until_block < second.valid_until_block
            await node.reach(first.valid_until_block)
            proxy.swallow = nothing
            done = await reaches(room, view, "confirmed")
        made = await parts.transactions.attempts(room.tenant_id, view.id)
        assert [one.txid for one in made][:2] == [first.txid, second.txid]
        included = next(one for one in made if one.state == "included")
        assert (done.txid, done.block) == (included.txid, included.block)
        if included.txid != second.txid:
            assert [one.state for one in made] == ["expired", "expired", "included"]
            # Signed when the chain was past both.
            assert included.valid_until_block - 12 >= second.valid_until_block
        assert await node.rpc.balance_of(GAS, account) == 3


async def test_a_transaction_that_vanished_is_signed_anew_when_that_is_asked_for(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy
) -> None:
    proxy.swallow = sending
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        account = Hash160(os.urandom(20))
        view = await room.submit(account, 3, valid_for_blocks=10, on_expiry="rebuild")
        parts = room.parts

        async def rebuilt() -> bool:
            return len(await parts.transactions.attempts(room.tenant_id, view.id)) == 2

        async with running(parts.notices.run, room.monitor.run, room.pipeline().run):
            await reaches(room, view, "sent")
            await until(rebuilt, timeout_s=20)
            proxy.swallow = nothing
            done = await reaches(room, view, "confirmed")
        old, new = await parts.transactions.attempts(room.tenant_id, view.id)
        assert (old.state, new.state, done.txid) == ("expired", "included", new.txid)
        assert new.valid_until_block - 10 >= old.valid_until_block
        states = await room.states(view)
        assert states == ["queued", "signed", "sent", "queued", "signed", "sent", "confirmed"]
        assert await node.rpc.balance_of(GAS, account) == 3


async def test_what_is_to_be_cancelled_is_never_rebuilt(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy
) -> None:
    """Neither the transaction nor its canceller ever reaches a node."""
    proxy.swallow = sending
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        account = Hash160(os.urandom(20))
        view = await room.submit(account, 3, valid_for_blocks=4, on_expiry="rebuild")
        parts = room.parts

        async with running(parts.notices.run, room.monitor.run, room.pipeline().run):
            await reaches(room, view, "sent")
            await parts.replacements.cancel(room.tenant_id, view.id, None)
            await reaches(room, view, "cancelled")
            await node.next_block()
        assert await room.states(view) == ["queued", "signed", "sent", "sent", "cancelled"]
        made = await parts.transactions.attempts(room.tenant_id, view.id)
        assert [one.state for one in made] == ["expired", "expired"]
        assert await node.rpc.balance_of(GAS, account) == 0


@asynccontextmanager
async def being_stored(room: Room, view: TransactionView) -> AsyncIterator[asyncio.Future[None]]:
    """A speed-up whose database transaction has locked the attempts and stored the new one, and cannot end before
    the block does."""
    key = {"tenant": room.tenant_id, "id": view.id}
    async with await psycopg.AsyncConnection.connect(room.parts.database.url) as connection:
        await connection.execute(
            b"SELECT FROM transactions WHERE tenant_id = %(tenant)s AND id = %(id)s FOR UPDATE", key
        )
        replacing = room.parts.replacements.speed_up(room.tenant_id, view.id, "fast", None)
        task = asyncio.ensure_future(replacing)

        async def waits() -> bool:
            rows = await room.parts.database.fetch(
                b"SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                b" AND query LIKE '%cancel_requested_at%'"
            )
            return bool(rows)

        await until(waits)
        yield task
        await connection.rollback()
    await task


async def test_a_speed_up_that_is_stored_while_its_victim_expires_keeps_the_transaction_alive(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy
) -> None:
    proxy.swallow = sending
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        account = Hash160(os.urandom(20))
        view = await room.submit(account, 3, valid_for_blocks=20)
        async with running(room.parts.notices.run, room.monitor.run, room.pipeline().run):
            first = (await reaches(room, view, "sent")).valid_until_block
            assert first is not None
            await node.reach(first - 5)
            async with being_stored(room, view):
                await node.reach(first + 2)
                await asyncio.sleep(0.5)  # the follower waits for the attempt now
            proxy.swallow = nothing
            await reaches(room, view, "confirmed")
        assert "expired" not in await room.states(view)
        made = await room.parts.transactions.attempts(room.tenant_id, view.id)
        assert [one.state for one in made] == ["expired", "included"]
        assert await node.rpc.balance_of(GAS, account) == 3


async def test_a_speed_up_that_is_stored_while_its_victim_is_included_is_given_up(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy
) -> None:
    proxy.swallow = sending
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        account = Hash160(os.urandom(20))
        view = await room.submit(account, 3)
        async with running(room.parts.notices.run, room.monitor.run, room.pipeline().run):
            await reaches(room, view, "sent")
            row = await room.parts.database.fetch_one(b"SELECT raw FROM transaction_attempts")
            assert row is not None
            async with being_stored(room, view):
                await node.rpc.send_raw_transaction(bytes(row[0]))
                await node.reach(await node.rpc.block_count() + 1)
                await asyncio.sleep(0.5)  # the follower waits for the attempt now
            await reaches(room, view, "confirmed")
        made = await room.parts.transactions.attempts(room.tenant_id, view.id)
        assert [one.state for one in made] == ["included", "replaced"]
        assert await node.rpc.balance_of(GAS, account) == 3


@pytest.mark.parametrize(("on_expiry", "end"), [("end", "rejected"), ("rebuild", "confirmed")])
async def test_a_replacement_that_is_refused_after_its_victim_expired_leaves_nothing_behind(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy, on_expiry: str, end: str
) -> None:
    """It was the last attempt of its transaction, though not the one that this was sent with."""
    proxy.swallow = sending
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        account, parts = Hash160(os.urandom(20)), room.parts
        view = await room.submit(account, 3, valid_for_blocks=16, on_expiry=on_expiry)
        async with running(room.pipeline().run):
            sent = await reaches(room, view, "sent")
        assert sent.valid_until_block is not None
        await node.reach(sent.valid_until_block - 8)
        await parts.replacements.speed_up(room.tenant_id, view.id, "fast", None)

        async def expired() -> bool:
            return (await parts.transactions.attempts(room.tenant_id, view.id))[0].state == "expired"

        async def refused() -> bool:
            return (await parts.transactions.attempts(room.tenant_id, view.id))[1].state == "refused"

        async with running(room.monitor.run):
            await until(expired)
        proxy.swallow = nothing
        refusals = iter([{"code": -505, "message": "Policy failed"}])
        proxy.objection = lambda method, _: next(refusals, None) if sending(method) else None
        async with running(room.pipeline(transaction_workers=1).run):
            await until(refused)
            async with running(room.monitor.run):
                await reaches(room, view, end)
        reserved = await parts.database.fetch_one(b"SELECT reserved FROM wallet_reservations")
        assert reserved == (0,)
        assert await node.rpc.balance_of(GAS, account) == (3 if end == "confirmed" else 0)
