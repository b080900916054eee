"""One follower of the chain: every block exactly once, in order, through restarts of either side."""

import asyncio
import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, Protocol

import aiohttp
import msgspec

from neolayer.chain.answers import Block, block_from_json
from neolayer.chain.asking import fenced
from neolayer.chain.errors import ChainDiverged, NodeUnavailable
from neolayer.chain.executions import NOTHING_HEARD, Executions, Hearing
from neolayer.chain.node import Node
from neolayer.chain.rpc import RpcClient
from neolayer.chain.transport import decode
from neolayer.core.errors import Unavailable
from neolayer.core.types import Hash256

log = logging.getLogger(__name__)

#: Blocks asked for in one HTTP request while catching up.
BATCH: Final = 16
#: Longest wait before the next attempt after failures; seconds.
BACKOFF_MAX_S: Final = 5.0
#: For the WebSocket handshake and for the answer to the subscription; with the time to find out that a node hangs
#: it keeps the change of nodes below 5 s; seconds.
CONNECT_TIMEOUT_S: Final = 2.0
#: After a connection ended, other nodes are preferred for this long; seconds.
AVOID_S: Final = 30.0
#: How often it is looked whether events are missing; seconds.
LOOK_S: Final = 0.25
#: Events may come this much later than probes tell of their block; seconds.
OVERDUE_S: Final = 0.5
#: Without any event for so many block times, and at least so long, the nodes are asked; seconds.
SILENCE_BLOCK_TIMES: Final = 3
SILENCE_MIN_S: Final = 2.0
#: How often a node without WebSocket is asked whether it has one now; seconds.
WEBSOCKET_RETRY_S: Final = 60.0
#: A block of neo-go's default 2 MiB is up to about four times that as JSON; bytes.
_MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024


class Cursor(msgspec.Struct, frozen=True):
    """The last block that the consumer has processed."""

    index: int
    hash: Hash256


class BlockConsumer(Protocol):
    """Who processes blocks and remembers how far it got. Owned by the caller.

    Any method may raise: the follower waits, loads the cursor again and goes on from there.
    """

    async def load_cursor(self) -> Cursor | None:
        """Where to go on. None before the first start."""

    async def start_at(self, cursor: Cursor) -> None:
        """First start: store this cursor. Blocks up to it are not processed."""

    async def process(self, block: Block, executions: Executions) -> None:
        """The next block: store its consequences and its cursor in one database transaction.

        ``executions`` are those of this block that the node told of by itself; others can be asked for.

        When this raises after the database has committed, the block is not offered again, since the cursor
        is loaded anew.
        """

    async def hash_at(self, index: int) -> Hash256 | None:
        """The hash of a block processed before; None when it is too old to be remembered."""

    async def rewind(self, cursor: Cursor) -> None:
        """The chain has lost the blocks above the cursor: take back what they did and store the cursor.

        Never on a network with several validators (dBFT blocks are final); a private chain whose only node
        was killed loses its last blocks.
        """


