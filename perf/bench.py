"""What the sections of `perf.transactions` share: a node, systems on it, the order of rounds, verdicts on aims."""

import argparse
from contextlib import AsyncExitStack
from pathlib import Path

from perf.queue import Drained, Stand, running


class Bench:
    """One node, and the systems that the sections ask for, started when the first one does."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder = folder
        self.options = options
        self._stack = AsyncExitStack()
        self._stands: dict[str, Stand] = {}

    async def __aenter__(self) -> "Bench":
        self.node = await self._stack.enter_async_context(running(self._folder / "node"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def stand(self, *, grouping: bool) -> Stand:
        name = "grouped" if grouping else "ungrouped"
        if name not in self._stands:
            self._stands[name] = await self._stack.enter_async_context(
                Stand.open(self.node, self._folder / name, opt_transaction_grouping=str(int(grouping)))
            )
        return self._stands[name]

    async def drain(self, count: int, *, grouping: bool) -> Drained:
        drained = await (await self.stand(grouping=grouping)).drain(count, self.options.workers)
        print(f"{'grouped' if grouping else 'ungrouped'}: " + "\n  ".join(drained.lines()), flush=True)
        return drained


def verdict(met: bool) -> str:
    return "met" if met else "missed"


def alternating(rounds: int) -> list[bool]:
    """Off, on, on, off, …"""
    return [order for number in range(rounds) for order in ((False, True) if number % 2 == 0 else (True, False))]
