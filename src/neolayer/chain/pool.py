"""The nodes of one network: probed beside the callers, judged, ranked."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from neolayer.chain.answers import Version
from neolayer.chain.errors import RpcError
from neolayer.chain.judge import Judge, Testimony
from neolayer.chain.node import Node, shown
from neolayer.chain.selection import ByScore, Selection, StayWithOne
from neolayer.chain.transport import NodeFailed, Request, Transport
from neolayer.core.types import Hash256

log = logging.getLogger(__name__)

#: A probe is three small reads; a node that needs longer is of no use to callers that wait; seconds.
PROBE_TIMEOUT_S: Final = 1.5
#: How often a node that answers is asked for its version; it may have been updated, or be another; seconds.
VERSION_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What an operator can set; see `core.settings`."""

    #: Score, probe and judge the nodes; off: stay with the one that answered last.
    select: bool = True
    #: Ask a second node when the first is slower than usual.
    hedge: bool = True
    #: Keep final chain data, and let equal reads in flight share one answer.
    keep: bool = True
    keep_bytes: int = 32 * 1024 * 1024
    #: Nodes that a transaction is sent to at once.
    broadcast: int = 3
    #: A node this many blocks behind the others is lagging.
    lag_blocks: int = 3
    #: Between two probes of a node; seconds.
    probe_s: float = 1.0
    #: Magic; None: that of the first node that answers.
    network: int | None = None


