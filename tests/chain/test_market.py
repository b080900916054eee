"""Tiers of speed on a network whose blocks are small enough to be full."""

import asyncio

from neolayer.chain.fees import Fees
from neolayer.chain.market import QUANTILES, WINDOW, FeeMarket
from neolayer.chain.payload import UnsignedTransaction
from neolayer.chain.rpc import RpcClient

from .conftest import Key, NewNode, Node, build

SCRIPT = b"\x11"


class Counting(RpcClient):
    """Counts the blocks that are read."""

    blocks = 0

    async def batch(self, calls):  # type: ignore[no-untyped-def]
        self.blocks += sum(method == "getblock" for method, _ in calls)
        return await super().batch(calls)


async def paid(node: Node, first: int, last: int) -> list[int]:
    """Datoshi for each byte, by raw calls."""
    rates = []
    for index in range(first, last + 1):
        block = await node.rpc.call("getblock", [index, 1])
        if len(block["tx"]) == 4:
            rates += [int(tx["netfee"]) // tx["size"] for tx in block["tx"]]
    return sorted(rates)


async def offer(node: Node, key: Key, **fees: int) -> UnsignedTransaction:
    transaction = await build(node.rpc, key, SCRIPT, system_fee=100_000, **fees)
    outcome = await node.rpc.send_raw_transaction(key.sign(transaction, node.devnet.network))
    assert outcome.kind == "accepted"
    return transaction


async def test_tiers_are_what_full_blocks_took_and_nothing_while_none_is_full(new_node: NewNode) -> None:
    node = await new_node(block_ms=250, MaxTransactionsPerBlock=4)
    key = Key()
    await node.devnet.wait(node.rpc, await node.devnet.fund(node.rpc, key.account, 100 * 10**8))
    rpc = Counting([node.devnet.rpc_url])
    try:
        market = FeeMarket(rpc)
        height = await node.rpc.block_count() - 1
        assert [await market.rate(speed, height) for speed in QUANTILES] == [0, 0, 0]

        # Twelve blocks' worth, so that they stay full; twenty prices.
        for n in range(48):
            await offer(node, key, network_fee=2_000_000 + 100_000 * (n % 20))
        height = await node.next_block() + 1
        await node.reach(height)
        rates = {speed: await market.rate(speed, height) for speed in QUANTILES}
        taken = await paid(node, max(height - WINDOW + 1, 0), height)
        assert len(taken) >= 8
        for speed, share in QUANTILES.items():
            below = sum(rate < rates[speed] for rate in taken)
            up_to = sum(rate <= rates[speed] for rate in taken)
            assert below <= share * len(taken) < up_to
        assert 0 < rates["standard"] <= rates["fast"] <= rates["urgent"]
        assert await market.rate("economy", height) == 0

        # What pays a tier is taken at once, what pays the price waits for all that came before.
        policy = await Fees(node.rpc).policy()
        plain = await offer(node, key)
        urgent = UnsignedTransaction(7, 100_000, 0, height + 100, (key.signer,), SCRIPT)
        fee = policy.network_fee(urgent, [key.verification], rate=rates["urgent"] + 1)
        assert fee > policy.network_fee(urgent, [key.verification])
        first = await offer(node, key, network_fee=fee)
        await node.devnet.wait(node.rpc, first.hash)
        assert await node.rpc.transaction_height(plain.hash) is None

        read = rpc.blocks
        latest = await node.rpc.block_count() - 1
        await asyncio.gather(*(market.rate("fast", latest) for _ in range(20)))
        assert rpc.blocks - read == min(latest - height, WINDOW)

        await node.devnet.wait(node.rpc, plain.hash, timeout_s=20)
        height = await node.rpc.block_count() - 1 + WINDOW
        await node.reach(height)
        assert await market.rate("urgent", height) == 0
    finally:
        await rpc.aclose()


async def test_a_tier_below_the_price_changes_nothing(rpc: RpcClient) -> None:
    policy = await Fees(rpc).policy()
    key = Key()
    transaction = UnsignedTransaction(1, 0, 0, 5, (key.signer,), SCRIPT)
    plain = policy.network_fee(transaction, [key.verification])
    size = len(transaction.data) + 1 + 108
    assert policy.network_fee(transaction, [key.verification], rate=plain // size) == plain
    assert (
        policy.network_fee(transaction, [key.verification], rate=plain // size + 1) == (plain // size + 1) * size
    )


async def test_a_block_is_full_by_its_bytes_too(new_node: NewNode) -> None:
    node = await new_node(block_ms=1000)
    key = Key()
    await node.devnet.wait(node.rpc, await node.devnet.fund(node.rpc, key.account, 100 * 10**8))
    bulky = b"\x21" * 60_000  # NOP
    made = [await build(node.rpc, key, bulky, network_fee=70_000_000 + n) for n in range(4)]
    signed = [key.sign(transaction, node.devnet.network) for transaction in made]
    await node.next_block()
    for raw in signed:
        assert (await node.rpc.send_raw_transaction(raw)).kind == "accepted"
    await node.devnet.wait(node.rpc, made[0].hash)
    height = await node.rpc.block_count() - 1
    assert await FeeMarket(node.rpc).rate("standard", height) == made[1].network_fee // len(signed[1])
