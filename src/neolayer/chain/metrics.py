"""Prometheus metrics of the nodes. Labels: a node's address as set, without credentials; methods in `methods`."""

from typing import Final

from prometheus_client import Counter, Gauge

from neolayer.observability.tally import TalliedHistogram

LATENCY: Final = TalliedHistogram(
    "neolayer_rpc_duration_seconds",
    "Time to a node's answer, or to giving it up.",
    ["node", "method"],
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
CALLS: Final = Counter(
    "neolayer_rpc_calls_total",
    "HTTP requests to nodes by outcome: answered, or how the node failed.",
    ["node", "method", "outcome"],
)
#: Reads that a second node was asked for, by why; reads answered without asking a node.
HEDGES: Final = Counter("neolayer_rpc_second_asks_total", "Reads asked of one more node.", ["reason"])
SPARED: Final = Counter("neolayer_rpc_spared_total", "Reads that asked no node: shared, kept.", ["how"])
NODE_STATE: Final = Gauge("neolayer_node_state", "1 for the state that a node is in.", ["node", "state"])
NODE_HEIGHT: Final = Gauge("neolayer_node_height", "Index of a node's latest block.", ["node"])
NODE_LAG: Final = Gauge("neolayer_node_lag_blocks", "Blocks behind the other nodes.", ["node"])
NODE_SCORE: Final = Gauge(
    "neolayer_node_score", "How a node's answers compare to the best node's; 1 is best.", ["node"]
)
NODE_IN_FLIGHT: Final = Gauge("neolayer_node_in_flight", "Calls that wait for a node's answer.", ["node"])
NODE_LIMIT: Final = Gauge("neolayer_node_concurrency_limit", "Calls that a node is given at a time.", ["node"])
DEGRADED: Final = Gauge("neolayer_nodes_degraded", "1 while no node is fit and all are used all the same.")
KEPT_BYTES: Final = Gauge("neolayer_chain_cache_bytes", "Size of the chain data that is kept in memory.")
