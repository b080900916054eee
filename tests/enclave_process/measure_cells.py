"""What cells cost and what they spare: start, memory, hardening, and a neighbour that dies again and again.

Run: ``python -m tests.enclave_process.measure_cells``, with names of its parts to run only those.
Not a test: figures belong to one run on one machine.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import uvloop

from neolayer_enclave.hardening import PREVENTS
from neolayer_enclave.protocol import Statistics, Stats
from tests.enclave_process.host import Host, Process, output

ECHO: Final = "export default (input) => input"
#: V8 gives up on the whole process.
DIES: Final = "export default () => { const o = {}; for (let i = 0; ; i++) o['a' + i] = i }"
BARE: Final = tuple(option for layer in PREVENTS for option in ("--without", layer))


def figures(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    at = {p: ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] * 1e3 for p in (50, 95, 99)}
    print(f"{name:<44} p50 {at[50]:8.2f}  p95 {at[95]:8.2f}  p99 {at[99]:8.2f} ms  (n={len(ordered)})", flush=True)


async def first_call(host: Host, tenant: str) -> float:
    bundle = await host.load(ECHO, tenant=tenant)
    begun = time.perf_counter()
    assert output(await host.invoke(bundle, 1)) == 1
    return time.perf_counter() - begun


async def starts(folder: Path) -> None:
    """The first call of a new tenant: with a spare and without, with all layers and without any."""
    kinds = {
        "first call, spare": ("--spare", "1"),
        "first call, no spare": ("--spare", "0"),
        "first call, no spare, no layer": ("--spare", "0", *BARE),
    }
    hosts, enclaves = {}, []
    for name, options in kinds.items():
        place = folder / name.replace(" ", "-").replace(",", "")
        place.mkdir()
        enclaves.append(await Process.start(place, *options))
        hosts[name] = await Host.connect(enclaves[-1])
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for n in range(25):
        for name, host in hosts.items():
            while "no" not in name and not (await host.ask(Stats(), Statistics)).spares:
                await asyncio.sleep(0.02)
            times[name].append(await first_call(host, f"tenant-{n}"))
    for name, seconds in times.items():
        figures(name, seconds)
    for host in hosts.values():
        await host.close()
    for enclave in enclaves:
        await enclave.stop()


async def warm(folder: Path) -> None:
    """Warm calls with all layers and without any, in turns."""
    times: dict[str, list[float]] = {"warm call, all layers": [], "warm call, no layer": []}
    sides = []
    for name, options in zip(times, ((), BARE), strict=True):
        place = folder / f"warm-{len(sides)}"
        place.mkdir()
        enclave = await Process.start(place, *options)
        host = await Host.connect(enclave)
        bundle = await host.load(ECHO)
        for _ in range(300):
            await host.invoke(bundle, 1)
        sides.append((name, enclave, host, bundle))
    medians: dict[str, list[float]] = {name: [] for name in times}
    for _ in range(30):
        for name, _, host, bundle in sides:
            block = []
            for _ in range(200):
                begun = time.perf_counter()
                await host.invoke(bundle, 1)
                block.append(time.perf_counter() - begun)
            times[name] += block
            medians[name].append(statistics.median(block))
    for name, seconds in times.items():
        figures(name, seconds)
    ratios = [a / b for a, b in zip(*medians.values(), strict=True)]
    print(f"{'all layers ÷ none, medians of 30 blocks':<44} {statistics.median(ratios):.3f}", flush=True)
    for _, enclave, host, _ in sides:
        await host.close()
        await enclave.stop()


async def neighbour(folder: Path) -> None:
    """Calls of one tenant while the cell of another dies again and again, and while it rests; in turns."""
    enclave = await Process.start(folder)
    host, other = await Host.connect(enclave), await Host.connect(enclave)
    bundle = await host.load(ECHO, tenant="neighbour")
    bomb = await other.load(DIES, tenant="bomber", memory_mb=16, cpu_ms=10_000)
    times: dict[bool, list[float]] = {False: [], True: []}
    died = 0

    async def bombing(over: asyncio.Event) -> None:
        nonlocal died
        while not over.is_set():
            died += (await other.invoke(bomb)).error is not None

    for _ in range(6):
        for bombed in (False, True):
            over = asyncio.Event()
            task = asyncio.ensure_future(bombing(over)) if bombed else None
            until = time.perf_counter() + 2
            while time.perf_counter() < until:
                begun = time.perf_counter()
                await host.invoke(bundle, 1)
                times[bombed].append(time.perf_counter() - begun)
                await asyncio.sleep(0.002)
            over.set()
            if task:
                await task
    figures("neighbour, all quiet", times[False])
    figures(f"neighbour, a cell died {died} times", times[True])
    p99 = {each: sorted(seconds)[int(len(seconds) * 0.99)] for each, seconds in times.items()}
    print(f"{'p99 while dying ÷ quiet':<44} {p99[True] / p99[False]:.2f}", flush=True)
    await host.close()
    await other.close()
    await enclave.stop()


async def many(folder: Path) -> None:
    """100 tenants with 10 calls each in flight, all waiting; memory of all their processes."""
    enclave = await Process.start(folder, "--cells", "128")
    host = await Host.connect(enclave)
    go = asyncio.Event()

    asked = 0

    async def wait(name: str, argument: Any) -> Any:
        nonlocal asked
        asked += 1
        await go.wait()
        return 1

    begun = time.perf_counter()
    calls = []
    for tenant in range(100):
        bundle = await host.load("export default (i, c) => c.neo.read({})", tenant=f"t{tenant}", timeout_ms=30_000)
        calls += [asyncio.ensure_future(host.invoke(bundle, host=wait)) for _ in range(10)]
    while asked < len(calls) and not any(call.done() for call in calls):
        await asyncio.sleep(0.02)
    print(f"{'1,000 calls of 100 new tenants wait after':<44} {time.perf_counter() - begun:.1f} s", flush=True)
    memory = {"Rss": 0, "Pss": 0}
    for pid in [enclave.process.pid, *enclave.cells()]:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.split(":")[0] in memory:
                memory[line.split(":")[0]] += int(line.split()[1])
    for kind, kilobytes in memory.items():
        print(
            f"{f'{kind} of {len(enclave.cells())} cells and the enclave':<44} {kilobytes / 2**20:.2f} GiB",
            flush=True,
        )
    go.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    failed = sum(isinstance(each, BaseException) or each.error is not None for each in answers)
    print(f"{'failed of 1,000':<44} {failed}", flush=True)
    await host.close()
    await enclave.stop()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            part for part in (starts, warm, neighbour, many) if part.__name__ in (sys.argv[1:] or part.__name__)
        ]
        for number, part in enumerate(parts):
            place = Path(folder) / str(number)
            place.mkdir()
            await part(place)


if __name__ == "__main__":
    uvloop.run(main())
