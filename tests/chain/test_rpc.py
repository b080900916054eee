"""Answers of a real node, and what happens when there is none, a broken one or a stranger."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest

from neolayer.chain.errors import ExecutionFaulted, NodeUnavailable, RpcError, WrongNetwork
from neolayer.chain.fees import Fees
from neolayer.chain.rpc import MAX_BATCH, RpcClient
from neolayer.chain.scripts import GAS, NEO, build_script, transfer
from neolayer.core.types import Hash160, Hash256

from .conftest import Key, NewNode, Node, build, free_port

UNKNOWN = Hash256(bytes(32))

Respond = Callable[[bytes | None], Awaitable[str]]


@pytest.fixture
async def broken_node() -> AsyncIterator[Respond]:
    """Starts servers that give one and the same raw answer to everything; None: no answer at all."""
    async with AsyncExitStack() as stack:

        async def start(answer: bytes | None) -> str:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                try:
                    while await reader.read(65_536):
                        if answer is not None:
                            writer.write(answer)
                            break
                finally:
                    writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            stack.callback(server.close)
            return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        yield start


def http(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


# --- answers ---


async def test_version(node: Node) -> None:
    """The node says which network it is of; asked once."""
    version = await node.rpc.version()
    assert version.network == node.devnet.network
    assert version.ms_per_block == 250
    assert version.max_transactions_per_block == 512
    assert version.address_version == 0x35
    assert "Faun" in version.hardforks
    assert await node.rpc.version() is version


async def test_blocks(node: Node) -> None:
    """By index and hash, one or many; only as many as there are."""
    await node.reach(3)
    block = await node.rpc.get_block(2)
    assert block == await node.rpc.get_block(block.hash)
    assert block.hash == await node.rpc.block_hash(2)
    blocks = await node.rpc.get_blocks(0, 4)
    assert [each.index for each in blocks] == [0, 1, 2, 3]
    assert all(later.previous == former.hash for former, later in pairwise(blocks))
    count = await node.rpc.block_count()
    assert 1 <= len(await node.rpc.get_blocks(count - 1, 50)) <= 3
    assert await node.rpc.get_blocks(count + 1000, 5) == []


async def test_refusals_are_answers(rpc: RpcClient) -> None:
    """A method or argument that the node does not know is an `RpcError` with the node's own code."""
    with pytest.raises(RpcError) as caught:
        await rpc.call("nosuchmethod")
    assert caught.value.node_code == -32601
    assert (caught.value.code, caught.value.retryable) == ("rpc_error", False)
    with pytest.raises(RpcError):
        await rpc.get_block(10**6)


async def test_batch_keeps_order_and_marks_refusals(rpc: RpcClient) -> None:
    """Results stand in the order of the calls, over more calls than one request takes."""
    calls = [("getblockhash", [n % 2]) for n in range(2 * MAX_BATCH + 1)]
    zero, one = str(await rpc.block_hash(0)), str(await rpc.block_hash(1))
    assert await rpc.batch(calls) == [(zero, one)[n % 2] for n in range(len(calls))]
    mixed = await rpc.batch([("getblockhash", [0]), ("nosuchmethod", []), ("getblockhash", [1])])
    assert (mixed[0], mixed[2]) == (zero, one)
    assert isinstance(mixed[1], RpcError)
    assert await rpc.batch([]) == []


async def test_balances(node: Node, rich: Key) -> None:
    """Of GAS and NEO; a contract that is not a token is refused."""
    assert await node.rpc.balance_of(GAS, Key().account) == 0
    assert await node.rpc.balance_of(NEO, node.devnet.owner) == 100_000_000
    assert await node.rpc.balance_of(GAS, rich.account) > 900 * 10**8
    with pytest.raises(ExecutionFaulted):
        await node.rpc.balance_of(Hash160(bytes(20)), rich.account)


async def test_status(node: Node) -> None:
    """Healthy: height and address of the node; dead: why."""
    status = await node.rpc.status()
    assert status.url == node.devnet.rpc_url
    assert status.height is not None
    assert status.error is None
    dead = RpcClient([f"http://127.0.0.1:{free_port()}"])
    status = await dead.status()
    assert status.height is None
    assert status.error
    await dead.aclose()


# --- sending ---


