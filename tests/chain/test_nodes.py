"""Three real nodes of one network, of which some hang, lag, lie, limit or fail."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from neolayer.chain.asking import fenced
from neolayer.chain.errors import NodeUnavailable, RpcError
from neolayer.chain.follower import BlockFollower
from neolayer.chain.header import hash_of_block
from neolayer.chain.rpc import RpcClient
from neolayer.chain.scripts import GAS, build_script, transfer
from neolayer.chain.views import NodeView
from tests.network import Network, NetworkNode
from tests.proxy import everything, higher_by, nothing, reading, sending

from .conftest import Key, NewClient, NewNode, build
from .test_follower import Ledger, following, until

SYMBOL = build_script([{"contract": "GasToken", "method": "symbol"}])


def shown(client: RpcClient, node: NetworkNode) -> NodeView:
    return next(view for view in client.nodes().nodes if view.url == node.proxy.url)


async def eventually(client: RpcClient, node: NetworkNode, *states: str, timeout_s: float = 10.0) -> NodeView:
    async with asyncio.timeout(timeout_s):
        while shown(client, node).state not in states:
            await asyncio.sleep(0.02)
    return shown(client, node)


async def warmed_up(client: RpcClient, calls: int = 30) -> None:
    """So that the client knows what is usual."""
    await client.pool.probed()
    for _ in range(calls):
        await client.call("getblockcount")


class Reads:
    """Reads without a pause; how long the longest took."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.count = 0

    @classmethod
    @asynccontextmanager
    async def running(cls, read: Callable[[], Awaitable[Any]]) -> AsyncIterator["Reads"]:
        """Any failure of a read is one of the test."""
        reads = cls()

        async def run() -> None:
            while True:
                begun_s = time.monotonic()
                await read()
                reads.longest_s = max(reads.longest_s, time.monotonic() - begun_s)
                reads.count += 1
                await asyncio.sleep(0.01)

        task = asyncio.create_task(run())
        try:
            yield reads
            if task.done():
                task.result()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


# --- hung, cut off, silent ---


@pytest.mark.parametrize("hedge", [True, False])
async def test_reads_go_on_within_two_seconds_when_the_node_hangs(
    network: Network, client_of: NewClient, hedge: bool
) -> None:
    """It accepts connections and answers nothing; with hedging nobody waits for that to be found out."""
    client = client_of(network.urls, hedge=hedge)
    await warmed_up(client)
    hung = network.node_of(client.url)
    async with Reads.running(lambda: client.invoke_script(SYMBOL)) as reads:
        await until(lambda: reads.count > 20)
        hung.proxy.hang()
        before = reads.count
        await until(lambda: client.url != hung.proxy.url)
        await until(lambda: reads.count > before + 20)
    assert reads.longest_s <= (0.5 if hedge else 2.0), reads.longest_s
    assert hung.proxy.held > 0


@pytest.mark.parametrize("fault", ["hang", "mute", "cut"])
async def test_following_goes_on_within_five_seconds(network: Network, client_of: NewClient, fault: str) -> None:
    """When the followed node hangs, leaves its WebSocket open but silent, or is cut from its peers."""
    client = client_of(network.urls)
    ledger = Ledger()
    follower = BlockFollower(client, ledger)
    if fault == "cut":
        network.validator.proxy.websockets = False  # a follower's events, so that it can be cut off
    async with following(follower):
        await until(lambda: len(ledger.blocks) > 2 and follower.connected == "websocket")
        followed = network.node_of(follower.source)
        match fault:
            case "hang":
                followed.proxy.hang()
            case "mute":
                followed.proxy.mute = True
            case "cut":
                await network.cut(followed)
        stopped_s, last = time.monotonic(), ledger.blocks[-1].index
        await until(lambda: ledger.blocks[-1].index > last + 1)
        assert time.monotonic() - stopped_s <= 5.0
        await until(lambda: follower.connected == "websocket" and follower.source != followed.proxy.url)
    if fault == "cut":
        await network.join(followed)
    await ledger.is_the_chain_of(client)


