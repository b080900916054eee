"""One follower of the chain: every block exactly once, in order, through restarts of either side."""

import asyncio
import logging
import random
import time
from typing import Any, Final, Literal, Protocol

import aiohttp
import msgspec

from neolayer.chain.errors import ChainDiverged, NodeUnavailable
from neolayer.chain.rpc import Block, RpcClient, block_from_json
from neolayer.core.types import Hash256

log = logging.getLogger(__name__)

#: Blocks asked for in one HTTP request while catching up.
BATCH: Final = 16
#: Longest wait before the next attempt after failures; seconds.
BACKOFF_MAX_S: Final = 5.0
#: For the WebSocket handshake and for the answer to the subscription; seconds.
CONNECT_TIMEOUT_S: Final = 10.0
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

    async def process(self, block: Block) -> None:
        """The next block: store its consequences and its cursor in one database transaction.

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
        self._no_websocket_until: dict[str, float] = {}

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
                expected = isinstance(error, NodeUnavailable | aiohttp.ClientError | _Disconnected | OSError)
                log.warning("following the chain is interrupted: %s", self.error, exc_info=not expected)
            delay = min(BACKOFF_MAX_S, 0.1 * 2 ** min(failures, 10))
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter

    async def _follow(self) -> None:
        self._cursor = await self._consumer.load_cursor()
        self.height = await self._rpc.block_count() - 1  # asks, and so finds a node that is alive
        block_time_s = (await self._rpc.version()).ms_per_block / 1000
        url = self._rpc.url
        if time.monotonic() < self._no_websocket_until.get(url, 0):
            await self._poll(block_time_s, until=self._no_websocket_until[url])
            return
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                websocket = await self._rpc.session.ws_connect(
                    _websocket_url(url),
                    max_msg_size=_MAX_MESSAGE_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=1),
                )
        except aiohttp.WSServerHandshakeError as error:
            log.info("%s has no WebSocket (HTTP %s): polling", url, error.status)
            self._no_websocket_until[url] = time.monotonic() + WEBSOCKET_RETRY_S
            return
        async with websocket:
            await self._listen(websocket, url, block_time_s)

    async def _poll(self, block_time_s: float, until: float) -> None:
        while time.monotonic() < until:
            await self._catch_up()
            self.connected, self.error = "polling", None
            await asyncio.sleep(block_time_s)

    async def _listen(self, websocket: aiohttp.ClientWebSocketResponse, url: str, block_time_s: float) -> None:
        subscribe = {"jsonrpc": "2.0", "id": 1, "method": "subscribe", "params": ["block_added"]}
        await websocket.send_str(msgspec.json.encode(subscribe).decode())
        reply = await self._receive(websocket, CONNECT_TIMEOUT_S)
        if reply is None or "result" not in reply:
            raise _Disconnected(f"no subscription to blocks: {reply}")
        # Subscribed first, so that no block falls between the catching up and the first event.
        await self._catch_up()
        self.connected, self.error = "websocket", None
        while True:
            # Silence may be a node that stopped making blocks or a dead connection: asking tells them apart.
            event = await self._receive(websocket, max(3 * block_time_s, 2.0))
            if event is None:
                before = self._cursor
                await self._catch_up()
                if self._cursor != before or self._rpc.url != url:
                    raise _Disconnected("events stopped coming")
            elif event.get("method") == "event_missed":
                await self._catch_up()
            elif event.get("method") == "block_added":
                block = block_from_json(event["params"][0])
                self.height = max(self.height or 0, block.index)
                if self._cursor and (block.index, block.previous) == (
                    self._cursor.index + 1,
                    self._cursor.hash,
                ):
                    await self._process(block)
                elif self._cursor is None or block.index > self._cursor.index or block.hash != self._cursor.hash:
                    await self._catch_up()

    async def _receive(
        self, websocket: aiohttp.ClientWebSocketResponse, timeout_s: float
    ) -> dict[str, Any] | None:
        try:
            message = await websocket.receive(timeout_s)
        except TimeoutError:
            return None
        if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            raise _Disconnected(f"the node closed the WebSocket ({message.type.name})")
        decoded: dict[str, Any] = msgspec.json.decode(message.data)
        return decoded

    async def _catch_up(self) -> None:
        """Process everything up to the node's latest block."""
        while True:
            self.height = await self._rpc.block_count() - 1
            cursor = await self._reconcile(self.height)
            if self.height <= cursor.index:
                return
            blocks = await self._rpc.get_blocks(cursor.index + 1, min(BATCH, self.height - cursor.index))
            if not blocks:
                # Another node answered than the one that told the height.
                raise NodeUnavailable(f"{self._rpc.url} has no block {cursor.index + 1} yet")
            for block in blocks:
                if self._cursor is None or block.previous != self._cursor.hash:
                    break  # another chain since we asked: reconcile again
                await self._process(block)

    async def _reconcile(self, tip: int) -> Cursor:
        """Make the cursor a block of the node's chain, going back to the last common one if need be.

        A node that is behind the cursor and agrees with us is lagging: we wait for it.
        """
        if self._cursor is None:
            index = tip if self._start_height is None else min(self._start_height - 1, tip)
            first = Cursor(index, await self._rpc.block_hash(index)) if index >= 0 else _BEFORE_GENESIS
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
            if ours == await self._rpc.block_hash(index):
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
        raise ChainDiverged(f"no block in common with {self._rpc.url} down from {min(tip, cursor.index)}")

    async def _process(self, block: Block) -> None:
        await self._consumer.process(block)
        self._cursor = Cursor(block.index, block.hash)
        self.height = max(self.height or 0, block.index)
        self.last_block_at = time.time()


#: The cursor of a consumer that wants the genesis block too, which names this as its predecessor.
_BEFORE_GENESIS: Final = Cursor(-1, Hash256(bytes(32)))


class _Disconnected(Exception):
    """The event stream ended."""


def _websocket_url(url: str) -> str:
    """neo-go serves events at ``/ws`` beside its RPC."""
    return "ws" + url.removeprefix("http") + "/ws"