async def test_sending_is_idempotent(node: Node, rich: Key) -> None:
    """The same bytes are accepted again while pooled (−503) and once included (−501), and run once."""
    receiver = Key().account
    transaction = await build(node.rpc, rich, build_script([transfer(GAS, rich.account, receiver, 7)]))
    data = rich.sign(transaction, node.devnet.network)
    assert not await node.rpc.knows(transaction.hash)
    assert await node.rpc.application_log(transaction.hash) is None

    first, second = [await node.rpc.send_raw_transaction(data) for _ in range(2)]
    assert (first.kind, first.node_code) == ("accepted", None)
    assert second.kind == "accepted"
    assert second.node_code in (-503, -501)  # a block may have come between
    assert await node.rpc.knows(transaction.hash)

    log = await node.devnet.wait(node.rpc, transaction.hash)
    assert log.halted
    assert log.gas_consumed == transaction.system_fee
    assert [note["eventname"] for note in log.notifications] == ["Transfer"]
    again = await node.rpc.send_raw_transaction(data)
    assert (again.kind, again.node_code) == ("accepted", -501)
    assert await node.rpc.knows(transaction.hash)
    height = await node.rpc.transaction_height(transaction.hash)
    assert height is not None
    assert transaction.hash in (await node.rpc.get_block(height)).transactions
    assert await node.rpc.balance_of(GAS, receiver) == 7


async def test_unknown_transaction(rpc: RpcClient) -> None:
    """Not knowing is an answer, except for logs of transactions that a block has shown."""
    assert await rpc.transaction_height(UNKNOWN) is None
    assert not await rpc.knows(UNKNOWN)
    assert await rpc.application_log(UNKNOWN) is None
    with pytest.raises(NodeUnavailable):
        await rpc.application_logs([UNKNOWN])


async def test_refused_transactions(node: Node, rich: Key) -> None:
    """Each refusal has its kind, with the node's code."""
    rpc, network = node.rpc, node.devnet.network
    height = await rpc.block_count() - 1

    async def outcome(data: bytes) -> tuple[str, int | None]:
        sent = await rpc.send_raw_transaction(data)
        assert sent.message
        return sent.kind, sent.node_code

    past = await build(rpc, rich, b"\x11", valid_until_block=height)
    assert await outcome(rich.sign(past, network)) == ("expired", -510)
    too_far = await build(rpc, rich, b"\x11", valid_until_block=height + 6_000)
    assert await outcome(rich.sign(too_far, network)) == ("expired", -510)
    poor = Key()
    assert await outcome(poor.sign(await build(rpc, poor, b"\x11"), network)) == ("funds", -511)
    dear = await build(rpc, rich, b"\x11", system_fee=1001 * 10**8)
    assert await outcome(rich.sign(dear, network)) == ("funds", -511)
    above_block = await build(rpc, rich, b"\x11", system_fee=10**13)
    assert await outcome(rich.sign(above_block, network)) == ("rejected", -505)
    cheap = await build(rpc, rich, b"\x11", network_fee=1000)
    assert await outcome(rich.sign(cheap, network)) == ("rejected", -504)
    below_verification = await build(rpc, rich, b"\x11", network_fee=500_000)
    assert await outcome(rich.sign(below_verification, network)) == ("rejected", -500)
    good = await build(rpc, rich, b"\x11")
    assert await outcome(rich.sign(good, network + 1)) == ("rejected", -508)
    assert await outcome(rich.sign(good, network)[:-1]) == ("rejected", -32602)
    no_opcode = await build(rpc, rich, b"\xff", system_fee=1000)
    assert await outcome(rich.sign(no_opcode, network)) == ("rejected", -506)


async def test_sum_of_pooled_fees_is_limited_by_the_balance(node: Node) -> None:
    """Two transactions that only one by one fit the balance: the second is told to fund (−511)."""
    key = Key()
    funding = await node.devnet.fund(node.rpc, key.account, 10**8)
    await node.devnet.wait(node.rpc, funding)
    both = [await build(node.rpc, key, b"\x11", system_fee=6 * 10**7) for _ in range(2)]
    first, second = [await node.rpc.send_raw_transaction(key.sign(each, node.devnet.network)) for each in both]
    assert first.kind == "accepted"
    assert (second.kind, second.node_code) == ("funds", -511)


