"""Node choice on and off, with one of three real nodes slowed: what readers wait, and what it costs the nodes.

A private network of one validator and two followers, each behind a proxy. In each round the node that a client
asks first is slowed by 300 ms as the measuring begins, so each arm is hit and has to find out. Reads arrive at a
fixed rate whether earlier ones were answered or not (no coordinated omission), each of another account's balance,
so that none is answered from memory. All of it, proxies and load included, runs in one process beside the nodes.
How long transfers take meanwhile is measured on whole systems, see `slowed`.

    python -m perf.nodes --rounds 10 --write docs/performance/nodes.md
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from tests.network import Network

from neolayer.chain.rpc import PoolOptions, RpcClient
from neolayer.chain.scripts import GAS
from neolayer.core.types import Hash160
from perf.slowed import time_to_confirm
from perf.stats import median, ratio

SLOWER_S = 0.3
RATE = 60
#: Of one arm in one round; seconds.
MEASURED_S = 6.0
CALM_S = 0.7
#: A slow node should be found out by then; seconds.
FOUND_S = 2.0
#: Off is plain failover: the node that answered last, one attempt after the other.
ARMS = {
    "off": PoolOptions(select=False, hedge=False, keep=False),
    "node choice": PoolOptions(hedge=False, keep=False),
    "node choice, hedged reads": PoolOptions(keep=False),
    "all on": PoolOptions(),
}


@dataclass(frozen=True)
class Figure:
    """One arm in one round; ms."""

    p50: float
    p95: float
    p99: float
    #: Of the reads that were due later than `FOUND_S`.
    later: float
    failures: int
    #: HTTP requests to nodes for one read, probes included.
    requests: float


async def measure(network: Network, client: RpcClient) -> Figure:
    slow = network.node_of(client.url)
    before = sum(node.proxy.asked.total() for node in network.nodes)
    took: list[tuple[float, float]] = []
    failures = 0

    async def read(due_s: float) -> None:
        nonlocal failures
        try:
            await client.balance_of(GAS, Hash160(os.urandom(20)))
        except Exception:  # noqa: BLE001, RUF100 - a failed read is a figure
            failures += 1
        took.append((due_s - begun_s, (time.perf_counter() - due_s) * 1000))

    slow.proxy.delay_s = SLOWER_S
    begun_s = time.perf_counter()
    tasks = []
    for number in range(int(RATE * MEASURED_S)):
        due_s = begun_s + number / RATE
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(read(due_s)))
    await asyncio.gather(*tasks)
    slow.proxy.delay_s = 0.0
    asked = sum(node.proxy.asked.total() for node in network.nodes) - before
    all_ms = sorted(ms for _, ms in took)
    later_ms = sorted(ms for due_s, ms in took if due_s >= FOUND_S)
    p50, p95, p99 = (_percentile(all_ms, percent) for percent in (50, 95, 99))
    return Figure(p50, p95, p99, _percentile(later_ms, 95), failures, asked / len(took))


async def compare(rounds: int) -> dict[str, list[Figure]]:
    figures: dict[str, list[Figure]] = {name: [] for name in ARMS}
    async with AsyncExitStack() as stack:
        network = Network(Path(stack.enter_context(tempfile.TemporaryDirectory())), block_time="1s")
        stack.push_async_callback(network.close)
        await network.start()
        for number in range(rounds):
            for name in list(ARMS) if number % 2 == 0 else list(ARMS)[::-1]:
                # A client of its own, so that nothing of an earlier round helps or harms it.
                client = RpcClient(network.urls, timeout_s=5.0, options=ARMS[name])
                await client.pool.probed()
                for _ in range(30):
                    await client.balance_of(GAS, Hash160(os.urandom(20)))
                await asyncio.sleep(CALM_S)
                try:
                    figures[name].append(await measure(network, client))
                finally:
                    await client.aclose()
    return figures


def report(figures: dict[str, list[Figure]], rounds: int) -> str:
    lines = [
        "# Node choice",
        "",
        f"`python -m perf.nodes --rounds {rounds}` on {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}."
        f" Three neo-go nodes, 1 s blocks; the node in use is slowed by {SLOWER_S * 1000:.0f} ms as each round of"
        f" {MEASURED_S:g} s begins. {RATE} reads a second of balances, in ms from the time they were due. Median"
        f" of {rounds} interleaved rounds with its 95 % bootstrap interval.",
        "",
        f"| | p50 | p95 | p99 | p95 after {FOUND_S:g} s | p95, on / off | failed reads | requests for a read |",
        "|---|---|---|---|---|---|---|---|",
    ]
    off = [figure.p95 for figure in figures["off"]]
    for name, rows in figures.items():
        shown = "" if name == "off" else ratio([row.p95 for row in rows], off).format("{:.3f}")
        columns = [
            median([getattr(row, column) for row in rows]).format("{:.1f}")
            for column in ("p50", "p95", "p99", "later")
        ]
        failed = sum(row.failures for row in rows)
        requests = median([row.requests for row in rows]).format()
        lines.append(f"| {name} | {' | '.join(columns)} | {shown} | {failed} | {requests} |")
    return "\n".join(lines) + "\n"


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", choices=("reads", "transfers"), help="one of the two parts")
    parser.add_argument("--write", type=Path, help="write the report there")
    arguments = parser.parse_args()
    text = ""
    if arguments.only != "transfers":
        text = report(uvloop.run(compare(arguments.rounds)), arguments.rounds)
    if arguments.only != "reads":
        with tempfile.TemporaryDirectory() as folder:
            text += "\n".join(["", *uvloop.run(time_to_confirm(Path(folder), arguments.rounds))])
    print(text)
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
