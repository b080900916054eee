"""Memory of a cell over many calls: flat, or the program ends with 1.

    python -m perf.soak --calls 40000

The function leaves behind what functions leave behind: a timer, a promise nobody settles, garbage, log lines. V8
lets the heap of the cell's own code grow by some 20 MB before it first looks for what is garbage among the old, so
the first half of the calls is not judged.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import uvloop
from tests.enclave_process.host import Host, Process, output, rss_bytes

SOURCE = """
const kept = new Map();
export default async (input, ctx) => {
  kept.set('last', { text: 'x'.repeat(10_000), input });
  console.log('line', input);
  setTimeout(() => {}, 60_000);
  new Promise(() => {});
  const { n } = await ctx.neo.read({ n: input });
  return { n, size: kept.size };
}
"""
#: Places at which memory is looked at, evenly spread over the calls.
LOOKS = 40
IN_FLIGHT = 8


async def soak(calls: int, isolation: Literal["version", "call"]) -> list[float]:
    """MB of the cell at each look."""

    async def answer(name: str, argument: Any) -> Any:
        return argument

    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        process = await Process.start(Path(folder))
        host = await Host.connect(process)
        bundle = await host.load(SOURCE, isolation=isolation)
        for start in range(0, calls, calls // LOOKS):
            for first in range(start, start + calls // LOOKS, IN_FLIGHT):
                results = await asyncio.gather(
                    *(host.invoke(bundle, n, host=answer) for n in range(first, first + IN_FLIGHT))
                )
                assert all(output(result)["size"] == 1 for result in results)
            (cell,) = process.cells()
            sizes.append(rss_bytes(cell) / 2**20)
        await host.close()
        await process.stop()
    return sizes


async def run(calls: int) -> int:
    grew = False
    for isolation in ("version", "call"):
        sizes = await soak(calls, isolation)  # type: ignore[arg-type]
        third, fourth = sizes[LOOKS // 2 : 3 * LOOKS // 4], sizes[3 * LOOKS // 4 :]
        # Of the second half of the calls its own two halves: garbage makes memory go up and down.
        growth = statistics.median(fourth) - statistics.median(third)
        noise = max(4.0, max(third) - min(third))
        grew |= growth > noise
        print(
            f"isolation {isolation!r}: {calls} calls, MB at 10 %: {sizes[LOOKS // 10]:.1f}, 50 %:"
            f" {sizes[LOOKS // 2]:.1f}, 100 %: {sizes[-1]:.1f}; growth from the third to the fourth quarter"
            f" {growth:+.1f}, noise {noise:.1f} ({os.cpu_count()} cores)"
        )
    return int(grew)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=40_000)
    sys.exit(uvloop.run(run(parser.parse_args().calls)))


if __name__ == "__main__":
    main()
