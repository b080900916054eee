"""Which node is asked first. Ranked where figures change; the request path reads one attribute."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from neolayer.chain.metrics import DEGRADED
from neolayer.chain.node import Node, NodeState, scored

log = logging.getLogger(__name__)

#: A node takes the first place when its score is this much better than the present first one's, which must have
#: been first for a while (of eRPC 30 % and 30 s): reads stay with one node, so that they do not go back
#: and forth between heights. One that is far better need not wait.
BETTER: Final = 1.3
FIRST_FOR_S: Final = 10.0
FAR_BETTER: Final = 3.0


#: Without a fit node the least doubtful one comes first.
_DOUBT: Final[tuple[NodeState, ...]] = (
    *("ok", "limited", "lagging", "half_open", "open", "excluded", "wrong_network"),
)


@dataclass(frozen=True, slots=True)
class Ranking:
    """A decision, replaced as a whole."""

    #: To be asked, best first.
    order: tuple[Node, ...]
    #: No node is fit: ``order`` holds all of them all the same.
    degraded: bool = False


def _doubt(state: NodeState) -> int:
    return 0 if state == "unknown" else _DOUBT.index(state)


class Selection(Protocol):
    """Orders the nodes."""

    ranking: Ranking

    def answered(self, node: Node) -> None:
        """It gave a usable answer to a caller."""

    def changed(self) -> None:
        """Figures or states of nodes have changed."""


class StayWithOne:
    """Plain failover: the node that answered last, then the others in the order in which they were set."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = tuple(nodes)
        self.ranking = Ranking(self._nodes)

    def answered(self, node: Node) -> None:
        first = self.ranking.order[0]
        if node is not first:
            log.warning("left Neo node %s for %s: %s", first.name, node.name, first.last_error)
            position = self._nodes.index(node)
            self.ranking = Ranking(self._nodes[position:] + self._nodes[:position])

    def changed(self) -> None:
        """Nothing but an answer moves it."""


class ByScore:
    """The fit nodes by score; all nodes when none is fit."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = tuple(nodes)
        self._first_since_s = time.monotonic()
        self.ranking = Ranking(self._nodes)

    def answered(self, node: Node) -> None:
        """Its figures say it already."""

    def changed(self) -> None:
        now_s = time.monotonic()
        ours = [node for node in self._nodes if node.stranger is None]
        for node in ours:
            node.score = scored(node, ours, now_s)
        fit = [node for node in ours if node.fit(now_s)]
        first = self.ranking.order[0]
        order = sorted(fit or ours or self._nodes, key=lambda node: (_doubt(node.state(now_s)), node.score))
        settled = now_s - self._first_since_s >= FIRST_FOR_S
        if first in fit and order[0].score * (BETTER if settled else FAR_BETTER) > first.score:
            order.remove(first)
            order.insert(0, first)
        if order[0] is not first:
            self._first_since_s = now_s
            log.info("Neo node %s comes before %s (%s)", order[0].name, first.name, first.state(now_s))
        degraded = not fit
        if degraded and not self.ranking.degraded:
            states = ", ".join(f"{node.name}: {node.reason(now_s)}" for node in self._nodes)
            log.warning("no Neo node is fit, all are used: %s", states)
        DEGRADED.set(degraded)
        self.ranking = Ranking(tuple(order), degraded)
