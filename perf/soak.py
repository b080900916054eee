"""Memory of a cell over many calls: flat from 10,000 calls on, or the program ends with 1.

    python -m perf.soak --calls 40000

The function leaves behind what functions leave behind: a timer, a promise nobody settles, garbage, log lines. Of
what the cell's own code leaves behind at each call, some 640 bytes grow old, and V8 first looks for garbage among
the old when they have become 9 MB: after some 14,000 calls. What is 4 MB or less counts as flat.
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
#: Calls that are not judged.
BEFORE = 10_000
IN_FLIGHT = 8


async def soak(calls: int, isolation: Literal["version", "call"]) -> list[float]:
    """MB of the cell at each look."""

    async def answer(name: str, argument: Any) -> Any:
        return argument

    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        process = await Process.start(Path(folder), "--spare", "0")
        try:
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
        finally:
            await process.stop()
    return sizes


async def run(calls: int) -> int:
    grew = False
    for isolation in ("version", "call"):
        sizes = await soak(calls, isolation)  # type: ignore[arg-type]
        judged = sizes[BEFORE * LOOKS // calls - 1 :]
        # The first and the last quarter of what is judged: garbage makes memory go up and down.
        first, last = judged[: len(judged) // 4], judged[-len(judged) // 4 :]
        growth = statistics.median(last) - statistics.median(first)
        noise = max(4.0, max(first) - min(first))
        grew |= growth > noise
        print(
            f"isolation {isolation!r}: {calls} calls, MB at 10 %: {sizes[LOOKS // 10]:.1f}, at {BEFORE} calls:"
            f" {judged[0]:.1f}, at the end: {sizes[-1]:.1f}; growth from the first to the last quarter after"
            f" {BEFORE} calls {growth:+.1f}, noise {noise:.1f} ({os.cpu_count()} cores)"
        )
    return int(grew)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=40_000, help=f"at least {2 * BEFORE}")
    sys.exit(uvloop.run(run(parser.parse_args().calls)))


if __name__ == "__main__":
    main()
