"""Every block exactly once and in order, whatever happens to the node, the connection or the follower."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import aiohttp.web
import pytest

from neolayer.chain.asking import fenced
from neolayer.chain.executions import Executions
from neolayer.chain.follower import BlockFollower, Cursor
from neolayer.chain.rpc import Block, PoolOptions, RpcClient
from neolayer.chain.scripts import build_script
from neolayer.core.types import Hash256

from .conftest import Key, NewNode, Node, build


class Ledger:
    """A consumer in memory that checks what it is given."""

    def __init__(self) -> None:
        self.cursor: Cursor | None = None
        self.blocks: list[Block] = []
        #: By the index of their block.
        self.heard: dict[int, Executions] = {}
        self.rewound: list[Cursor] = []
        self.fail_before: set[int] = set()
        self.fail_after: set[int] = set()

    async def load_cursor(self) -> Cursor | None:
        return self.cursor

    async def start_at(self, cursor: Cursor) -> None:
        assert self.cursor is None
        self.cursor = cursor

    async def process(self, block: Block, executions: Executions) -> None:
        assert self.cursor is not None
        assert (block.index, block.previous) == (self.cursor.index + 1, self.cursor.hash)
        if block.index in self.fail_before:
            self.fail_before.remove(block.index)
            raise ConnectionError("the database is away")
        self.blocks.append(block)
        self.heard[block.index] = executions
        self.cursor = Cursor(block.index, block.hash)
        if block.index in self.fail_after:
            self.fail_after.remove(block.index)
            raise ConnectionError("the database went away after the commit")

    async def hash_at(self, index: int) -> Hash256 | None:
        return next((block.hash for block in self.blocks if block.index == index), None)

    async def rewind(self, cursor: Cursor) -> None:
        self.rewound.append(cursor)
        self.blocks = [block for block in self.blocks if block.index <= cursor.index]
        self.cursor = cursor

    async def is_the_chain_of(self, rpc: RpcClient) -> None:
        """Each block once, without a gap, and the node's own."""
        first = self.blocks[0].index
        assert [block.index for block in self.blocks] == list(range(first, first + len(self.blocks)))
        # A node that was cut off a moment ago may not have all of them yet.
        with fenced(self.blocks[-1].index):
            for block in self.blocks:
                assert block == await rpc.get_block(block.index)