class BlockFollower:
    """Follows by WebSocket events where the node has them, and by polling where not.

    An event only saves asking: whenever one is missing, late, doubled or cut, blocks are fetched by number.
    Every block must name the one before it as its predecessor. Run with `run`, stop by cancelling.
    """

    def __init__(self, rpc: RpcClient, consumer: BlockConsumer, *, start_height: int | None = None) -> None:
        """
        Args:
            start_height: at the first start, process blocks from this index on instead of from now on.
        """
        self._rpc = rpc
        self._consumer = consumer
        self._start_height = start_height
        self._cursor: Cursor | None = None
        #: Index of the node's latest block, as last heard; None before the first answer.
        self.height: int | None = None
        #: Unix time in seconds when the last block was processed; None before the first one.
        self.last_block_at: float | None = None
        #: How news arrives.
        self.connected: Literal["websocket", "polling", "down"] = "down"
        #: Why it is down.
        self.error: str | None = None
        #: The node that tells of blocks, without credentials; None before the first one.
        self.source: str | None = None
        #: Messages that came by WebSocket.
        self.messages = 0
        #: Monotonic times by URL; seconds.
        self._no_websocket_until: dict[str, float] = {}
        self._avoided: dict[str, float] = {}

    @property
    def cursor(self) -> Cursor | None:
        """The last processed block, as this follower knows it."""
        return self._cursor

    def __repr__(self) -> str:
        at = self._cursor.index if self._cursor else None
        return f"<BlockFollower {self.connected} processed={at} height={self.height}>"

    async def run(self) -> None:
        """Follow until cancelled."""
        failures = 0
        while True:
            before = self._cursor
            try:
                await self._follow()
            except Exception as error:
                # Whatever failed, the node, the connection or the consumer's database: nothing is lost by
                # starting over from the stored cursor, and a follower that gave up would lose everything.
                self.connected, self.error = "down", f"{type(error).__name__}: {error}"
                failures = 1 if self._cursor != before else failures + 1
                expected = isinstance(error, Unavailable | aiohttp.ClientError | _Disconnected | OSError)
                log.warning("following the chain is interrupted: %s", self.error, exc_info=not expected)
            delay = min(BACKOFF_MAX_S, 0.1 * 2 ** min(failures, 10))
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter

    async def _follow(self) -> None:
        self._cursor = await self._consumer.load_cursor()
        self.height = await self._rpc.quorum.height()  # asks, and so finds nodes that are alive
        block_time_s = (await self._rpc.version()).ms_per_block / 1000
        node = self._source()
        if node is None:
            await self._poll(block_time_s)
            return
        # Whatever ends this, the next attempt prefers another node.
        self._avoided[node.url] = time.monotonic() + AVOID_S
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                websocket = await self._rpc.session.ws_connect(
                    _websocket_url(node.url),
                    max_msg_size=_MAX_MESSAGE_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=1),
                )
        except aiohttp.WSServerHandshakeError as error:
            log.info("%s has no WebSocket (HTTP %s): polling", node.name, error.status)
            self._no_websocket_until[node.url] = time.monotonic() + WEBSOCKET_RETRY_S
            return
        async with websocket:
            await self._listen(websocket, node, block_time_s)

    def _source(self) -> Node | None:
        """The best node to take events from; None when none of them is known to have any."""
        now_s = time.monotonic()
        order = self._rpc.pool.selection.ranking.order
        if self._rpc.pool.trusts_one:
            order = order[:1]
        speaking = [node for node in order if now_s >= self._no_websocket_until.get(node.url, 0)]
        return min(speaking, key=lambda node: now_s < self._avoided.get(node.url, 0), default=None)

    async def _poll(self, block_time_s: float) -> None:
        while self._source() is None:
            await self._catch_up()
            self.connected, self.error = "polling", None
            await asyncio.sleep(block_time_s)

    async def _listen(self, websocket: aiohttp.ClientWebSocketResponse, node: Node, block_time_s: float) -> None:
        hearing = Hearing()
        await self._subscribe(websocket, hearing)
        # Subscribed first, so that no block falls between the catching up and the first event.
        await self._catch_up()
        self.connected, self.error, self.source = "websocket", None, node.name
        watch = _Watch(max(SILENCE_BLOCK_TIMES * block_time_s, SILENCE_MIN_S))
        while True:
            event = await self._receive(websocket, LOOK_S)
            if event is None or watch.due():
                self._check_source(node)
                # While others come, news of blocks may be on their way: only their long silence counts then.
                if watch.silent(event is None and self._overdue()):
                    # It stopped making blocks, or stopped telling of them: asking tells these apart.
                    before = self._cursor
                    await self._catch_up()
                    if self._cursor != before:
                        raise _Disconnected("events stopped coming")
                    watch.heard()
            if event is None:
                continue
            if event.method == "event_missed":
                hearing.forget()
                await self._catch_up()
                watch.heard()
            elif event.method == "transaction_executed":
                hearing.hear(event.params)
            elif event.method == "block_added":
                block = block_from_json(decode(event.params)[0])
                node.told_height(block.index, time.monotonic())
                if self._cursor and (block.index, block.previous) == (
                    self._cursor.index + 1,
                    self._cursor.hash,
                ):
                    await self._rpc.quorum.confirm(block.index, block.hash, teller=node.url)
                    await self._process(block, hearing.take(block.hash))
                elif self._cursor is None or block.index > self._cursor.index or block.hash != self._cursor.hash:
                    await self._catch_up()
                # Only now: however long the consumer took, it says nothing of the node.
                watch.heard()

    async def _subscribe(self, websocket: aiohttp.ClientWebSocketResponse, hearing: Hearing) -> None:
        """To executions and blocks. A node that tells of blocks only is asked for the rest.

        Raises:
            _Disconnected: no subscription to blocks.
        """
        asked: dict[int | None, str] = dict(enumerate(("transaction_executed", "block_added")))
        for id_, stream in asked.items():
            request = {"jsonrpc": "2.0", "id": id_, "method": "subscribe", "params": [stream]}
            await websocket.send_str(msgspec.json.encode(request).decode())
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            while asked:
                message = await self._receive(websocket, CONNECT_TIMEOUT_S)
                if message is None:
                    raise TimeoutError
                if message.method == "transaction_executed":
                    hearing.hear(message.params)
                stream = asked.pop(message.id, "")
                if stream and message.error is not None:
                    log.info("no subscription to %s: %s", stream, message.error)
                    if stream == "block_added":
                        raise _Disconnected(f"no subscription to blocks: {message.error}")

    def _overdue(self) -> bool:
        """A majority of the nodes has a block that no event has told of."""
        height = self._rpc.pool.height()
        return height is not None and self._cursor is not None and height > self._cursor.index

    def _check_source(self, node: Node) -> None:
        """
        Raises:
            _Disconnected: this node is not to be followed any more.
        """
        pool = self._rpc.pool
        if pool.trusts_one:
            if pool.first is not node:
                raise _Disconnected(f"{pool.first.name} is used now")
            return
        now_s = time.monotonic()
        if node not in pool.selection.ranking.order and node.state(now_s) != "limited":
            raise _Disconnected(f"{node.name} is {node.state(now_s)}: {node.reason(now_s)}")

    async def _receive(self, websocket: aiohttp.ClientWebSocketResponse, timeout_s: float) -> "_Message | None":
        try:
            message = await websocket.receive(timeout_s)
        except TimeoutError:
            return None
        if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            raise _Disconnected(f"the node closed the WebSocket ({message.type.name})")
        self.messages += 1
        return _message(message.data)

    async def _catch_up(self) -> None:
        """Process everything up to the latest block that a majority of the nodes has."""
        while True:
            self.height = await self._rpc.quorum.height()
            cursor = await self._reconcile(self.height)
            if self.height <= cursor.index:
                return
            count = min(BATCH, self.height - cursor.index)
            blocks = await self._rpc.get_blocks(cursor.index + 1, count, min_height=cursor.index + count)
            if not blocks or blocks[0].previous != cursor.hash:
                # Another chain since we asked, or a node that makes blocks up.
                raise NodeUnavailable(f"no node gives the block that follows {cursor.index}")
            # Each names the one before it, so the last one vouches for all.
            blocks = list(_linked(blocks))
            await self._rpc.quorum.confirm(blocks[-1].index, blocks[-1].hash)
            for block in blocks:
                await self._process(block, NOTHING_HEARD)

    async def _reconcile(self, tip: int) -> Cursor:
        """Make the cursor a block of the node's chain, going back to the last common one if need be.

        A node that is behind the cursor and agrees with us is lagging: we wait for it.
        """
        if self._cursor is None:
            index = tip if self._start_height is None else min(self._start_height - 1, tip)
            first = Cursor(index, await self._rpc.quorum.hash_at(index)) if index >= 0 else _BEFORE_GENESIS
            await self._consumer.start_at(first)
            self._cursor = first
        cursor = self._cursor
        index = min(tip, cursor.index)
        while index >= 0:
            ours = cursor.hash if index == cursor.index else await self._consumer.hash_at(index)
            if ours is None:
                if index == tip:
                    return cursor  # so far behind that we cannot compare: lagging until shown otherwise
                break
            if ours == await self._rpc.quorum.hash_at(index):
                # A node below the cursor that agrees with us up to its tip shows no other block: it lags.
                if index == min(tip, cursor.index):
                    return cursor
                log.warning("the chain lost blocks %d to %d: going back", index + 1, cursor.index)
                self._cursor = Cursor(index, ours)
                await self._consumer.rewind(self._cursor)
                return self._cursor
            index -= 1
        if cursor == _BEFORE_GENESIS:
            return cursor
        raise ChainDiverged(f"no block in common with the nodes down from {min(tip, cursor.index)}")

    async def _process(self, block: Block, executions: Executions) -> None:
        with fenced(block.index):
            await self._consumer.process(block, executions)
        self._cursor = Cursor(block.index, block.hash)
        self.height = max(self.height or 0, block.index)
        self.last_block_at = time.time()