async def test_one_hung_and_one_stale(network: Network, client_of: NewClient) -> None:
    """Both at once: reads by 2 s, following by 5 s, and never a block that the chain does not have."""
    client = client_of(network.urls)
    ledger = Ledger()
    follower = BlockFollower(client, ledger)
    stale = network.followers[1]
    async with following(follower):
        await warmed_up(client)
        await until(lambda: len(ledger.blocks) > 1)
        reader = client.invoke_at_head
        async with Reads.running(lambda: reader(SYMBOL, min_height=ledger.blocks[-1].index)) as reads:
            await network.cut(stale)
            network.validator.proxy.hang()
            stopped_s, last = time.monotonic(), ledger.blocks[-1].index
            await until(lambda: ledger.blocks[-1].index > last + 1)
            moved_s = time.monotonic() - stopped_s
            view = await eventually(client, stale, "lagging")
            await until(lambda: ledger.blocks[-1].index > last + 8)
        assert moved_s <= 5.0, moved_s
        assert reads.longest_s <= 2.0, reads.longest_s
        assert "while other nodes have more" in (view.reason or "") or "behind" in (view.reason or "")
        assert client.url == network.followers[0].proxy.url
    network.validator.proxy.heal()
    await network.join(stale)
    for block in ledger.blocks:
        real = await network.validator.call("getblockhash", block.index)
        assert str(block.hash) == real


async def test_a_network_without_websockets_is_polled_by_majority(network: Network, client_of: NewClient) -> None:
    """Three C# nodes, one of which hangs meanwhile."""
    for node in network.nodes:
        node.proxy.websockets = False
    client = client_of(network.urls)
    ledger = Ledger()
    follower = BlockFollower(client, ledger)
    async with following(follower):
        await until(lambda: len(ledger.blocks) > 2)
        assert follower.connected == "polling"
        network.node_of(client.url).proxy.hang()
        stopped_s, last = time.monotonic(), ledger.blocks[-1].index
        await until(lambda: ledger.blocks[-1].index > last + 1)
        assert time.monotonic() - stopped_s <= 5.0
    await ledger.is_the_chain_of(client)


# --- lying ---


#: Blocks that the liar has made up, by the true ones' hashes.
FORGED: dict[str, str] = {}


def other_block_hashes(method: str, result: Any) -> Any:
    """As a node on a fork of its own."""
    if method == "getblockhash":
        return FORGED.get(result, result[:-4] + "beef")
    if method in ("getblock", "block_added"):
        forged = result | {"time": result["time"] + 1}
        FORGED[result["hash"]] = forged["hash"] = str(hash_of_block(forged))
        return forged
    return result


def hidden_transactions(method: str, result: Any) -> Any:
    """Blocks under their true hashes that do not show what is in them; here one that does not exist."""
    if method in ("getblock", "block_added"):
        return result | {"tx": [*result["tx"], {"hash": "0x" + 64 * "7"}]}
    return result


@pytest.mark.parametrize(
    ("rewrite", "reason"),
    [
        (higher_by(1000), "has no such block"),
        (higher_by(-20), "went back"),
        (other_block_hashes, "is not that of 2 of 3 nodes"),
    ],
    ids=["height above", "height back", "other blocks"],
)
async def test_a_lying_node_is_excluded_and_comes_back(
    network: Network, client_of: NewClient, rewrite: Any, reason: str
) -> None:
    """Nothing is confirmed by it, reads go elsewhere, and it is believed again after ten good probes."""
    client = client_of(network.urls, probe_s=0.1)
    ledger = Ledger()
    follower = BlockFollower(client, ledger)
    async with following(follower):
        await until(lambda: len(ledger.blocks) > 1 and follower.connected == "websocket")
        liar = network.node_of(follower.source)
        liar.proxy.rewrite = rewrite
        view = await eventually(client, liar, "excluded")
        assert reason in (view.reason or "")
        asked = liar.proxy.asked["invokescript"]
        for _ in range(10):
            await client.invoke_script(SYMBOL)
        assert liar.proxy.asked["invokescript"] == asked
        last = ledger.blocks[-1].index
        await until(lambda: ledger.blocks[-1].index > last + 2)
        liar.proxy.heal()
        await eventually(client, liar, "ok")
    assert not ledger.rewound
    await ledger.is_the_chain_of(client)


