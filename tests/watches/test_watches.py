"""A watch is told of each notification once and in the chain's order, whatever the follower lives through."""

import asyncio
import base64
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from neolayer.accounts.service import ensure_tenant
from neolayer.chain.scripts import GAS, build_script, transfer
from neolayer.core.types import Hash160, Hash256
from neolayer.db.migrations import migrate
from neolayer.watches.errors import TooManyWatches, WatchExists, WatchNotFound
from neolayer.watches.service import MAX_WATCHES
from tests.chain.conftest import Key, NewNode, Node, build
from tests.enclave_process.host import Process
from tests.proxy import NodeProxy
from tests.transactions.conftest import Room, room_on
from tests.transactions.test_pipeline import running, stranger, until
from tests.watches.conftest import facts, of_chain, told

ABORT = b"\x38"


async def followed(room: Room, height: int) -> None:
    """Wait until this block is processed."""

    async def there() -> bool:
        cursor = await room.monitor.load_cursor()
        return cursor is not None and cursor.index >= height

    await until(there)


async def send(node: Node, key: Key, script: bytes, **prices: int) -> Hash256:
    transaction = await build(node.rpc, key, script, **prices)
    outcome = await node.rpc.send_raw_transaction(key.sign(transaction, node.devnet.network))
    assert outcome.kind == "accepted"
    return transaction.hash


def pay(key: Key, to: Hash160, datoshi: int) -> bytes:
    return build_script([dict(transfer(GAS, key.account, to, datoshi))])


async def test_a_transfer_is_told_with_its_state(room: Room, rich: Key) -> None:
    to = stranger()
    async with running(room.monitor.run):
        await until(_connected(room))
        watch = await room.parts.watches.create(room.tenant_id, "GasToken", "Transfer")
        hash_ = await send(room.node, rich, pay(rich, to, 1234))
        log = await room.node.devnet.wait(room.node.rpc, hash_)
        height = await room.node.rpc.transaction_height(log.hash)
        assert height is not None
        await followed(room, height)
    (event,) = [event for event in await told(room) if event["txid"] == str(hash_)]
    sender, receiver, amount = event["state"]["value"]
    assert base64.b64decode(sender["value"]) == rich.account.data
    assert base64.b64decode(receiver["value"]) == to.data
    assert amount == {"type": "Integer", "value": "1234"}
    block = await room.node.rpc.get_block(height)
    assert event["id"] == f"{block.hash}-{block.transactions.index(hash_) + 1}-0"
    assert (event["watch"], event["contract"], event["event"]) == (str(watch.id), str(GAS), "Transfer")
    assert (event["block"], event["block_hash"], event["trigger"]) == (height, str(block.hash), "Application")


@pytest.mark.parametrize("way", ["told", "dropped", "polled", "of logs", "caught up"])
async def test_everything_is_told_in_the_order_of_the_chain(
    behind_proxy: Room, proxy: NodeProxy, rich: Key, way: str
) -> None:
    """What blocks do themselves too; by events, by asking for what no event told, by asking for all; of the logs
    where nodes do not tell a block's notifications."""
    room, node = behind_proxy, behind_proxy.node
    proxy.websockets = way not in ("polled", "of logs")
    if way == "of logs":
        refusal = {"code": -32601, "message": "Method not found"}
        proxy.objection = lambda method, _: refusal if method == "getblocknotifications" else None
    if way == "dropped":
        chance = random.Random(4)  # noqa: S311 - seeded
        proxy.events = lambda event: [event] if "tx" in event["params"][0] or chance.random() < 0.5 else []

    async def load() -> None:
        for amount in range(1, 9):
            await send(node, rich, pay(rich, stranger(), amount))
            if amount % 3 == 0:
                await node.next_block()
        await node.next_block()

    async with running(room.monitor.run):
        await until(_connected(room))
        watch = await room.parts.watches.create(room.tenant_id, str(GAS), None)
        if way != "caught up":
            await load()
            await followed(room, height := await node.rpc.block_count() - 1)
            if way == "told":
                assert proxy.calls["getapplicationlog"] == 0
    if way == "caught up":
        await load()
        room.__post_init__()
        async with running(room.monitor.run):
            await followed(room, height := await node.rpc.block_count() - 1)
    events = [event for event in await told(room) if event["block"] <= height]
    expected = await of_chain(node, watch.after_block + 1, height, event=None)
    # Blocks that were made while the watch was being made may be left out.
    expected = [one for one in expected if one["block"] >= events[0]["block"]]
    assert events[0]["block"] <= watch.after_block + 2
    assert facts(events) == expected
    assert {one["trigger"] for one in expected} == {"OnPersist", "Application", "PostPersist"}
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))


async def test_a_result_of_many_megabytes_holds_up_nobody(room: Room, rich: Key) -> None:
    """A stranger's script leaves a long buffer on its stack 800 times: more than is read of an event."""
    monster = b"\x02" + (65_000).to_bytes(4, "little") + b"\x88" + b"\x4a" * 800  # PUSHINT32 NEWBUFFER DUP…
    node = room.node
    async with running(room.monitor.run):
        await until(_connected(room))
        await room.parts.watches.create(room.tenant_id, "GasToken", "Transfer")
        sent = [
            await send(node, rich, pay(rich, stranger(), 1)),
            await send(node, rich, monster, system_fee=20_000_000),
            await send(node, rich, pay(rich, stranger(), 2)),
        ]
        await node.next_block()
        heights = [await node.rpc.transaction_height(one) for one in sent]
        await followed(room, max(height or 0 for height in heights) + 1)
    assert {str(sent[0]), str(sent[2])} <= {event["txid"] for event in await told(room)}


