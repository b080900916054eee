"""What is known of one Neo node: how fast and how often it answers, how high it is, and whether it is believed."""

import time
from collections.abc import Iterable
from typing import Final, Literal
from urllib.parse import urlsplit

from neolayer.chain.answers import Version
from neolayer.chain.breaker import Breaker, ConcurrencyLimit
from neolayer.chain.latency import Latency, Outcomes
from neolayer.chain.metrics import CALLS, LATENCY
from neolayer.chain.transport import NodeFailed

#: ``limited``: it answered that it gets too many requests. ``unknown``: not asked yet.
type NodeState = Literal["ok", "lagging", "open", "half_open", "limited", "excluded", "wrong_network", "unknown"]

#: A read that is not answered for this long is asked of the next node as well; seconds. With half a second for
#: the answer it keeps failover below 2 s, and no read of a healthy node comes near it.
FAILOVER_S: Final = 1.0
#: Before a hedge when the node's own p95 is not known yet, and at least; seconds.
HEDGE_DEFAULT_S: Final = 0.25
HEDGE_MIN_S: Final = 0.01
#: Times in a row that another node answers first until that counts as a failure.
OVERTAKEN: Final = 3
#: A p95 of fewer answers is noise.
_P95_SAMPLES: Final = 20
#: Answers after which a p95 is computed anew, so that it costs the request path nearly nothing.
_P95_EVERY: Final = 32


class MethodFigures:
    """Of one method at one node."""

    def __init__(self) -> None:
        self.latency = Latency()
        #: Seconds, of the last minute; None while there are too few answers.
        self.p95_s: float | None = None
        self._observed = 0

    def observe(self, seconds: float, now_s: float) -> None:
        self.latency.observe(seconds, now_s)
        self._observed += 1
        if self._observed % _P95_EVERY == 0 or self._observed == _P95_SAMPLES:
            self.p95_s = self.latency.quantile(0.95, now_s, samples=_P95_SAMPLES)