async def test_no_block_is_believed_before_the_majority_has_it(network: Network, client_of: NewClient) -> None:
    """The followed node tells of blocks of its own, sound in themselves, before any probe could catch it."""
    client = client_of(network.urls, probe_s=30.0)
    ledger = Ledger()
    follower = BlockFollower(client, ledger)
    async with following(follower):
        await until(lambda: len(ledger.blocks) > 1 and follower.connected == "websocket")
        liar, last = network.node_of(follower.source), ledger.blocks[-1].index
        liar.proxy.rewrite = other_block_hashes
        await until(lambda: ledger.blocks[-1].index > last + 2)
        assert shown(client, liar).state == "excluded"
    await ledger.is_the_chain_of(client)


async def test_a_block_with_other_content_under_its_hash_is_refused(
    network: Network, client_of: NewClient
) -> None:
    client = client_of(network.urls)
    ledger = Ledger()
    follower = BlockFollower(client, ledger)
    async with following(follower):
        await until(lambda: len(ledger.blocks) > 1 and follower.connected == "websocket")
        liar, last = network.node_of(follower.source), ledger.blocks[-1].index
        liar.proxy.rewrite = hidden_transactions
        await until(lambda: follower.source != liar.proxy.url)
        await until(lambda: ledger.blocks[-1].index > last + 2)
    assert not any(block.transactions for block in ledger.blocks)
    alone = client_of([liar.proxy.url])
    with pytest.raises(NodeUnavailable, match="another content"):
        await alone.get_block(last)


async def test_when_no_node_is_fit_all_are_used_and_it_shows(network: Network, client_of: NewClient) -> None:
    client = client_of(network.urls, probe_s=0.2)
    await warmed_up(client)
    for node in network.nodes:
        node.proxy.rewrite = higher_by(1000)
    for node in network.nodes:
        await eventually(client, node, "excluded")
    assert client.nodes().degraded
    assert (await client.invoke_script(SYMBOL)).halted


async def test_a_node_of_another_network_is_refused_and_shown(
    network: Network, new_node: NewNode, client_of: NewClient
) -> None:
    stranger = await new_node()
    client = client_of([*network.urls, stranger.devnet.rpc_url], probe_s=0.2)
    await warmed_up(client, 3)
    view = next(view for view in client.nodes().nodes if view.url == stranger.devnet.rpc_url)
    assert view.state == "wrong_network"
    assert str(stranger.devnet.network) in (view.reason or "")
    set_by_operator = client_of(network.urls, network=stranger.devnet.network)
    with pytest.raises(Exception, match=f"expected {stranger.devnet.network}"):
        await set_by_operator.block_count()


# --- failing and limiting ---


async def test_a_failing_node_is_left_after_five_failures_and_probed_until_it_is_well(
    network: Network, client_of: NewClient
) -> None:
    client = client_of(network.urls, probe_s=0.2)
    await warmed_up(client)
    failing = network.node_of(client.url)
    failing.proxy.answer, failing.proxy.answer_instead = (500, {}, b"down"), everything
    asked = failing.proxy.asked.total()
    for _ in range(40):
        await client.invoke_script(SYMBOL)
    await eventually(client, failing, "open", "half_open")
    assert failing.proxy.asked.total() - asked <= 6
    assert shown(client, failing).last_error == "HTTP 500"
    failing.proxy.heal()
    await eventually(client, failing, "ok")


