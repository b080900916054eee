"""Kept and shared answers are those that a node would give, and switches change no answer."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from neolayer.chain.errors import NodeUnavailable
from neolayer.chain.kept import Kept
from neolayer.chain.payload import Signer, WitnessScope
from neolayer.chain.rpc import FINAL_DEPTH
from neolayer.chain.scripts import GAS, NEO, build_script
from neolayer.chain.txid import hash_of_raw
from tests.proxy import NodeProxy, reading

from .conftest import Key, NewClient, Node, build

SYMBOL = build_script([{"contract": "GasToken", "method": "symbol"}])
#: Its result is another one for each block.
HEIGHT = build_script([{"contract": "LedgerContract", "method": "currentIndex"}])


def of_seven_validators(method: str, result: Any) -> Any:
    """A network whose blocks are final at once."""
    if method == "getversion":
        result["protocol"]["validatorscount"] = 7
    return result


@pytest.fixture
async def proxy(node: Node) -> AsyncIterator[NodeProxy]:
    proxy = NodeProxy(node.devnet.rpc_url)
    await proxy.start()
    yield proxy
    await proxy.close()


async def test_equal_reads_in_flight_are_asked_once(proxy: NodeProxy, client_of: NewClient) -> None:
    """And each caller gets an answer of its own to change; without the switch each is asked."""
    proxy.delay_s = 0.05
    answers = {}
    for keep, expected in ((True, 1), (False, 20)):
        client = client_of([proxy.url], keep=keep)
        await client.version()
        before = proxy.asked["invokescript"]
        results = await asyncio.gather(*(client.invoke_script(SYMBOL) for _ in range(20)))
        assert proxy.asked["invokescript"] - before == expected
        assert all(result == results[0] for result in results)
        results[0].stack.clear()
        assert results[1].stack
        answers[keep] = results[1]
    assert answers[True] == answers[False]


async def test_a_caller_that_leaves_takes_no_answer_from_others(proxy: NodeProxy, client_of: NewClient) -> None:
    client = client_of([proxy.url])
    await client.version()
    proxy.delay_s = 0.1
    first = asyncio.create_task(client.invoke_script(SYMBOL))
    second = asyncio.create_task(client.invoke_script(SYMBOL))
    await asyncio.sleep(0.02)
    first.cancel()
    assert (await second).halted


async def test_a_failure_is_shared_too_and_not_kept(proxy: NodeProxy, client_of: NewClient) -> None:
    client = client_of([proxy.url])
    await client.version()
    proxy.answer, proxy.answer_instead = (500, {}, b""), reading
    failed = await asyncio.gather(*(client.invoke_script(SYMBOL) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(each, NodeUnavailable) for each in failed)
    proxy.heal()
    assert (await client.invoke_script(SYMBOL)).halted


async def test_reads_at_the_head_are_answered_once_for_each_block(
    node: Node, proxy: NodeProxy, client_of: NewClient
) -> None:
    """Each answer is the one that the node gives for that block afterwards."""
    client = client_of([proxy.url])
    await client.version()
    seen: dict[int, set[str]] = {}
    for _ in range(150):
        result, height = await client.invoke_at_head(HEIGHT)
        seen.setdefault(height, set()).add(result.stack[0]["value"])
        await asyncio.sleep(0.005)
    assert len(seen) > 2, "blocks came meanwhile"
    assert proxy.asked["getblockcount"] < 100, "most were answered without a request"
    script = base64.b64encode(HEIGHT).decode()
    for height, values in seen.items():
        historic = await node.rpc.call("invokescripthistoric", [height, script])
        assert values == {historic["stack"][0]["value"]}
    off = client_of([proxy.url], keep=False)
    result, height = await off.invoke_at_head(HEIGHT)
    historic = await node.rpc.call("invokescripthistoric", [height, script])
    assert result.stack == historic["stack"]


async def test_a_read_with_a_fence_is_not_answered_from_before_it(
    node: Node, proxy: NodeProxy, client_of: NewClient
) -> None:
    client = client_of([proxy.url])
    for _ in range(5):
        _, height = await client.invoke_at_head(HEIGHT)
        result, later = await client.invoke_at_head(HEIGHT, min_height=height + 1)
        assert later > height
        assert int(result.stack[0]["value"]) == later


async def test_final_data_is_asked_for_once(node: Node, proxy: NodeProxy, client_of: NewClient, rich: Key) -> None:
    """Blocks, their hashes, logs and heights of transactions in them; the answers are the same without."""
    proxy.rewrite = of_seven_validators
    client, off = client_of([proxy.url]), client_of([proxy.url], keep=False)
    transaction = await build(node.rpc, rich, SYMBOL)
    assert await client.application_log(transaction.hash) is None
    assert await client.transaction_height(transaction.hash) is None
    await node.rpc.send_raw_transaction(rich.sign(transaction, node.devnet.network))
    await node.devnet.wait(node.rpc, transaction.hash)

    async def answers(of: Any) -> list[Any]:
        height = await of.transaction_height(transaction.hash)
        log = await of.application_log(transaction.hash)
        block = await of.get_block(height)
        return [height, log, block, await of.get_block(block.hash), await of.block_hash(height)]

    first = await answers(client)
    asked = proxy.asked.copy()
    assert await answers(client) == first
    new = {name: count - asked[name] for name, count in proxy.asked.items() if count > asked[name]}
    assert set(new) <= {"getblockcount"}, "probes only"
    assert await answers(off) == first


async def test_what_one_validator_may_lose_is_not_kept(node: Node, proxy: NodeProxy, client_of: NewClient) -> None:
    """The newest blocks of a network with one validator are asked for again, old ones are not."""
    client = client_of([proxy.url])
    await node.reach(FINAL_DEPTH + 5)
    tip = await client.block_count() - 1
    for index, times in ((tip, 2), (2, 1)):
        before = proxy.asked["getblock"]
        for _ in range(2):
            await client.get_block(index)
        assert proxy.asked["getblock"] - before == times


def test_memory_is_bounded_and_the_least_used_is_dropped() -> None:
    kept = Kept(40_000)
    for number in range(200):
        kept.final(("a", [0]))
        kept.keep_final(("a", [number]), b"x" * 700, "node")
        assert kept.size_bytes <= 40_000
    assert kept.final(("a", [0])) is not None
    assert kept.final(("a", [100])) is None
    assert kept.final(("a", [199])) is not None
    kept.keep_final(("big", []), b"x" * 50_000, "node")
    assert kept.final(("big", [])) is None
    kept.heard_height(5)
    for number in range(200):
        kept.keep_at_head(("b", [number]), b"x" * 700, 5)
        assert kept.size_bytes <= 40_000
    assert kept.at_head(("b", [199]), min_height=5, max_age_s=9) == (b"x" * 700, 5)
    assert kept.at_head(("b", [199]), min_height=6, max_age_s=9) is None
    kept.heard_height(6)
    assert kept.at_head(("b", [199]), min_height=0, max_age_s=9) is None


def test_what_a_disbelieved_node_said_is_forgotten() -> None:
    kept = Kept(40_000)
    kept.keep_final(("a", [1]), b"1", "honest")
    kept.keep_final(("a", [2]), b"2", "liar")
    kept.forget("liar")
    assert kept.final(("a", [1])) == b"1"
    assert kept.final(("a", [2])) is None


async def test_the_hash_of_sent_bytes_is_found(node: Node, rich: Key) -> None:
    """Whatever scopes the signers have; cut bytes are no transaction."""
    plain = await build(node.rpc, rich, SYMBOL)
    custom = replace(plain, signers=(Signer(rich.account, WitnessScope.CUSTOM_CONTRACTS, (GAS, NEO)),))
    for transaction in (plain, custom):
        raw = rich.sign(transaction, node.devnet.network)
        assert hash_of_raw(raw) == transaction.hash
        with pytest.raises(ValueError, match="cut"):
            hash_of_raw(raw[: len(transaction.data) - 1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"select": False},
        {"hedge": False},
        {"keep": False},
        {"select": False, "hedge": False, "keep": False},
    ],
    ids=str,
)
async def test_switches_change_no_answer(
    node: Node, rich: Key, client_of: NewClient, options: dict[str, bool]
) -> None:
    """The same questions with all combinations that matter, against one node asked plainly."""
    await node.reach(5)
    client = client_of([node.devnet.rpc_url], **options)
    for _ in range(2):  # the second time from memory, where there is one
        for index in range(5):
            raw = await node.rpc.call("getblock", [index, 1])
            block = await client.get_block(index)
            assert (str(block.hash), block.time_ms) == (raw["hash"], raw["time"])
            assert str(await client.block_hash(index)) == raw["hash"]
        assert [block.index for block in await client.get_blocks(1, 3)] == [1, 2, 3]
        stack = (await node.rpc.call("invokescript", [base64.b64encode(SYMBOL).decode()]))["stack"]
        assert (await client.invoke_script(SYMBOL)).stack == stack
        assert (await client.invoke_at_head(SYMBOL))[0].stack == stack
        assert await client.balance_of(NEO, node.devnet.owner) == 100_000_000
        assert (await client.version()).network == node.devnet.network
    raw_transaction = rich.sign(await build(client, rich, SYMBOL), node.devnet.network)
    assert (await client.send_raw_transaction(raw_transaction)).kind == "accepted"
    assert (await client.send_raw_transaction(raw_transaction)).kind == "accepted"