class NodePool:
    """Belongs to the event loop in which `begin` is called first. Close with `close`."""

    def __init__(
        self,
        urls: Sequence[str],
        transport: Transport,
        options: PoolOptions,
        *,
        timeout_s: float,
        connections: int,
        disbelieved: Callable[[Node], None],
    ) -> None:
        """
        Args:
            urls: ``http://host:port``, best first.
            disbelieved: called with a node that was caught.
        """
        self._transport = transport
        self._options = options
        self._timeout_s = timeout_s
        names = shown(url.rstrip("/") for url in urls)
        self.nodes = tuple(
            Node(url, name, connections=connections, adaptive=options.select) for url, name in names.items()
        )
        self.selection: Selection = ByScore(self.nodes) if options.select else StayWithOne(self.nodes)
        self.network = options.network
        self._network_known = asyncio.Event()
        # Whoever is probed every `probe_s` and answers within the time is heard at least this often.
        self.judge = Judge(
            self.nodes,
            lag_blocks=options.lag_blocks,
            silent_s=1.2 * options.probe_s + PROBE_TIMEOUT_S,
            disbelieved=disbelieved,
        )
        self._probed: set[str] = set()
        self._all_probed = asyncio.Event()
        self._probers: list[asyncio.Task[None]] = []
        self._introductions: dict[str, asyncio.Task[Version]] = {}

    @property
    def first(self) -> Node:
        """The node that is asked first."""
        return self.selection.ranking.order[0]

    def begin(self) -> None:
        """Start probing, at the first use."""
        if self._options.select and not self._probers:
            self._probers = [asyncio.create_task(self._keep_probing(node)) for node in self.nodes]
            self._probers.append(asyncio.create_task(self._meet()))

    async def close(self) -> None:
        for task in self._probers:
            task.cancel()
        for task in self._probers:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._probers = []

    async def probed(self) -> None:
        """Wait until each node was looked at once; as long as a probe takes at most."""
        if self._options.select:
            self.begin()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * PROBE_TIMEOUT_S):
                    await self._all_probed.wait()

    @property
    def trusts_one(self) -> bool:
        """No majority is asked for: there is one node, or node choice is off."""
        return len(self.nodes) == 1 or not self._options.select

    def exclude(self, node: Node, fault: str) -> None:
        """It was caught."""
        self.judge.exclude(node, fault)
        self.selection.changed()

    def voters(self) -> list[Node]:
        """Whose majority decides about blocks."""
        return self.judge.voters(time.monotonic()) or list(self.selection.ranking.order)

    def height(self) -> int | None:
        """The highest block that a majority of the voters has, as last probed; None without probes."""
        return self.judge.height(time.monotonic()) if self._options.select else None

    async def introduce(self, node: Node) -> Version:
        """Its version, asked for if it is not known or may have changed.

        Raises:
            NodeFailed: it does not tell, or is of another network.
        """
        if node.version is not None:
            return node.version
        asking = self._introductions.get(node.url)
        if asking is None:
            asking = self._introductions[node.url] = asyncio.create_task(self._ask_version(node))
            asking.add_done_callback(lambda done: self._introduced(node, done))
        # Shared: one caller that gives up does not end it for the others.
        return await asyncio.shield(asking)

    def _introduced(self, node: Node, done: asyncio.Task[Version]) -> None:
        self._introductions.pop(node.url, None)
        if not done.cancelled():
            done.exception()  # seen, also when everybody who asked has left

    async def _ask_version(self, node: Node) -> Version:
        (reply,) = await self._measured(node, "getversion", [("getversion", ())])
        try:
            version = Version.from_json(reply)
        except (KeyError, TypeError) as error:
            raise NodeFailed("garbage", f"getversion: {error}") from None
        if self.network is None:
            self.network = version.network
        self._network_known.set()
        if version.network != self.network:
            if node.stranger is None:
                log.error("Neo node %s belongs to network %d, not %d", node.name, version.network, self.network)
            node.stranger = version.network
            self.selection.changed()
            raise NodeFailed("network", f"network {version.network}, expected {self.network}")
        node.version, node.user_agent, node.stranger = version, version.user_agent, None
        return version

    async def _measured(self, node: Node, label: str, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Results and `RpcError`s of calls of our own, counted as those of callers are."""
        request = Request(calls, batch=len(calls) > 1, heights=False)
        begun_s = time.monotonic()
        try:
            answer = await self._transport.post(node.url, request, min(self._timeout_s, PROBE_TIMEOUT_S))
        except NodeFailed as failure:
            node.failed(label, failure, time.monotonic() - begun_s, time.monotonic())
            self.selection.changed()
            raise
        node.answered(label, time.monotonic() - begun_s, time.monotonic())
        results: list[Any] = []
        for reply in answer.replies:
            try:
                results.append(reply.value())
            except RpcError as error:
                results.append(error)
        return results

    # --- probing ---

    async def _meet(self) -> None:
        """Let the first node that answers set the network, in the order in which they were set."""
        while self.network is None:
            for node in self.nodes:
                with contextlib.suppress(NodeFailed):
                    await self.introduce(node)
                    return
            await asyncio.sleep(self._options.probe_s)

    async def _keep_probing(self, node: Node) -> None:
        if self.network is None:
            await self._network_known.wait()
        version_due_s = 0.0
        while True:
            now_s = time.monotonic()
            if node.breaker.state(now_s) != "open" and now_s >= node.rests_until:
                try:
                    if now_s >= version_due_s:
                        await self._ask_version(node)
                        version_due_s = now_s + VERSION_S
                    await self._probe(node)
                except NodeFailed as failure:
                    log.debug("probe of %s: %s", node.name, failure)
                except Exception:
                    # Whatever a node answers, it must not end the looking at it.
                    log.exception("probe of %s", node.name)
            self._probed.add(node.url)
            if len(self._probed) == len(self.nodes):
                self._all_probed.set()
            self.judge.look(time.monotonic())
            self.selection.changed()
            await asyncio.sleep(self._options.probe_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def _probe(self, node: Node) -> None:
        # Also of a stranger: its owner may have put things right.
        await self.introduce(node)
        reference, told = self.judge.reference, self.judge.told(node)
        calls: list[tuple[str, Sequence[Any]]] = [("getblockcount", ())]
        # In one batch: a node cannot move between the questions, and it is one request.
        calls += [("getblockhash", [index]) for index in (reference, told) if index is not None]
        results = await self._measured(node, "probe", calls)
        if not isinstance(results[0], int):
            raise NodeFailed("garbage", f"getblockcount: {results[0]}")
        height = results[0] - 1
        false_claim = None
        if told is not None and isinstance(results[-1], RpcError) and height >= told:
            false_claim = told
        if told is None or height > told + self._options.lag_blocks:
            # A leap is believed only with the block to show for it.
            (shown,) = await self._measured(node, "getblockhash", [("getblockhash", [height])])
            false_claim = height if isinstance(shown, RpcError) else false_claim
        vote = results[1] if reference is not None else None
        hash_ = str(Hash256.parse(vote)) if isinstance(vote, str) else None
        self.judge.hear(node, Testimony(height, reference, hash_, false_claim), time.monotonic())