async def test_a_limiting_node_rests_for_the_time_it_names(network: Network, client_of: NewClient) -> None:
    """Too many requests are no failure: the breaker stays closed, and fewer calls are made at a time."""
    client = client_of(network.urls, probe_s=0.2)
    await warmed_up(client)
    limiting = network.node_of(client.url)
    before = shown(client, limiting)
    for answer in (
        (429, {"Retry-After": "1"}, b"slow down"),
        (200, {}, b'{"jsonrpc":"2.0","id":0,"error":{"code":-32005,"message":"limit exceeded"}}'),
    ):
        limiting.proxy.answer, limiting.proxy.answer_instead = answer, reading
        await client.invoke_script(SYMBOL)
        view = await eventually(client, limiting, "limited")
        assert view.breaker == "closed"
        assert view.concurrency_limit < before.concurrency_limit
        asked = limiting.proxy.asked["invokescript"]
        await client.invoke_script(SYMBOL)
        assert limiting.proxy.asked["invokescript"] == asked
        limiting.proxy.answer_instead = nothing
        await eventually(client, limiting, "ok")
        while client.url != limiting.proxy.url:
            for node in network.nodes:
                node.proxy.delay_s = 0.0 if node is limiting else 0.05
            await client.invoke_script(SYMBOL)
        for node in network.nodes:
            node.proxy.delay_s = 0.0


async def test_refusals_with_reason_never_hurt_a_node(network: Network, client_of: NewClient) -> None:
    client = client_of(network.urls)
    await warmed_up(client, 3)
    for _ in range(50):
        with pytest.raises(RpcError):
            await client.get_block(10**6)
    views = client.nodes().nodes
    assert {view.state for view in views} == {"ok"}
    assert all(view.error_rate == 0 for view in views)


# --- slow ---


async def test_a_slow_node_is_left_and_hedges_are_few(network: Network, client_of: NewClient) -> None:
    """300 ms more: the first reads are hedged, then another node comes first."""
    client = client_of(network.urls, probe_s=0.2)
    await warmed_up(client, 60)
    slow = network.node_of(client.url)
    slow.proxy.delay_s = 0.3
    took = []
    for _ in range(60):
        begun_s = time.monotonic()
        await client.call("getblockcount")
        took.append(time.monotonic() - begun_s)
    assert sorted(took)[30] < 0.1
    assert max(took) < 0.3 + 0.2
    assert client.url != slow.proxy.url
    asked = slow.proxy.asked["invokescript"]
    for _ in range(20):
        await client.invoke_script(SYMBOL)
    assert slow.proxy.asked["invokescript"] == asked


async def test_hedges_are_bounded_when_all_nodes_are_slow(network: Network, client_of: NewClient) -> None:
    """At most the burst and a twentieth of all reads is asked twice."""
    client = client_of(network.urls, select=False)
    await warmed_up(client, 40)
    for node in network.nodes:
        node.proxy.delay_s = 0.05
    before = sum(node.proxy.asked["getblockcount"] for node in network.nodes)
    for _ in range(60):
        await client.call("getblockcount")
    extra = sum(node.proxy.asked["getblockcount"] for node in network.nodes) - before - 60
    assert 0 < extra <= 10 + 60 * 0.05 + 1


async def test_without_node_choice_the_first_node_is_stayed_with(network: Network, client_of: NewClient) -> None:
    client = client_of(network.urls, select=False, hedge=False)
    network.validator.proxy.delay_s = 0.05
    others = [node.proxy.asked.total() for node in network.followers]
    for _ in range(10):
        await client.block_count()
    assert client.url == network.validator.proxy.url
    network.validator.proxy.refuse = everything
    await client.block_count()
    assert client.url == network.followers[0].proxy.url
    assert network.followers[1].proxy.asked.total() == others[1]


