"""What flags of V8 do to a cell: CPU time of its start, of cold and warm calls; memory. One interleaved run.

CPU time of all threads of the cell, because other work on the machine hardly shows in it.

    python -m perf.flags --rounds 8 --sets none,chosen,no-sparkplug
"""

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from unittest.mock import patch

import uvloop
from tests.enclave_process import measure
from tests.enclave_process.host import EXECUTION, HANDLES, Host, Process, output, rss_bytes

from neolayer_enclave import protocol
from neolayer_enclave.hardening import ENVIRONMENT
from neolayer_enclave.loading import NODE_FLAGS
from perf.sources import source
from perf.stats import median, ratio

BASE: Final = ("--no-node-snapshot",)
#: Flags, and variables of the environment as ``NAME=value``.
SETS: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "chosen": (
        *(flag for flag in NODE_FLAGS if flag not in BASE),
        *(f"{name}={value}" for name, value in ENVIRONMENT.items()),
    ),
    "no-sparkplug": ("--no-sparkplug",),
    "no-concurrent-sparkplug": ("--no-concurrent-sparkplug",),
    "no-short-builtin-calls": ("--no-short-builtin-calls",),
    "one malloc arena": ("MALLOC_ARENA_MAX=1",),
    "single-threaded-gc": ("--single-threaded-gc",),
    "v8-pool-size=1": ("--v8-pool-size=1",),
    "v8-pool-size=0": ("--v8-pool-size=0",),
    "no-flush-bytecode": ("--no-flush-bytecode",),
    "optimize-for-size": ("--optimize-for-size",),
    "lite-mode": ("--lite-mode",),
    "semi-space 1 MB": ("--max-semi-space-size=1",),
    "semi-space 4 MB": ("--max-semi-space-size=4",),
    "semi-space 32 MB": ("--max-semi-space-size=32",),
    "no-incremental-marking": ("--no-incremental-marking",),
    "no-opt (sparkplug)": ("--no-opt", "--sparkplug"),
    "gc + pool + flush": ("--single-threaded-gc", "--v8-pool-size=0", "--no-flush-bytecode"),
    "jitless": ("--jitless",),
}
START: Final = """
import sys
from neolayer_enclave import __main__, hardening, loading
words = sys.argv.pop(1).split()
hardening.NODE_FLAGS = loading.NODE_FLAGS = tuple(word for word in words if word.startswith("--"))
hardening.ENVIRONMENT |= dict(word.split("=") for word in words if not word.startswith("--"))
sys.exit(__main__.main())
"""
#: Makes and drops objects, as programs that work on JSON do.
ALLOCATING: Final = """
export default (input) => {
  const rows = Array.from({ length: 500 }, (_, i) => ({ id: i, name: `row ${i}`, tags: [`t${i}`], at: { i } }));
  const text = JSON.stringify(rows.filter((row) => row.id % 3).map((row) => ({ ...row, seen: true })));
  return { hello: input.name, n: input.n + JSON.parse(text).length };
}
"""
COLUMNS: Final = ("start, ms", "cold call (20 KB), ms", "small call, µs", "allocating call, µs", "RSS, MB")
COLD: Final = 8
CALLS: Final = (6_000, 1_000)
IN_FLIGHT: Final = 16


@contextmanager
def starting(flags: tuple[str, ...]) -> Iterator[None]:
    """`Process.start` starts an enclave whose cells have these flags."""
    real = asyncio.create_subprocess_exec

    async def start(program: str, *arguments: str, **options: object) -> asyncio.subprocess.Process:
        assert arguments[:2] == ("-m", "neolayer_enclave")
        return await real(program, "-c", START, " ".join(flags), *arguments[2:], **options)  # type: ignore[arg-type]

    with patch.object(asyncio, "create_subprocess_exec", start):
        yield


async def figures(flags: tuple[str, ...], folder: Path) -> tuple[float, ...]:
    """One for each of `COLUMNS`."""
    folder.mkdir()
    with starting((*BASE, *flags)):
        process = await Process.start(folder, "--no-warm-up", "--no-code-cache")
    host = await Host.connect(process)
    try:
        output(await host.run(measure.SOURCE, {"name": "x", "n": 1}))
        (cell,) = process.cells()
        used = [cpu_ns(cell)]
        for _ in range(COLD):
            output(await host.run(source(20_480), {"name": "x", "n": 1}))
        used.append(cpu_ns(cell))
        for text, calls in zip((measure.SOURCE, ALLOCATING), CALLS, strict=True):
            bundle = await host.load(text)
            body = protocol.encode_invoke(HANDLES[bundle], 0, EXECUTION.bytes, measure.INPUT)
            _, load = await asyncio.get_running_loop().create_unix_connection(
                lambda body=body: measure.Load(body), str(process.socket)
            )
            await load.run(calls // 5, IN_FLIGHT)
            used.append(cpu_ns(cell))
            await load.run(calls, IN_FLIGHT)
            used.append(cpu_ns(cell))
            load.transport.close()
        rss = rss_bytes(cell) / 2**20
    finally:
        await host.close()
        await process.stop()
    start, cold, small_begun, small, large_begun, large = used
    return (
        start / 1e6,
        (cold - start) / COLD / 1e6,
        (small - small_begun) / CALLS[0] / 1e3,
        (large - large_begun) / CALLS[1] / 1e3,
        rss,
    )


def cpu_ns(pid: int) -> int:
    """Of all threads that a process has now."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


async def run(rounds: int, sets: list[str]) -> str:
    """The table as Markdown; ratios to no flags at all."""
    samples: dict[str, list[tuple[float, ...]]] = {name: [] for name in sets}
    with tempfile.TemporaryDirectory() as top:
        for number in range(rounds):
            names = list(sets)
            # Whatever comes first in a round would always meet the same state of the machine.
            random.Random(number // 2).shuffle(names)  # noqa: S311 - an order
            for name in names if number % 2 == 0 else names[::-1]:
                samples[name].append(
                    await figures(SETS[name], Path(top) / f"{number}-{len(samples[name])}-{name}")
                )
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    lines = ["| flags | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for name in sets:
        cells = []
        for index in range(len(COLUMNS)):
            values, base = ([sample[index] for sample in samples[key]] for key in (name, "none"))
            middle = median(values).format("{:.2f}").split()[0]
            cells.append(middle if name == "none" else f"{middle} (× {ratio(values, base).format()})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--sets", default=",".join(SETS), help="names of `SETS`, with commas; `none` among them")
    arguments = parser.parse_args()
    print(uvloop.run(run(arguments.rounds, arguments.sets.split(","))))


if __name__ == "__main__":
    main()
