"""What V8's and Node's flags do to a cell: its start, cold and warm calls, memory. One interleaved run.

python -m perf.flags --rounds 8
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from unittest.mock import patch

import uvloop
from tests.enclave_process import measure
from tests.enclave_process.host import EXECUTION, HANDLES, Host, Process, output

from neolayer_enclave import protocol
from neolayer_enclave.loading import NODE_FLAGS
from neolayer_enclave.protocol import Statistics, Stats
from perf.sources import source
from perf.stats import median, ratio

BASE: Final = ("--no-node-snapshot",)
SETS: Final[dict[str, tuple[str, ...]]] = {
    "none": (),
    "chosen": tuple(flag for flag in NODE_FLAGS if flag not in BASE),
    "single-threaded-gc": ("--single-threaded-gc",),
    "v8-pool-size=1": ("--v8-pool-size=1",),
    "v8-pool-size=0": ("--v8-pool-size=0",),
    "no-flush-bytecode": ("--no-flush-bytecode",),
    "optimize-for-size": ("--optimize-for-size",),
    "lite-mode": ("--lite-mode",),
    "semi-space 1 MB": ("--max-semi-space-size=1",),
    "semi-space 32 MB": ("--max-semi-space-size=32",),
    "no-incremental-marking": ("--no-incremental-marking",),
    "max-lazy": ("--max-lazy",),
    "no-opt (sparkplug)": ("--no-opt", "--sparkplug"),
    "always-sparkplug": ("--always-sparkplug",),
    "gc + pool + flush": ("--single-threaded-gc", "--v8-pool-size=0", "--no-flush-bytecode"),
    "jitless": ("--jitless",),
}
START: Final = """
import sys
from neolayer_enclave import __main__, cell, loading
cell.NODE_FLAGS = loading.NODE_FLAGS = tuple(sys.argv.pop(1).split())
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
COLUMNS: Final = ("process ms", "cold call ms (20 KB)", "small calls/s", "allocating calls/s", "RSS MB")
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
        first = await host.load(measure.SOURCE)
        output(await host.invoke(first, {"name": "x", "n": 1}))
        process_ms = (await host.ask(Stats(), Statistics)).loads.process_us / 1e3
        cold = []
        for _ in range(COLD):
            bundle = await host.load(source(20_480))
            begun = time.perf_counter()
            output(await host.invoke(bundle, {"name": "x", "n": 1}))
            cold.append((time.perf_counter() - begun) * 1e3)
        rates = []
        for text, calls in zip((measure.SOURCE, ALLOCATING), CALLS, strict=True):
            bundle = await host.load(text)
            body = protocol.encode_invoke(HANDLES[bundle], 0, EXECUTION.bytes, measure.INPUT)
            _, load = await asyncio.get_running_loop().create_unix_connection(
                lambda body=body: measure.Load(body), str(process.socket)
            )
            await load.run(calls // 5, IN_FLIGHT)
            rates.append(await load.run(calls, IN_FLIGHT))
            load.transport.close()
        (cell,) = process.cells()
        rss = int(Path(f"/proc/{cell}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    finally:
        await host.close()
        await process.stop()
    return process_ms, sorted(cold)[COLD // 2], *rates, rss


async def run(rounds: int) -> str:
    """The table as Markdown; ratios to no flags at all."""
    samples: dict[str, list[tuple[float, ...]]] = {name: [] for name in SETS}
    with tempfile.TemporaryDirectory() as top:
        for number in range(rounds):
            names = list(SETS)
            for name in names if number % 2 == 0 else names[::-1]:
                samples[name].append(
                    await figures(SETS[name], Path(top) / f"{number}-{len(samples[name])}-{name}")
                )
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    lines = ["| flags | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for name in SETS:
        cells = []
        for index in range(len(COLUMNS)):
            values, base = ([sample[index] for sample in samples[key]] for key in (name, "none"))
            middle = median(values).format("{:.1f}").split()[0]
            cells.append(middle if name == "none" else f"{middle} (× {ratio(values, base).format()})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    print(uvloop.run(run(arguments.rounds)))


if __name__ == "__main__":
    main()
