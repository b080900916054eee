"""From the wish for a transfer to knowing that it is in a block, while one of three nodes is slow.

Two whole systems, with the choice of nodes and without, on one network, each with proxies of its own before the
three nodes. They are measured in turns. In each turn transfers arrive at a fixed rate, whether earlier ones are
confirmed or not; after a calm while the node that the system asks most is slowed, and those that come from then on
count. A client waits for each by long poll.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.network import Network
from tests.proxy import NodeProxy
from tests.system import RECEIVER, System

from neolayer.chain.payload import parse_account
from neolayer.chain.rpc import RpcClient
from neolayer.supervisor import leftovers
from perf.bench import alternating
from perf.stats import median, ratio

SLOWER_S: Final = 0.3
#: Transfers a second.
RATE: Final = 5
CALM_S: Final = 3.0
#: With the slow node; seconds.
MEASURED_S: Final = 12.0
FUNDS: Final = 5_000
#: Without choice: the node that answered last, until it fails.
OFF: Final = {"opt_node_selection": "0", "opt_hedged_reads": "0", "opt_chain_cache": "0"}


@dataclass(frozen=True, slots=True)
class Turn:
    """Of one system; ms from the time a transfer was due until it was known to be confirmed."""

    p50: float
    p95: float
    #: Of those due in the first second with the slow node, and of the rest.
    first: float
    later: float


class Behind:
    """A system and the proxies that it sees the nodes through."""

    def __init__(self, system: System, proxies: Sequence[NodeProxy], address: str) -> None:
        self._system = system
        self._proxies = proxies
        self._address = address
        self._sent = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, network: Network, rpc: RpcClient, home: Path, **settings: str) -> AsyncIterator["Behind"]:
        proxies = [NodeProxy(node.url) for node in network.nodes]
        for proxy in proxies:
            await proxy.start()
        system = System(home, rpc_urls=",".join(proxy.url for proxy in proxies), lease_s="10", **settings)
        system.rpc_url = network.validator.url
        try:
            wallet = (await system.start())["wallet_address"]
            await network.devnet.wait(rpc, await network.devnet.fund(rpc, parse_account(wallet), FUNDS * 10**8))
            await network.level()
            yield cls(system, proxies, wallet)
        finally:
            try:
                await system.stop()
            finally:
                await leftovers.end(system.home)
            for proxy in proxies:
                await proxy.close()

    async def turn(self) -> Turn:
        for proxy in self._proxies:
            proxy.asked.clear()
        calm = await self._arrive(CALM_S)
        slow = max(self._proxies, key=lambda proxy: proxy.asked.total())
        slow.delay_s = SLOWER_S
        try:
            measured = await self._arrive(MEASURED_S)
            await asyncio.gather(*calm)
            took = [ms for _, ms in sorted(await asyncio.gather(*measured))]
        finally:
            slow.delay_s = 0.0
        return Turn(
            _percentile(took, 50),
            _percentile(took, 95),
            _percentile(took[:RATE], 50),
            _percentile(took[RATE:], 95),
        )

    async def _arrive(self, seconds: float) -> list[asyncio.Task[tuple[float, float]]]:
        begun_s = time.perf_counter()
        tasks = []
        for number in range(int(RATE * seconds)):
            due_s = begun_s + number / RATE
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            self._sent += 1
            tasks.append(asyncio.create_task(self._confirmed(due_s, self._sent)))
        return tasks

    async def _confirmed(self, due_s: float, amount: int) -> tuple[float, float]:
        """When it was due, and what it took; ms."""
        view = await self._system.transfer("default", RECEIVER, amount, sender=self._address)
        while view["state"] in ("queued", "signed", "sent"):
            view = await self._system.get(f"/transactions/{view['id']}", wait=30, until="final")
        assert view["state"] == "confirmed", view
        return due_s, (time.perf_counter() - due_s) * 1000


async def time_to_confirm(folder: Path, rounds: int) -> list[str]:
    turns: dict[bool, list[Turn]] = {False: [], True: []}
    async with AsyncExitStack() as stack:
        network = Network(folder / "network", block_time="1s")
        stack.push_async_callback(network.close)
        await network.start()
        rpc = RpcClient([network.validator.url])
        stack.push_async_callback(rpc.aclose)
        systems = {
            on: await stack.enter_async_context(
                Behind.open(network, rpc, folder / ("on" if on else "off"), **({} if on else OFF))
            )
            for on in (False, True)
        }
        for on in alternating(rounds):
            turns[on].append(await systems[on].turn())
            print(f"node choice {'on' if on else 'off'}: {turns[on][-1]}", flush=True)
    rows = [
        f"| {'on' if on else 'off'} |"
        + "".join(
            f" {median([getattr(turn, name) for turn in turns[on]]).format('{:.0f}')} |"
            for name in ("p50", "p95", "first", "later")
        )
        for on in (False, True)
    ]
    shares = {
        name: ratio([getattr(turn, name) for turn in turns[True]], [getattr(turn, name) for turn in turns[False]])
        for name in ("p50", "p95")
    }
    return [
        "## Time to confirm",
        "",
        f"A whole system with all switches of the node pool on, and one with all off; {RATE} transfers a second"
        f" for {MEASURED_S:g} s from the moment that the node it asked most is slowed by {SLOWER_S * 1000:.0f} ms,"
        f" its events too. {rounds} interleaved turns on {os.cpu_count()} cores; ms from the time that a transfer"
        " was due until a client knows that it is in a block. Blocks come once a second, so that a transfer waits"
        " 500 ms for one in the mean.",
        "",
        "| choice | p50 | p95 | p50 of those due in the first second | p95 of the others |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"On / off: p50 {shares['p50'].format()}, p95 {shares['p95'].format()}.",
        "",
    ]


def _percentile(took: Sequence[float], percent: int) -> float:
    ordered = sorted(took)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