#: The cursor of a consumer that wants the genesis block too, which names this as its predecessor.
_BEFORE_GENESIS: Final = Cursor(-1, Hash256(bytes(32)))


class _Watch:
    """Since when no event told of a block, and since when one should have."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._looked_s = time.monotonic()
        self.heard()

    def due(self) -> bool:
        """It is time to look, though events come."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return False
        self._looked_s = now_s
        return True

    def heard(self) -> None:
        self._heard_s = time.monotonic()
        self._overdue_s: float | None = None

    def silent(self, overdue: bool) -> bool:
        now_s = time.monotonic()
        if not overdue:
            self._overdue_s = None
        elif self._overdue_s is None:
            self._overdue_s = now_s
        late = self._overdue_s is not None and now_s - self._overdue_s >= OVERDUE_S
        return late or now_s - self._heard_s >= self._silence_s


def _linked(blocks: Sequence[Block]) -> Iterator[Block]:
    """Up to the first that does not name the one before it."""
    previous = blocks[0].previous
    for block in blocks:
        if block.previous != previous:
            return
        yield block
        previous = block.hash


class _Message(msgspec.Struct, frozen=True):
    """An answer to a subscription, or an event, whose parameters are decoded by those who want them."""

    id: int | None = None
    error: Any = None
    method: str | None = None
    params: msgspec.Raw = msgspec.Raw(b"[]")


_read_message: Final = msgspec.json.Decoder(_Message).decode


def _message(text: str | bytes) -> _Message:
    try:
        return _read_message(text)
    except msgspec.DecodeError:
        # A lone surrogate somewhere, which `json` writes as an escape.
        event = json.loads(text)
        return _Message(method=event.get("method"), params=msgspec.Raw(json.dumps(event.get("params")).encode()))


class _Disconnected(Exception):
    """The event stream ended."""


def _websocket_url(url: str) -> str:
    """neo-go serves events at ``/ws`` beside its RPC."""
    return "ws" + url.removeprefix("http") + "/ws"