class Node:
    """One node of the pool. Its figures are written where calls end and read by whoever ranks the nodes."""

    def __init__(self, url: str, name: str, *, connections: int, adaptive: bool) -> None:
        """
        Args:
            name: its address as it may be shown, see `shown`.
            connections: that it is given at a time at most.
            adaptive: whether its own behaviour decides how many below that.
        """
        self.url = url
        self.name = name
        self.breaker = Breaker()
        self.limit = ConcurrencyLimit(connections, adaptive=adaptive)
        self.methods: dict[str, MethodFigures] = {}
        self.outcomes = Outcomes()
        #: None until it has said it, and again after each cut connection: another node may sit there by then.
        self.version: Version | None = None
        #: What it said last, for people; stays when `version` has to be asked again.
        self.user_agent: str | None = None
        #: Magic of its network, when that is not the pool's.
        self.stranger: int | None = None
        #: Index of its latest block, as last told.
        self.height: int | None = None
        #: Blocks behind the others.
        self.lag = 0
        #: Monotonic times of its last usable answer and of its last new block; seconds, 0 for never.
        self.heard_at = 0.0
        self.advanced_at = 0.0
        #: Why it is not read from, see `Judge`.
        self.lagging: str | None = None
        self.excluded: str | None = None
        self.rests_until = 0.0
        self.last_error: str | None = None
        #: Unix time; seconds.
        self.last_error_at: float | None = None
        #: See `scored`; 1 is best.
        self.score = 1.0
        self._overtaken = 0

    def __repr__(self) -> str:
        return f"<Node {self.name} {self.state(time.monotonic())} height={self.height} score={self.score:.2f}>"

    def state(self, now_s: float) -> NodeState:
        if self.stranger is not None:
            return "wrong_network"
        if self.excluded is not None:
            return "excluded"
        breaker = self.breaker.state(now_s)
        if breaker != "closed":
            return breaker
        if now_s < self.rests_until:
            return "limited"
        if self.lagging is not None:
            return "lagging"
        return "ok" if self.heard_at else "unknown"

    def reason(self, now_s: float) -> str | None:
        """Why its state is not ok."""
        match self.state(now_s):
            case "wrong_network":
                return f"it belongs to network {self.stranger}"
            case "excluded":
                return self.excluded
            case "lagging":
                return self.lagging
            case "ok":
                return None
            case _:
                return self.last_error

    def fit(self, now_s: float) -> bool:
        """Whether it is asked at all while there are others."""
        return self.state(now_s) in ("ok", "unknown")

    # --- what happened ---

    def told_height(self, height: int, now_s: float) -> None:
        if self.height is None or height > self.height:
            self.advanced_at = now_s
        self.height = height

    def answered(self, label: str, seconds: float, now_s: float) -> None:
        """A usable answer came, a refusal with reason included."""
        self._observe(label, seconds, now_s)
        self.outcomes.answered(now_s)
        self.breaker.succeeded()
        self.limit.grow()
        self.heard_at = now_s
        self._overtaken = 0
        CALLS.labels(self.name, label, "answered").inc()

    def failed(self, label: str, failure: NodeFailed, seconds: float, now_s: float) -> None:
        """No usable answer came."""
        CALLS.labels(self.name, label, failure.kind).inc()
        if failure.kind in ("behind", "network"):
            return
        self.last_error, self.last_error_at = str(failure), time.time()
        if failure.rest_s:
            self.rests_until = max(self.rests_until, now_s + failure.rest_s)
        if failure.kind in ("timeout", "limited", "http"):
            self.limit.shrink(now_s)
        if failure.kind == "limited":
            # It is well, only not for us just now.
            self.heard_at = now_s
            return
        if failure.kind in ("refused", "cut", "garbage"):
            self.version = None
        if failure.kind == "timeout":
            self._observe(label, seconds, now_s)
        self._hurt(failure, now_s)

    def abandoned(self, label: str, seconds: float, now_s: float) -> None:
        """Another node was faster, or the caller left: it takes at least that long, if that tells anything."""
        figures = self.methods.get(label)
        usual_s = figures.latency.ewma_s if figures else None
        if usual_s is not None and seconds > usual_s:
            self._observe(label, seconds, now_s)
        if seconds >= FAILOVER_S:
            self.failed(label, NodeFailed("timeout", f"no answer within {seconds:.1f} s"), seconds, now_s)

    def overtaken(self, label: str, now_s: float) -> None:
        """Another node answered first although this one was asked before it.

        That happens to one read in twenty. One that answers nothing in between for the third time hangs, and is
        found out by its failures before the hedges are used up.
        """
        self._overtaken += 1
        if self._overtaken >= OVERTAKEN:
            failure = NodeFailed("timeout", f"no answer to {self._overtaken} calls in a row")
            CALLS.labels(self.name, label, failure.kind).inc()
            self._hurt(failure, now_s)

    def _hurt(self, failure: NodeFailed, now_s: float) -> None:
        self.last_error, self.last_error_at = str(failure), time.time()
        self.outcomes.failed(now_s)
        answers, failures = self.outcomes.counts(now_s)
        self.breaker.failed(now_s, failures=failures, calls=answers + failures)

    def _observe(self, label: str, seconds: float, now_s: float) -> None:
        figures = self.methods.get(label)
        if figures is None:
            figures = self.methods[label] = MethodFigures()
        figures.observe(seconds, now_s)
        LATENCY.of(self.name, label).observe(seconds)

    def hedge_after_s(self, label: str) -> float:
        """When to ask a second node: nineteen of twenty answers have come by then."""
        figures = self.methods.get(label)
        if figures is None or figures.p95_s is None:
            return HEDGE_DEFAULT_S
        return max(figures.p95_s, HEDGE_MIN_S)


#: Keeps differences that nobody feels from deciding; seconds.
_UNFELT_S: Final = 0.005
#: Answers that are taken to have been as fast as the best, so that the first few do not decide.
_PRIOR: Final = 5


def scored(node: Node, others: list[Node], now_s: float) -> float:
    """How much more than the best node's its answers cost, for the same methods; 1 is best.

    The mean over the methods that it and others answered in the last minute of its latency's ratio to the shortest
    of any node, weighted by the number of answers, and of `_PRIOR` ones; times penalties: ten times the error
    rate, and one for each block of lag.
    """
    total = weights = float(_PRIOR)
    for label, figures in node.methods.items():
        weight = min(figures.latency.count(now_s), 100)
        own_s = figures.latency.ewma_s
        if not weight or own_s is None:
            continue
        compared = [
            theirs.latency.ewma_s
            for other in others
            if other is not node
            and (theirs := other.methods.get(label)) is not None
            and theirs.latency.ewma_s is not None
            and theirs.latency.count(now_s)
        ]
        if not compared:
            continue  # nobody else was asked this: probes tell them apart
        best_s = min(own_s, *compared)
        total += weight * (own_s + _UNFELT_S) / (best_s + _UNFELT_S)
        weights += weight
    return total / weights * (1 + 10 * node.outcomes.error_rate(now_s)) * (1 + node.lag)


def shown(urls: Iterable[str]) -> dict[str, str]:
    """Names of nodes: without user, path and query, where gateways take keys; equal ones are numbered."""
    names: dict[str, str] = {}
    for url in urls:
        parts = urlsplit(url)
        name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        same = sum(other.split("#")[0] == name for other in names.values())
        names[url] = f"{name}#{same + 1}" if same else name
    return names
