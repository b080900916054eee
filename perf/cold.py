"""Cold starts of functions, with and without the code cache and warm-up, in one interleaved run.

Two enclaves run side by side on the same machine, one of them with ``--no-code-cache`` or ``--no-warm-up``.
Phases are those the enclave itself counts (`protocol.Loads`); the first call's time is taken at the host's end of
the socket.

    python -m perf.cold --rounds 12 --write docs/performance/cold.md
"""

import argparse
import asyncio
import itertools
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from tests.enclave_process.host import HANDLES, Host, Process, output

from neolayer_enclave.protocol import Loads, Statistics, Stats, Warm, Warmed
from perf.sources import source
from perf.stats import Interval, median, ratio

SIZES = {"66 B": 66, "2 KB": 2_048, "20 KB": 20_480, "80 KB": 81_920, "235 KB": 240_640}
INPUT = {"name": "x", "n": 1}
#: Cold starts of one round; each in an isolate of its own.
REPEATS = 5
PHASES = ("isolate_us", "context_us", "prepare_us", "compile_us", "evaluate_us", "first_call_us")
NAMES = ("isolate", "context + bootstrap", "source to script", "compile", "evaluate", "first call")


@dataclass
class Side:
    """An enclave and its host."""

    process: Process
    host: Host

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, *options: str) -> AsyncIterator["Side"]:
        folder.mkdir()
        process = await Process.start(folder, *options)
        host = await Host.connect(process)
        try:
            yield cls(process, host)
        finally:
            await host.close()
            await process.stop()

    async def loads(self) -> Loads:
        return (await self.host.ask(Stats(), Statistics)).loads

    async def exercise(self, text: str) -> None:
        """Let the enclave see the function used, as it was before its isolate had to go."""
        bundle = await self.host.load(text)
        for _ in range(12):
            output(await self.host.invoke(bundle, INPUT))
        await asyncio.sleep(0.3)

    async def first_calls(self, text: str, *, warm: bool = False) -> tuple[list[float], float, list[float]]:
        """Medians of a round: each phase in µs, then the first call from outside in ms; and all of the latter."""
        samples, outside = [], []
        for _ in range(REPEATS):
            bundle = await self.host.load(text)
            if warm:
                await self.host.ask(Warm(HANDLES[bundle]), Warmed)
            before = await self.loads()
            begun = time.perf_counter()
            result = await self.host.invoke(bundle, INPUT)
            outside.append((time.perf_counter() - begun) * 1e3)
            assert output(result)["n"] == 2
            assert result.cold is not warm
            after = await self.loads()
            samples.append([getattr(after, name) - getattr(before, name) for name in PHASES])
            # What is due at rest, a blank isolate for one, is not this call's time nor the next one's.
            await asyncio.sleep(0.03)
        middle = REPEATS // 2
        phases = [sorted(column)[middle] for column in zip(*samples, strict=True)]
        return phases, sorted(outside)[middle], outside