# --- fences ---


async def test_reads_are_not_answered_from_before_their_fence(network: Network, client_of: NewClient) -> None:
    """A node that is behind is passed over; a block that nobody has is waited for, then given up."""
    behind = network.followers[1]
    await network.cut(behind)
    try:
        client = client_of([behind.proxy.url, network.validator.proxy.url], select=False)
        height = await behind.height()
        await until_height(network, height + 3)
        assert await client.block_count() == height + 1
        with fenced(height + 3):
            assert await client.block_count() > height + 3
        result, at = await client.invoke_at_head(SYMBOL, min_height=height + 2)
        assert result.halted
        assert at >= height + 2
        soon = await network.validator.height() + 1
        assert await client.call("getblockcount", min_height=soon) > soon
        with pytest.raises(NodeUnavailable, match="is needed"):
            await client.call("getblockcount", min_height=10**6)
    finally:
        await network.join(behind)


async def until_height(network: Network, height: int) -> None:
    async with asyncio.timeout(20):
        while await network.validator.height() < height:
            await asyncio.sleep(0.05)


# --- sending ---


@pytest.fixture
async def payer(network: Network, client_of: NewClient) -> Key:
    """An account with GAS."""
    key, client = Key(), client_of(network.urls)
    await network.devnet.wait(client, await network.devnet.fund(client, key.account, 10 * 10**8))
    return key


async def test_a_send_reaches_several_nodes_and_one_acceptance_is_enough(
    network: Network, client_of: NewClient, payer: Key
) -> None:
    """Two of three nodes are of no use for sends; all three were offered it."""
    client = client_of(network.urls)
    await client.pool.probed()
    first, second, _ = network.nodes
    first.proxy.hold, second.proxy.drop_answer = sending, sending
    asked = {node.url: node.proxy.asked["sendrawtransaction"] for node in network.nodes}
    raw = payer.sign(await build(client, payer, SYMBOL), network.devnet.network)
    begun_s = time.monotonic()
    assert (await client.send_raw_transaction(raw)).kind == "accepted"
    assert time.monotonic() - begun_s < 1.0
    await until(lambda: all(node.proxy.asked["sendrawtransaction"] > asked[node.url] for node in network.nodes))


async def test_a_send_whose_answers_are_all_lost_is_looked_up(
    network: Network, client_of: NewClient, payer: Key
) -> None:
    """Twenty transfers, no answer to any send: each is known to be accepted, and has its effect once."""
    client = client_of(network.urls)
    await client.pool.probed()
    for node in network.nodes:
        node.proxy.drop_answer = sending
    receiver = Key().account
    script = build_script([transfer(GAS, payer.account, receiver, 1)])
    for _ in range(20):
        transaction = await build(client, payer, script)
        outcome = await client.send_raw_transaction(payer.sign(transaction, network.devnet.network))
        assert outcome.kind == "accepted"
    await network.devnet.wait(client, transaction.hash)
    await until_height(network, await network.validator.height() + 1)
    assert await client.balance_of(GAS, receiver) == 20


async def test_a_send_that_nobody_heard_is_ambiguous(network: Network, client_of: NewClient, payer: Key) -> None:
    client = client_of(network.urls)
    raw = payer.sign(await build(client, payer, SYMBOL), network.devnet.network)
    for node in network.nodes:
        node.proxy.refuse = sending
    with pytest.raises(NodeUnavailable):
        await client.send_raw_transaction(raw)


async def test_what_all_refuse_is_refused_with_the_nodes_code(
    network: Network, client_of: NewClient, payer: Key
) -> None:
    client = client_of(network.urls)
    raw = payer.sign(await build(client, payer, SYMBOL, network_fee=1000), network.devnet.network)
    outcome = await client.send_raw_transaction(raw)
    assert (outcome.kind, outcome.node_code, outcome.ambiguous) == ("rejected", -504, False)