@asynccontextmanager
async def following(follower: BlockFollower) -> AsyncIterator[None]:
    task = asyncio.create_task(follower.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_starts_at_the_tip_and_follows(node: Node, rich: Key) -> None:
    """Without a cursor, blocks from now on arrive by WebSocket, with their transactions."""
    await node.reach(3)
    ledger = Ledger()
    follower = BlockFollower(node.rpc, ledger)
    async with following(follower):
        await until(lambda: ledger.cursor is not None)
        transaction = await node.devnet.fund(node.rpc, rich.account, 1)
        await until(lambda: any(transaction in block.transactions for block in ledger.blocks))
        await until(lambda: len(ledger.blocks) > 4)
        assert follower.connected == "websocket"
        assert follower.error is None
        assert follower.height is not None
        assert follower.height >= ledger.blocks[-1].index
        assert follower.last_block_at is not None
        assert follower.cursor == ledger.cursor
    assert ledger.blocks[0].index > 3
    await ledger.is_the_chain_of(node.rpc)


@pytest.mark.parametrize("start", [0, 1, 3])
async def test_starts_where_told(node: Node, start: int) -> None:
    """From any block on, the genesis block too."""
    await node.reach(20)
    ledger = Ledger()
    async with following(BlockFollower(node.rpc, ledger, start_height=start)):
        await until(lambda: len(ledger.blocks) > 20)
    assert ledger.blocks[0].index == start
    await ledger.is_the_chain_of(node.rpc)


async def test_follower_restarts(node: Node) -> None:
    """Blocks that came while nobody followed are made up for."""
    ledger = Ledger()
    for _ in range(3):
        seen = len(ledger.blocks)
        async with following(BlockFollower(node.rpc, ledger)):
            await until(lambda seen=seen: len(ledger.blocks) > seen + 2)  # type: ignore[misc]
        await node.reach(await node.rpc.block_count() + 3)
    await ledger.is_the_chain_of(node.rpc)


async def test_consumer_fails(node: Node) -> None:
    """A failure before the commit offers the block again, one after it does not."""
    ledger = Ledger()
    first = await node.rpc.block_count() + 2
    ledger.fail_before, ledger.fail_after = {first, first + 4}, {first + 1, first + 4}
    async with following(BlockFollower(node.rpc, ledger)):
        await until(lambda: bool(ledger.blocks) and ledger.blocks[-1].index > first + 7)
    assert not ledger.fail_before
    assert not ledger.fail_after
    await ledger.is_the_chain_of(node.rpc)


async def test_node_is_killed(new_node: NewNode) -> None:
    """Over kills of the only validator: what it lost is taken back, what it made instead is processed."""
    node = await new_node()
    ledger = Ledger()
    follower = BlockFollower(node.rpc, ledger)
    async with following(follower):
        for _ in range(4):
            await until(lambda: follower.connected == "websocket")
            seen = await node.rpc.block_count()
            await until(lambda seen=seen: ledger.cursor is not None and ledger.cursor.index > seen + 4)  # type: ignore[misc]
            node.kill()
            await until(lambda: follower.connected == "down")
            assert follower.error
            await node.start()
        await until(lambda: follower.connected == "websocket")
        last = ledger.blocks[-1].index + 5
        await until(lambda: ledger.blocks[-1].index > last)
    assert ledger.rewound, "four kills at four blocks a second lose some"
    await ledger.is_the_chain_of(node.rpc)


async def test_rewinds_to_the_last_common_block(node: Node) -> None:
    """Recorded blocks that are not in the node's chain are taken back, and no other."""
    await node.reach(8)
    ledger = Ledger()
    ledger.blocks = await node.rpc.get_blocks(2, 3)
    for index in (5, 6, 7):
        ledger.blocks.append(Block(index, Hash256(bytes([index]) * 32), ledger.blocks[-1].hash, 0, ()))
    ledger.cursor = Cursor(7, ledger.blocks[-1].hash)
    async with following(BlockFollower(node.rpc, ledger)):
        await until(lambda: ledger.blocks[-1].index > 9)
    assert [cursor.index for cursor in ledger.rewound] == [4]
    await ledger.is_the_chain_of(node.rpc)


async def test_lagging_node_is_waited_for(node: Node) -> None:
    """A cursor above the node's height, with nothing to compare, stays untouched until the node gets there."""
    height = await node.rpc.block_count() - 1
    ledger = Ledger()
    ledger.cursor = Cursor(height + 1_000, Hash256(bytes([9]) * 32))
    follower = BlockFollower(node.rpc, ledger)
    async with following(follower):
        await until(lambda: follower.height is not None and follower.height > height + 3)
        assert follower.connected == "websocket"
    assert not ledger.blocks
    assert not ledger.rewound


async def test_foreign_chain_is_refused(node: Node) -> None:
    """With no block in common nothing is taken back or processed."""
    await node.reach(3)
    ledger = Ledger()
    ledger.cursor = Cursor(2, Hash256(bytes([7]) * 32))
    follower = BlockFollower(node.rpc, ledger)
    async with following(follower):
        await until(lambda: "ChainDiverged" in (follower.error or ""))
        assert follower.connected == "down"
    assert not ledger.blocks
    assert not ledger.rewound


async def test_node_without_websocket_is_polled(node: Node) -> None:
    """A C# node answers the handshake with an error; blocks come by asking once per block time."""
    async with aiohttp.ClientSession() as session:

        async def forward(request: aiohttp.web.Request) -> aiohttp.web.Response:
            async with session.post(node.devnet.rpc_url, data=await request.read()) as response:
                return aiohttp.web.Response(body=await response.read())

        application = aiohttp.web.Application()
        application.router.add_post("/", forward)
        runner = aiohttp.web.AppRunner(application)
        await runner.setup()
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        client = RpcClient([f"http://127.0.0.1:{runner.addresses[0][1]}"])
        ledger = Ledger()
        follower = BlockFollower(client, ledger)
        async with following(follower):
            await until(lambda: len(ledger.blocks) > 4)
            assert follower.connected == "polling"
        await client.aclose()
        await runner.cleanup()
    await ledger.is_the_chain_of(node.rpc)


class Wire:
    """A TCP relay to a node that can be cut or made to hang."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def hang(self) -> None:
        self._open.clear()

    def cut(self) -> None:
        self._server.close()
        self._open.set()
        for writer in self._writers:
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                await self._open.wait()
                writer.write(data)
        writer.close()


@pytest.mark.parametrize("trouble", ["cut", "hang"])
@pytest.mark.parametrize("select", [True, False])
async def test_moves_to_another_node(node: Node, trouble: str, select: bool) -> None:
    """When the followed node is cut off or falls silent, the other one is followed by WebSocket."""
    wires = {await wire.start(): wire for wire in (Wire(node.devnet.rpc_port), Wire(node.devnet.rpc_port))}
    client = RpcClient(list(wires), timeout_s=0.5, options=PoolOptions(select=select))
    ledger = Ledger()
    follower = BlockFollower(client, ledger)
    async with following(follower):
        await until(lambda: len(ledger.blocks) > 1 and follower.connected == "websocket")
        followed = follower.source
        assert followed is not None
        getattr(wires[followed], trouble)()
        await until(lambda: follower.source != followed)
        last = ledger.blocks[-1].index + 5
        await until(lambda: ledger.blocks[-1].index > last and follower.connected == "websocket")
    for wire in wires.values():
        wire.cut()
    await client.aclose()
    await ledger.is_the_chain_of(node.rpc)


async def test_full_blocks(node: Node) -> None:
    """Hundreds of transactions in a block arrive as one block, and their logs in a few requests."""
    key = Key()
    await node.devnet.wait(node.rpc, await node.devnet.fund(node.rpc, key.account, 100 * 10**8))

    template = await build(node.rpc, key, build_script([{"contract": "GasToken", "method": "symbol"}]))

    transactions = [replace(template, nonce=nonce) for nonce in range(600)]
    ledger = Ledger()
    async with following(BlockFollower(node.rpc, ledger)):
        await until(lambda: ledger.cursor is not None)
        outcomes = await asyncio.gather(
            *(node.rpc.send_raw_transaction(key.sign(each, node.devnet.network)) for each in transactions)
        )
        assert {outcome.kind for outcome in outcomes} == {"accepted"}
        await until(lambda: sum(len(block.transactions) for block in ledger.blocks) >= 600)
    hashes = [hash_ for block in ledger.blocks for hash_ in block.transactions]
    assert sorted(map(str, hashes)) == sorted(str(each.hash) for each in transactions)
    logs = await node.rpc.application_logs(hashes)
    assert [log.hash for log in logs] == hashes
    assert all(log.halted for log in logs)