async def compare_code_cache(rounds: int) -> str:
    """Isolates made by calls in a running cell; both sides without blanks made ahead, to see all phases."""
    lines = [
        "## Code cache",
        "",
        "Phases of a cold start in a running cell, median of the rounds in ms; `off / on` with its 95 % interval."
        " Aim: at 235 KB compile + evaluate at least 60 % less.",
        "",
        "| source | phase | off | on | on / off |",
        "|---|---|---|---|---|",
    ]
    figures: dict[tuple[str, str], list[tuple[list[float], float, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as top:
        async with AsyncExitStack() as stack:
            sides = {
                "off": await stack.enter_async_context(
                    Side.open(Path(top) / "off", "--no-warm-up", "--no-code-cache")
                ),
                "on": await stack.enter_async_context(Side.open(Path(top) / "on", "--no-warm-up")),
            }
            for size in SIZES.values():
                for side in sides.values():
                    await side.exercise(source(size))
            for number in range(rounds):
                for label, size in SIZES.items():
                    for name in ("off", "on") if number % 2 == 0 else ("on", "off"):
                        figures.setdefault((label, name), []).append(await sides[name].first_calls(source(size)))
            statistics = await sides["on"].loads()
    expected = rounds * REPEATS * len(SIZES)
    assert statistics.code_hits >= expected, statistics
    assert statistics.code_rejected == statistics.code_corrupt == 0, statistics
    for label in SIZES:
        off, on = figures[label, "off"], figures[label, "on"]
        rows = [(name, [r[0][i] / 1e3 for r in off], [r[0][i] / 1e3 for r in on]) for i, name in enumerate(NAMES)]
        rows.append(("**compile + evaluate**", *(_sum(side, 3, 5) for side in (off, on))))
        rows.append(("**compile + evaluate + first call**", *(_sum(side, 3, 6) for side in (off, on))))
        rows.append(("**whole call, from outside**", [r[1] for r in off], [r[1] for r in on]))
        for name, a, b in rows:
            shown = ratio(b, a).format() if min(a) > 0.01 and min(b) > 0 else ""
            lines.append(f"| {label} | {name} | {_ms(median(a))} | {_ms(median(b))} | {shown} |")
    return "\n".join(lines)


async def compare_warm_up(rounds: int) -> str:
    """First calls with everything off, with the code cache, with a blank isolate ready, and after `Warm`."""
    lines = [
        "## Warm-up",
        "",
        "First call of a function in a running cell, from outside; ms. Aim: at least 90 % less.",
        "",
        "| source | all off | code cache and blank isolate | warmed | warmed / all off | p95 of the three |",
        "|---|---|---|---|---|---|",
    ]
    figures: dict[tuple[str, str], list[float]] = {}
    single: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as top:
        async with AsyncExitStack() as stack:
            off = await stack.enter_async_context(Side.open(Path(top) / "off", "--no-warm-up", "--no-code-cache"))
            on = await stack.enter_async_context(Side.open(Path(top) / "on"))
            for size in SIZES.values():
                for side in (off, on):
                    await side.exercise(source(size))
            for number in range(rounds):
                for label, size in SIZES.items():
                    cases = [("off", off, False), ("on", on, False), ("warm", on, True)]
                    for name, side, warm in cases if number % 2 == 0 else cases[::-1]:
                        _, ms, all = await side.first_calls(source(size), warm=warm)
                        figures.setdefault((label, name), []).append(ms)
                        single.setdefault((label, name), []).extend(all)
    for label in SIZES:
        columns = [figures[label, name] for name in ("off", "on", "warm")]
        shown = " | ".join(_ms(median(column)) for column in columns)
        p95 = [_percentile(single[label, name], 95) for name in ("off", "on", "warm")]
        ends = " / ".join(f"{ms:.2f}" for ms in p95)
        lines.append(f"| {label} | {shown} | {ratio(columns[2], columns[0]).format('{:.3f}')} | {ends} |")
    return "\n".join(lines)


async def compare_spares(rounds: int) -> str:
    """First calls of tenants that have no cell yet."""
    lines = [
        "## Spare cells",
        "",
        "First call of a new tenant, from outside; ms. Percentiles are over all cold starts.",
        "",
        "| spares | p50 | p95 | median of rounds | on / off |",
        "|---|---|---|---|---|",
    ]
    figures: dict[str, list[float]] = {}
    tenants = itertools.count()
    async with AsyncExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = {
            "none": await stack.enter_async_context(Side.open(top / "off", "--spare", "0", "--cells", "16")),
            "2": await stack.enter_async_context(Side.open(top / "on", "--spare", "2", "--cells", "16")),
        }
        for number in range(rounds):
            for name, side in list(sides.items()) if number % 2 == 0 else list(sides.items())[::-1]:
                while name != "none" and (await side.host.ask(Stats(), Statistics)).spares < 2:
                    await asyncio.sleep(0.05)
                for _ in range(2):
                    bundle = await side.host.load(source(66), tenant=f"new-{next(tenants)}")
                    begun = time.perf_counter()
                    output(await side.host.invoke(bundle, INPUT))
                    figures.setdefault(name, []).append((time.perf_counter() - begun) * 1e3)
                await asyncio.sleep(0.3)
    for name, all in figures.items():
        middles = [sum(pair) / 2 for pair in zip(all[::2], all[1::2], strict=True)]
        others = [sum(pair) / 2 for pair in zip(figures["none"][::2], figures["none"][1::2], strict=True)]
        shown = "" if name == "none" else ratio(middles, others).format()
        lines.append(
            f"| {name} | {_percentile(all, 50):.1f} | {_percentile(all, 95):.1f} |"
            f" {_ms(median(middles))} | {shown} |"
        )
    return "\n".join(lines)


def _percentile(samples: list[float], percent: int) -> float:
    return sorted(samples)[min(len(samples) - 1, len(samples) * percent // 100)]


def _sum(rounds: list[tuple[list[float], float, list[float]]], start: int, stop: int) -> list[float]:
    return [sum(phases[start:stop]) / 1e3 for phases, _, _ in rounds]


def _ms(interval: Interval) -> str:
    return interval.format("{:.2f}")


async def run(rounds: int) -> str:
    """The report as Markdown."""
    head = [
        "# Cold starts",
        "",
        f"`python -m perf.cold --rounds {rounds}` on {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}."
        f" Median of {rounds} interleaved rounds of {REPEATS} cold starts each, with its 95 % bootstrap interval."
        " Sources are those of `perf/sources.py`; a call uses a fifth of their functions.",
        "",
        "",
    ]
    parts = [await compare_code_cache(rounds), await compare_warm_up(rounds), await compare_spares(rounds)]
    return "\n".join(head) + "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--write", type=Path, help="write the report there")
    arguments = parser.parse_args()
    report = uvloop.run(run(arguments.rounds))
    print(report)
    if arguments.write:
        arguments.write.write_text(report)


if __name__ == "__main__":
    main()
