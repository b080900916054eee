"""What each switch on the way of a warm invocation does: the same build with it on and off, in alternating rounds.

    python -m perf.switches --rounds 10 --write docs/performance/switches.md

Needs `wrk`. Off is the way that one would write first; the answers are the same, which the tests say.
"""

import argparse
import asyncio
import os
import shutil
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from perf.functions import Figure, console, service, wrk
from perf.stats import median, ratio

#: Settings without ``opt_``, and what they do.
SWITCHES = {
    "raw_invoke": "plain invocations are served by the connection itself, past the web framework",
    "direct_calls": "warm calls go to the tenant's cell past the enclave process",
    "busy_poll": "the answer to a call that is alone is looked for for up to 0.1 ms",
    "gc_tuning": "Python looks for cyclic garbage less often",
}
CONNECTIONS = (1, 100)


async def measure(name: str, rounds: int, seconds: int) -> list[str]:
    """Rows of the report's table."""
    figures: dict[tuple[bool, int], list[Figure]] = {}
    async with AsyncExitStack() as stack:
        targets = {
            on: await stack.enter_async_context(service(**{f"opt_{name}": str(on).lower()}))
            for on in (False, True)
        }
        for target in targets.values():
            await wrk(*target, 16, 3)
        for number in range(rounds):
            order = (False, True) if number % 2 else (True, False)
            for connections in CONNECTIONS:
                for on in order:
                    figures.setdefault((on, connections), []).append(await wrk(*targets[on], connections, seconds))
            console.print(f"{name}: round {number + 1} of {rounds}")
    rows = []
    for connections in CONNECTIONS:
        off, on = figures[False, connections], figures[True, connections]
        for label, field, pattern in (("req/s", "rate", "{:.0f}"), ("p50 ms", "p50_ms", "{:.3f}")):
            columns = [[getattr(figure, field) for figure in each] for each in (off, on)]
            shown = " | ".join(median(column).format(pattern) for column in columns)
            change = ratio(columns[1], columns[0]).format()
            rows.append(f"| `NEOLAYER_OPT_{name.upper()}` | {connections} | {label} | {shown} | {change} |")
    return rows


async def run(names: list[str], rounds: int, seconds: int) -> str:
    """The report as Markdown."""
    lines = [
        "# Switches of a warm invocation",
        "",
        f"`python -m perf.switches --rounds {rounds} --seconds {seconds}` on {os.cpu_count()} cores,"
        f" {datetime.now(UTC):%Y-%m-%d}; `wrk -t1` on the same machine. Median of {rounds} alternating rounds with"
        " its 95 % bootstrap interval. One switch at a time; the others are on.",
        "",
        *(f"- `NEOLAYER_OPT_{name.upper()}`: {SWITCHES[name]}." for name in names),
        "",
        "| switch | connections | | off | on | on / off |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        lines += await measure(name, rounds, seconds)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*SWITCHES, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--write", type=Path, help="write the report there")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("error: wrk is not installed (Debian: apt install wrk)")
    report = asyncio.run(run(arguments.names or list(SWITCHES), arguments.rounds, arguments.seconds))
    print(report)
    if arguments.write:
        arguments.write.write_text(report)


if __name__ == "__main__":
    main()
