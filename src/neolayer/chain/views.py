"""The nodes as operators see them: over the API, on the command line, as metrics."""

import time
from datetime import UTC, datetime
from typing import get_args

import msgspec

from neolayer.chain.metrics import NODE_HEIGHT, NODE_IN_FLIGHT, NODE_LAG, NODE_LIMIT, NODE_SCORE, NODE_STATE
from neolayer.chain.node import Node, NodeState
from neolayer.chain.pool import NodePool, PoolOptions


class MethodView(msgspec.Struct, frozen=True):
    #: Exponentially weighted mean and 95th percentile of the last minute; the latter null with few answers.
    ewma_ms: float
    p95_ms: float | None
    #: Answers of the last minute.
    answers: int


class NodeView(msgspec.Struct, frozen=True):
    #: Without credentials.
    url: str
    state: NodeState
    #: Why its state is not ``ok``.
    reason: str | None
    #: Index of its latest block as last told, and blocks behind the other nodes.
    height: int | None
    lag: int
    #: What its answers cost compared to the best node's; 1 is best. A node is asked first until another one's is
    #: 1.3 times better.
    score: float
    #: Of the last minute, from 0 to 1.
    error_rate: float
    #: Calls that wait for its answer, and how many may.
    in_flight: int
    concurrency_limit: int
    breaker: str
    last_error: str | None
    last_error_at: datetime | None
    user_agent: str | None
    methods: dict[str, MethodView]


class NodesView(msgspec.Struct, frozen=True):
    #: Magic; null before a node has answered.
    network: int | None
    #: Whether nodes are scored, probed and judged (`NEOLAYER_OPT_NODE_SELECTION`).
    selection: bool
    #: No node is fit, so all of them are used.
    degraded: bool
    #: The highest block that a majority of the nodes has; null before they were probed.
    height: int | None
    #: Bytes of chain data kept in this process.
    kept_bytes: int
    #: The one that is asked first comes first. As this process sees them: each process has its own view.
    nodes: list[NodeView]


def view(pool: NodePool, options: PoolOptions, *, kept_bytes: int) -> NodesView:
    now_s = time.monotonic()
    ranking = pool.selection.ranking
    rest = [node for node in pool.nodes if node not in ranking.order]
    return NodesView(
        network=pool.network,
        selection=options.select,
        degraded=ranking.degraded,
        height=pool.height(),
        kept_bytes=kept_bytes,
        nodes=[_node_view(node, now_s) for node in (*ranking.order, *rest)],
    )


def _node_view(node: Node, now_s: float) -> NodeView:
    at = None if node.last_error_at is None else datetime.fromtimestamp(node.last_error_at, UTC)
    return NodeView(
        url=node.name,
        state=node.state(now_s),
        reason=node.reason(now_s),
        height=node.height,
        lag=node.lag,
        score=round(node.score, 3),
        error_rate=round(node.outcomes.error_rate(now_s), 4),
        in_flight=node.limit.in_flight,
        concurrency_limit=node.limit.limit,
        breaker=node.breaker.state(now_s),
        last_error=node.last_error,
        last_error_at=at,
        user_agent=node.user_agent,
        methods={
            label: MethodView(
                ewma_ms=round((figures.latency.ewma_s or 0.0) * 1000, 3),
                p95_ms=_ms(figures.latency.quantile(0.95, now_s, samples=20)),
                answers=figures.latency.count(now_s),
            )
            for label, figures in sorted(node.methods.items())
        },
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def show_metrics(pool: NodePool) -> None:
    """Bring the gauges up to date."""
    now_s = time.monotonic()
    for node in pool.nodes:
        present = node.state(now_s)
        for state in get_args(NodeState.__value__):
            NODE_STATE.labels(node.name, state).set(state == present)
        NODE_HEIGHT.labels(node.name).set(-1 if node.height is None else node.height)
        NODE_LAG.labels(node.name).set(node.lag)
        NODE_SCORE.labels(node.name).set(node.score)
        NODE_IN_FLIGHT.labels(node.name).set(node.limit.in_flight)
        NODE_LIMIT.labels(node.name).set(node.limit.limit)
