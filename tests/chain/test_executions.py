"""What a node tells of a block's executions by itself: all of it, and none of another block's."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import msgspec
import pytest

from neolayer.chain.executions import Hearing
from neolayer.chain.follower import BlockFollower
from neolayer.chain.rpc import Block
from neolayer.chain.scripts import build_script
from neolayer.core.types import Hash256
from tests.proxy import NodeProxy

from .conftest import Key, NewClient, NewNode, Node, build
from .test_follower import Ledger, following, until

SYMBOL = build_script([{"contract": "GasToken", "method": "symbol"}])
ABORT, NOP = b"\x38", b"\x21"
#: A buffer of 65,535 bytes that stays on the stack.
LARGE = b"\x02\xff\xff\x00\x00\x88"

type Event = dict[str, Any]


@pytest.fixture
async def proxy(node: Node) -> AsyncIterator[NodeProxy]:
    proxy = NodeProxy(node.devnet.rpc_url)
    await proxy.start()
    yield proxy
    await proxy.close()


@pytest.fixture
def follow(proxy: NodeProxy, client_of: NewClient) -> Callable[[], tuple[Ledger, BlockFollower]]:
    def make() -> tuple[Ledger, BlockFollower]:
        ledger = Ledger()
        return ledger, BlockFollower(client_of([proxy.url]), ledger)

    return make


type Follow = Callable[[], tuple[Ledger, BlockFollower]]


async def send(node: Node, key: Key, *scripts: bytes) -> list[Hash256]:
    """At once, so that they come into one block, or two."""
    prices = {SYMBOL: None, ABORT: 100_000}
    transactions = [await build(node.rpc, key, script, system_fee=prices.get(script)) for script in scripts]
    raws = [key.sign(transaction, node.devnet.network) for transaction in transactions]
    outcomes = await node.rpc.send_raw_transactions(raws)
    assert {getattr(outcome, "kind", outcome) for outcome in outcomes} == {"accepted"}
    return [transaction.hash for transaction in transactions]


async def block_of(ledger: Ledger, transaction: Hash256) -> Block:
    await until(lambda: any(transaction in block.transactions for block in ledger.blocks))
    return next(block for block in ledger.blocks if transaction in block.transactions)


async def test_executions_come_in_order_and_before_their_block(
    node: Node, rich: Key, proxy: NodeProxy, follow: Follow
) -> None:
    """OnPersist, the transactions, PostPersist, the block: and each says what the application log says."""
    order: list[str] = []

    def note(event: Event) -> list[Event]:
        told = event["params"][0]
        order.append(f"{told['trigger']} {told['container']}" if "trigger" in told else told["hash"])
        return [event]

    proxy.events = note
    ledger, follower = follow()
    async with following(follower):
        await until(lambda: follower.connected == "websocket")
        sent = await send(node, rich, SYMBOL, ABORT, SYMBOL)
        blocks = {(await block_of(ledger, hash_)).index: await block_of(ledger, hash_) for hash_ in sent}
    for index, block in blocks.items():
        told = [f"OnPersist {block.hash}", *(f"Application {hash_}" for hash_ in block.transactions)]
        told += [f"PostPersist {block.hash}", str(block.hash)]
        first = order.index(told[0])
        assert order[first : first + len(told)] == told
        for hash_ in block.transactions:
            assert ledger.heard[index].of_transaction(hash_) == await node.rpc.application_log(hash_)
    faulted = ledger.heard[(await block_of(ledger, sent[1])).index].of_transaction(sent[1])
    assert faulted is not None
    assert not faulted.halted
    assert faulted.exception


async def test_an_execution_that_is_not_told_is_missing_and_no_other(
    node: Node, rich: Key, proxy: NodeProxy, follow: Follow
) -> None:
    dropped: list[str] = []

    def drop(event: Event) -> list[Event]:
        if not dropped and event["params"][0].get("trigger") == "Application":
            dropped.append(event["params"][0]["container"])
            return []
        return [event]

    ledger, follower = follow()
    async with following(follower):
        await until(lambda: follower.connected == "websocket")
        proxy.events = drop
        sent = await send(node, rich, SYMBOL, SYMBOL, SYMBOL)
        for hash_ in sent:
            heard = ledger.heard[(await block_of(ledger, hash_)).index].of_transaction(hash_)
            assert (heard is None) == (str(hash_) in dropped)
    assert len(dropped) == 1


async def test_one_that_is_told_twice_or_under_another_name_or_unreadably_is_not_believed(
    node: Node, rich: Key, proxy: NodeProxy, follow: Follow
) -> None:
    """What a node says of a transaction cannot be checked; which of them it speaks of must be plain."""
    stranger = str(Hash256(bytes([7]) * 32))
    spoilt: dict[str, str] = {}

    def spoil(event: Event) -> list[Event]:
        told = event["params"][0]
        if told.get("trigger") != "Application" or len(spoilt) == 3:
            return [event]
        if len(spoilt) == 2:
            spoilt[told["container"]] = "unreadable"
            return [event | {"params": [told | {"exception": "\ud800"}]}]
        if not spoilt:
            spoilt[told["container"]] = "twice"
            return [event, event]
        spoilt[told["container"]] = "renamed"
        return [event | {"params": [told | {"container": stranger}]}]

    ledger, follower = follow()
    async with following(follower):
        await until(lambda: follower.connected == "websocket")
        proxy.events = spoil
        messages = follower.messages
        sent = await send(node, rich, SYMBOL, SYMBOL, SYMBOL, SYMBOL)
        for hash_ in sent:
            heard = ledger.heard[(await block_of(ledger, hash_)).index].of_transaction(hash_)
            assert (heard is None) == (str(hash_) in spoilt)
        assert follower.connected == "websocket"
        assert follower.messages > messages + 4
    assert sorted(spoilt.values()) == ["renamed", "twice", "unreadable"]


@pytest.mark.parametrize("stream", ["transaction_executed", "block_added"])
async def test_a_node_that_refuses_a_subscription(
    node: Node, rich: Key, proxy: NodeProxy, follow: Follow, stream: str
) -> None:
    """One that tells of blocks only is followed all the same; one that does not even that is left."""
    proxy.no_subscription_to = stream
    ledger, follower = follow()
    async with following(follower):
        if stream == "block_added":
            await until(lambda: "no subscription to blocks" in (follower.error or ""))
            return
        await until(lambda: follower.connected == "websocket")
        (hash_,) = await send(node, rich, SYMBOL)
        block = await block_of(ledger, hash_)
        assert ledger.heard[block.index].of_transaction(hash_) is None
        assert follower.connected == "websocket"


@pytest.mark.parametrize("trouble", ["cut", "missed"])
async def test_a_break_within_a_block_leaves_nothing_half_heard(
    node: Node, rich: Key, proxy: NodeProxy, follow: Follow, trouble: str
) -> None:
    """After its executions and before it the connection is cut, or the node says that it left events out."""
    broken: list[str] = []

    def break_off(event: Event) -> list[Event]:
        told = event["params"][0]
        if broken or not told.get("tx"):
            return [event]
        broken.append(told["hash"])
        if trouble == "cut":
            proxy.cut_websockets()
            return []
        return [{"jsonrpc": "2.0", "method": "event_missed", "params": []}, event]

    ledger, follower = follow()
    async with following(follower):
        await until(lambda: follower.connected == "websocket")
        proxy.events = break_off
        (hash_,) = await send(node, rich, SYMBOL)
        block = await block_of(ledger, hash_)
        assert broken == [str(block.hash)]
        assert ledger.heard[block.index].of_transaction(hash_) is None
        # From then on they are heard again.
        await until(lambda: follower.connected == "websocket")
        (hash_,) = await send(node, rich, SYMBOL)
        assert ledger.heard[(await block_of(ledger, hash_)).index].of_transaction(hash_) is not None
    await ledger.is_the_chain_of(node.rpc)


async def test_nothing_is_heard_of_blocks_that_are_fetched(node: Node, rich: Key) -> None:
    """A transaction may be in two competing blocks of a private chain: only the block that was told counts."""
    ledger = Ledger()
    (hash_,) = await send(node, rich, SYMBOL)
    log = await node.devnet.wait(node.rpc, hash_)
    index = await node.rpc.transaction_height(log.hash)
    async with following(BlockFollower(node.rpc, ledger, start_height=index)):
        block = await block_of(ledger, hash_)
    assert ledger.heard[block.index].of_transaction(hash_) is None


async def told_of_a_block(node: Node, key: Key) -> tuple[Block, list[msgspec.Raw]]:
    """A block with a transaction, and the parameters of the events of its executions."""
    websocket_url = node.devnet.rpc_url.replace("http", "ws") + "/ws"
    async with aiohttp.ClientSession() as session, session.ws_connect(websocket_url) as websocket:
        subscribe = {"jsonrpc": "2.0", "id": 1, "method": "subscribe", "params": ["transaction_executed"]}
        await websocket.send_json(subscribe)
        await websocket.receive()
        (hash_,) = await send(node, key, SYMBOL)
        told: list[Any] = []
        while not (str(hash_) in [one["container"] for one in told] and told[-1]["trigger"] == "PostPersist"):
            told.append((await websocket.receive_json(timeout=5))["params"][0])
    height = await node.rpc.transaction_height(hash_)
    assert height is not None
    first = max(index for index, one in enumerate(told) if one["trigger"] == "OnPersist")
    return await node.rpc.get_block(height), [msgspec.Raw(json.dumps([one]).encode()) for one in told[first:]]


async def test_executions_count_for_the_block_that_they_were_told_of(node: Node, rich: Key) -> None:
    block, told = await told_of_a_block(node, rich)
    (hash_,) = block.transactions
    competing = Hash256(bytes([1]) * 32)

    def heard(events: list[msgspec.Raw], of: Hash256, hearing: Hearing | None = None) -> bool:
        hearing = hearing or Hearing()
        for event in events:
            hearing.hear(event)
        return hearing.take(of).of_transaction(hash_) is not None

    assert heard(told, block.hash)
    assert not heard(told, competing)
    assert not heard(told[1:], block.hash), "its beginning was not heard"
    hearing = Hearing()
    assert not heard(told, competing, hearing)
    assert not heard([], block.hash, hearing), "what was taken is forgotten"
    size = sum(len(memoryview(event)) for event in told)
    assert heard(told, block.hash, Hearing(max_bytes=size))
    bounded = Hearing(max_bytes=size - 1)
    assert not heard(told, block.hash, bounded), "more than is remembered"
    assert not heard(told, block.hash, bounded)
    unreadable = msgspec.Raw(bytes(told[1]).replace(b'"HALT"', b'"\\ud800"'))
    assert not heard([told[0], unreadable, *told[2:]], block.hash)


async def test_a_consumer_that_is_too_slow_for_the_events_loses_no_block(new_node: NewNode) -> None:
    """The node leaves out what it cannot get rid of and says so; blocks are fetched then, and heard later on."""
    node, key = await new_node(), Key()
    await node.devnet.wait(node.rpc, await node.devnet.fund(node.rpc, key.account, 500 * 10**8))

    async def fill(script: bytes, count: int) -> set[Hash256]:
        template = await build(node.rpc, key, script, valid_until_block=await node.rpc.block_count() + 200)
        several = [replace(template, nonce=number) for number in range(count)]
        raws = [key.sign(one, node.devnet.network) for one in several]
        outcomes = await node.rpc.send_raw_transactions(raws)
        assert {getattr(outcome, "kind", outcome) for outcome in outcomes} == {"accepted"}
        return {one.hash for one in several}

    class Slow(Ledger):
        """Stands still at its first block until it may go on."""

        def __init__(self) -> None:
            super().__init__()
            self.stands, self.may_go_on = asyncio.Event(), asyncio.Event()

        async def process(self, block: Block, executions: Any) -> None:
            self.stands.set()
            await self.may_go_on.wait()
            await super().process(block, executions)

    def seen() -> set[Hash256]:
        return {hash_ for block in ledger.blocks for hash_ in block.transactions}

    ledger = Slow()
    follower = BlockFollower(node.rpc, ledger)
    async with following(follower):
        await ledger.stands.wait()
        # The network's buffers are full with the first, and the node's own, of 1,024 events, with the others.
        sent = await fill(LARGE * 10, 25)
        await node.next_block()
        sent |= await fill(SYMBOL, 2_000)
        await node.reach(await node.rpc.block_count() + 6)
        ledger.may_go_on.set()
        await until(lambda: sent <= seen())
        full = [block for block in ledger.blocks if block.transactions]
        unheard = [block for block in full if not ledger.heard[block.index].by_container]
        assert unheard, "events were left out"
        last = await fill(SYMBOL + NOP, 5)
        await until(lambda: last <= seen())
        for block in ledger.blocks:
            if last & set(block.transactions):
                assert all(ledger.heard[block.index].of_transaction(hash_) for hash_ in block.transactions)
    await ledger.is_the_chain_of(node.rpc)