async def test_a_follower_that_is_cut_down_at_any_moment_tells_each_once(room: Room, rich: Key) -> None:
    chance = random.Random(20)  # noqa: S311 - seeded
    node = room.node
    watch = await room.parts.watches.create(room.tenant_id, "GasToken", "Transfer")

    async def load() -> None:
        for amount in range(1, 60):
            await send(node, rich, pay(rich, stranger(), amount))

    async with running(room.monitor.run):
        await until(_connected(room))
    loading = asyncio.create_task(load())
    for _ in range(25):
        room.__post_init__()
        following = asyncio.create_task(room.monitor.run())
        await asyncio.sleep(chance.uniform(0, 0.4))
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
    await loading
    await node.next_block()
    room.__post_init__()
    async with running(room.monitor.run):
        await followed(room, height := await node.rpc.block_count() - 1)
    events = [event for event in await told(room) if event["block"] <= height]
    assert facts(events) == await of_chain(node, events[0]["block"], height)
    assert len([event for event in events if event["trigger"] == "Application"]) == 59
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert (await room.parts.watches.show(room.tenant_id, str(watch.id))).events >= len(events)


async def test_what_faults_is_not_told(room: Room, rich: Key) -> None:
    """It notified, and then everything it did was undone."""
    async with running(room.monitor.run):
        await until(_connected(room))
        await room.parts.watches.create(room.tenant_id, "GasToken", "Transfer")
        faulted = await send(room.node, rich, pay(rich, stranger(), 5) + ABORT, system_fee=20_000_000)
        halted = await send(room.node, rich, pay(rich, stranger(), 5))
        assert not (await room.node.devnet.wait(room.node.rpc, faulted)).halted
        await room.node.devnet.wait(room.node.rpc, halted)
        await followed(room, await room.node.rpc.block_count() - 1)
    assert {str(faulted), str(halted)} & {event["txid"] for event in await told(room)} == {str(halted)}


async def test_a_watch_tells_its_tenant_what_it_was_made_for_until_it_ends(room: Room, rich: Key) -> None:
    other = await ensure_tenant(room.parts.database, "other")
    watches, node = room.parts.watches, room.node
    async with running(room.monitor.run):
        await until(_connected(room))
        mine = await watches.create(room.tenant_id, "GasToken", "Transfer")
        theirs = await watches.create(other, "GasToken", None)
        await watches.create(other, "GasToken", "Never")
        await watches.create(other, "NeoToken", "Transfer")
        first = await send(node, rich, pay(rich, stranger(), 5))
        await node.devnet.wait(node.rpc, first)
        await followed(room, await node.rpc.block_count() - 1)
        with pytest.raises(WatchNotFound):
            await watches.delete(other, str(mine.id))
        await watches.delete(room.tenant_id, str(mine.id))
        second = await send(node, rich, pay(rich, stranger(), 6))
        await node.devnet.wait(node.rpc, second)
        await followed(room, await node.rpc.block_count() - 1)
    sent = {str(first), str(second)}
    assert {event["watch"] for event in await told(room)} == {str(mine.id)}
    assert {event["txid"] for event in await told(room)} & sent == {str(first)}
    assert {event["watch"] for event in await told(room, other)} == {str(theirs.id)}
    assert {event["txid"] for event in await told(room, other)} & sent == sent


async def test_watches_are_bounded_and_none_is_made_twice(room: Room) -> None:
    watches = room.parts.watches
    made = await asyncio.gather(
        *(watches.create(room.tenant_id, "GasToken", f"event{number}") for number in range(MAX_WATCHES + 5)),
        return_exceptions=True,
    )
    refused = [one for one in made if isinstance(one, TooManyWatches)]
    assert len(refused) == 5
    with pytest.raises(TooManyWatches):
        await watches.create(room.tenant_id, "NeoToken", None)
    last = (await watches.recent(room.tenant_id, _HIGHEST, 1))[0]
    await watches.delete(room.tenant_id, str(last.id))
    again = await watches.create(room.tenant_id, "GasToken", last.event)
    with pytest.raises(WatchExists) as refusal:
        await watches.create(room.tenant_id, str(GAS), last.event)
    assert refusal.value.extra == {"watch": str(again.id)}


async def test_blocks_that_a_private_chain_lost_are_taken_back(
    new_node: NewNode, enclave: Process, database_url: str, valkey_url: str
) -> None:
    """Whoever strikes out what `chain_rewound` names has what the chain says."""
    node = await new_node()
    await migrate(database_url)
    async with room_on(node, enclave, database_url, valkey_url) as room:
        watch = await room.parts.watches.create(room.tenant_id, "GasToken", "Transfer")
        async with running(room.monitor.run):
            for _ in range(8):
                await until(_connected(room))
                await node.reach(await node.rpc.block_count() + 6)
                node.kill()
                await node.start()
                if any(event["kind"] == "chain_rewound" for event in await told(room)):
                    break
            # Above what was followed before the kill.
            await node.reach(height := await node.rpc.block_count() + 8)
            await followed(room, height)
        events = await told(room)
        expected = await of_chain(node, watch.after_block + 1, height)
    kept: list[dict[str, Any]] = []
    for event in events:
        if event["kind"] == "chain_rewound":
            assert event["watch"] == str(watch.id)
            kept = [one for one in kept if one["block"] <= event["block"]]
        else:
            kept.append(event)
    assert "chain_rewound" in {event["kind"] for event in events}, "kills at four blocks a second lose some"
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    kept = [event for event in kept if event["block"] <= height]
    assert facts(kept) == [one for one in expected if one["block"] >= kept[0]["block"]]


_HIGHEST: Any = "ffffffff-ffff-ffff-ffff-ffffffffffff"


def _connected(room: Room) -> Callable[[], Awaitable[bool]]:
    async def connected() -> bool:
        return room.monitor.follower.connected != "down"

    return connected