async def test_fault_is_recorded_with_its_exception(node: Node, rich: Key) -> None:
    """A transaction that faults is in a block and paid for; logs of many come in one batch and in order."""
    aborting = await build(node.rpc, rich, b"\x38", system_fee=100_000)
    throwing = await build(node.rpc, rich, b"\x0c\x03why\x3a", system_fee=100_000)
    halting = await build(node.rpc, rich, b"\x15", system_fee=100_000)
    hashes = [aborting.hash, throwing.hash, halting.hash]
    for transaction in (aborting, throwing, halting):
        sent = await node.rpc.send_raw_transaction(rich.sign(transaction, node.devnet.network))
        assert sent.kind == "accepted"
    for hash_ in hashes:
        await node.devnet.wait(node.rpc, hash_)
    logs = await node.rpc.application_logs(hashes)
    assert [log.hash for log in logs] == hashes
    assert [log.vmstate for log in logs] == ["FAULT", "FAULT", "HALT"]
    assert "ABORT" in (logs[0].exception or "")
    assert "why" in (logs[1].exception or "")
    assert logs[2].exception is None
    assert logs[2].stack == [{"type": "Integer", "value": "5"}]


# --- bad nodes ---


async def test_failover_and_staying(node: Node) -> None:
    """A dead first node costs one attempt; after that the live one is asked at once."""
    dead = f"http://127.0.0.1:{free_port()}"
    client = RpcClient([dead, node.devnet.rpc_url])
    assert await client.block_count() > 0
    assert client.url == node.devnet.rpc_url
    batch = await client.batch([("getblockcount", [])] * 3)
    assert all(count > 0 for count in batch)
    await client.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"nonsense",
        http(b"<html>"),
        http(b"[]"),
        http(b'{"jsonrpc": "2.0", "id": 1}'),
        http(b'{"jsonrpc": "2.0", "id": 1, "result": {}}'),
        http(b'{"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": "x"}}', 500),
        http(b"slow down", 429),
    ],
    ids=str,
)
async def test_broken_nodes_are_left(node: Node, broken_node: Respond, answer: bytes | None) -> None:
    """Silence, cut connections, errors of the server and nonsense lead to the next node."""
    url = await broken_node(answer)
    client = RpcClient([url, node.devnet.rpc_url], timeout_s=0.3)
    assert await client.block_count() > 0
    alone = RpcClient([url], timeout_s=0.3)
    with pytest.raises(NodeUnavailable) as caught:
        await alone.block_count()
    assert (caught.value.code, caught.value.status, caught.value.retryable) == ("node_unavailable", 503, True)
    await client.aclose()
    await alone.aclose()


async def test_stranger_is_not_used(node: Node, new_node: NewNode) -> None:
    """A node of another network than the first is left out, and named when there is no other."""
    stranger = await new_node()
    client = RpcClient([stranger.devnet.rpc_url, node.devnet.rpc_url])
    assert (await client.version()).network == stranger.devnet.network
    stranger.kill()
    with pytest.raises(NodeUnavailable, match=r"network \d+, expected \d+"):
        await client.block_count()
    await stranger.start()
    assert await client.block_count() > 0
    assert client.url == stranger.devnet.rpc_url
    await client.aclose()


async def test_same_address_other_network(new_node: NewNode) -> None:
    """After a failure a node is asked again which network it is of."""
    first, second = await new_node(), await new_node()
    client = RpcClient([first.devnet.rpc_url])
    await client.block_count()
    first.kill()
    second.kill()
    with pytest.raises(NodeUnavailable):
        await client.block_count()
    moved = type(second.devnet).open(
        second.devnet.directory, first.devnet.rpc_port, settings={"TimePerBlock": "250ms"}
    )
    await second.rpc.aclose()
    second.devnet = moved
    second.rpc = RpcClient([moved.rpc_url])
    await second.start()
    with pytest.raises(WrongNetwork):
        await client.block_count()
    await client.aclose()


async def test_node_comes_back(new_node: NewNode) -> None:
    """One client outlives the restart of its node, with many calls at once."""
    node = await new_node()
    await asyncio.gather(*(node.rpc.block_count() for _ in range(50)))
    node.kill()
    with pytest.raises(NodeUnavailable):
        await node.rpc.block_count()
    with pytest.raises(NodeUnavailable):
        await Fees(node.rpc).policy()
    await node.start()
    await asyncio.gather(*(node.rpc.block_count() for _ in range(50)))
