"""Which nodes are believed: what they say of the chain is compared, probe by probe."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from neolayer.chain.node import Node

log = logging.getLogger(__name__)


#: A node whose height goes back by more than this has lost its chain, or lies; one block may be the other
#: machine behind the same address.
BACK_BLOCKS: Final = 1
#: No new block for so many block times, and at least so long, while others have two more: cut from its peers.
STALE_BLOCK_TIMES: Final = 3
STALE_MIN_S: Final = 2.0
#: Probes in a row that contradict nobody, after which an excluded node is believed again.
GOOD_PROBES: Final = 10
#: A node that has not told its hash of a reference by then is not waited for; seconds.
REFERENCE_S: Final = 3.0
#: A node that fails this often in a row has no say; one cut connection is no reason.
FAILING: Final = 2
#: Without a version to tell the block time; seconds (mainnet's).
BLOCK_TIME_S: Final = 15.0


class Testimony(msgspec.Struct, frozen=True):
    """What one probe of a node brought."""

    height: int
    #: What `Judge.reference` was when it was asked, and its hash of that block; None: it has no such block.
    reference: int | None = None
    reference_hash: str | None = None
    #: A height that it told, this time or the last time, and of which it has no block.
    false_claim: int | None = None


class Judge:
    """Compares the testimonies of a pool's nodes.

    A node is excluded when it contradicts itself (its height goes back; it lacks a block that it claimed to have)
    or the majority of the nodes that answer (another hash at the same index). It is lagging when it is
    ``lag_blocks`` behind the others, or gets no new blocks while others do.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        lag_blocks: int,
        silent_s: float,
        disbelieved: Callable[[Node], None],
    ) -> None:
        """
        Args:
            silent_s: a node that was not heard for this long has no say.
            disbelieved: called with a node that is excluded.
        """
        self._nodes = nodes
        self._lag_blocks = lag_blocks
        self._silent_s = silent_s
        self._disbelieved = disbelieved
        self._heights: dict[str, int] = {}
        self._good: Counter[str] = Counter()
        #: The block that all nodes are asked for, until all have answered; then a newer one.
        self.reference: int | None = None
        self._reference_until = 0.0
        self._votes: dict[str, str] = {}

    def live(self, now_s: float) -> list[Node]:
        """Nodes of our network that answered just now, believed or not."""
        return [
            node
            for node in self._nodes
            if node.stranger is None
            and node.heard_at
            and now_s - node.heard_at <= self._silent_s
            and node.breaker.failures_in_a_row < FAILING
        ]

    def voters(self, now_s: float) -> list[Node]:
        """Those whose majority decides. When none is believed it is all that answer."""
        live = self.live(now_s)
        believed = [node for node in live if node.excluded is None and node.lagging is None]
        return believed or live

    def height(self, now_s: float) -> int | None:
        """The highest block that a majority of the voters has, as last probed; None before they were heard."""
        voters = self.voters(now_s)
        heights = sorted((self._heights[node.url] for node in voters if node.url in self._heights), reverse=True)
        return heights[len(voters) // 2] if len(heights) > len(voters) // 2 else None

    def told(self, node: Node) -> int | None:
        """The height that its last probe brought."""
        return self._heights.get(node.url)

    def hear(self, node: Node, testimony: Testimony, now_s: float) -> None:
        """Take a probe's result and judge all nodes anew."""
        before = self._heights.get(node.url)
        fault = None
        if before is not None and testimony.height < before - BACK_BLOCKS:
            fault = f"its height went back from {before} to {testimony.height}"
        elif testimony.false_claim is not None:
            fault = f"it said its height was {testimony.false_claim} and has no such block"
        node.told_height(testimony.height, now_s)
        self._heights[node.url] = testimony.height
        if testimony.reference_hash is not None and testimony.reference == self.reference:
            self._votes[node.url] = testimony.reference_hash
        if fault is not None:
            self.exclude(node, fault)
        elif node.excluded is not None:
            self._good[node.url] += 1
            if self._good[node.url] >= GOOD_PROBES:
                node.excluded = None
        self._compare(now_s)
        self.look(now_s)

    def exclude(self, node: Node, fault: str) -> None:
        """Until it has contradicted nobody for a while."""
        if node.excluded is None:
            log.warning("Neo node %s is excluded: %s", node.name, fault)
        node.excluded = fault
        self._good[node.url] = 0
        self._disbelieved(node)

    def look(self, now_s: float) -> None:
        """Find those that lag."""
        live = [node for node in self.live(now_s) if node.url in self._heights]
        heights = sorted((self._heights[node.url] for node in live if node.excluded is None), reverse=True)
        if not heights:
            return
        # With three or more, one that is ahead alone does not make the others late.
        top = heights[1] if len(heights) > 2 else heights[0]
        for node in live:
            node.lag = max(0, top - self._heights[node.url])
            allowed = self._lag_blocks if node.lagging is None else 2
            if self._stale(node, live, now_s):
                node.lagging = f"no new block for {now_s - node.advanced_at:.1f} s while other nodes have more"
            elif node.lag >= allowed:
                node.lagging = f"{node.lag} blocks behind the other nodes"
            else:
                node.lagging = None

    def _stale(self, node: Node, live: Sequence[Node], now_s: float) -> bool:
        block_time_s = node.version.ms_per_block / 1000 if node.version else BLOCK_TIME_S
        patience_s = max(STALE_BLOCK_TIMES * block_time_s, STALE_MIN_S)
        return now_s - node.advanced_at > patience_s and any(
            other.excluded is None
            and self._heights[other.url] >= self._heights[node.url] + 2
            and now_s - other.advanced_at <= patience_s
            for other in live
        )

    def _compare(self, now_s: float) -> None:
        """Exclude whoever has another block at the reference than the majority of those that have one."""
        live = self.live(now_s)
        votes = {node.url: self._votes[node.url] for node in live if node.url in self._votes}
        if votes:
            hash_, count = Counter(votes.values()).most_common(1)[0]
            for node in live:
                if count > len(votes) / 2 and votes.get(node.url, hash_) != hash_:
                    fault = f"its block {self.reference} is not that of {count} of {len(votes)} nodes"
                    self.exclude(node, fault)
        if self.reference is None or len(votes) == len(live) or now_s >= self._reference_until:
            self.reference = self.height(now_s)
            self._reference_until = now_s + REFERENCE_S
            self._votes = {}
