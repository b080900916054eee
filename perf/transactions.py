"""How fast transactions become confirmed, and what each costs: `docs/performance/transactions.md`.

A private network of one node, a system or two on it, the load and the peers, all on this machine:

    a  a long queue of transfers, ungrouped, against the blocks' capacity; intake by the API for minutes
    b  grouped against ungrouped, in rounds that alternate
    c  following blocks against polling each transaction, in rounds that alternate
    e  against neo-mamba's ChainFacade, one by one and with asyncio.gather

    python -m perf.transactions --count 30000 --minutes 10 --write docs/performance/transactions.md
    python -m perf.transactions --only bc --rounds 4 --group-count 2000        to try some of it
"""

import argparse
import asyncio
import collections
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.system import RECEIVER

from perf.bench import Bench, alternating, verdict
from perf.mamba import against_neo_mamba
from perf.monitoring import monitoring
from perf.queue import CAPACITY, MARKS
from perf.stats import median, ratio

# --- a: a long queue, and intake ------------------------------------------------------------------------------


async def long_queue(bench: Bench) -> list[str]:
    drained = await bench.drain(bench.options.count, grouping=False)
    each = ", ".join(f"{part} {drained.cpu_ms[part]:.2f}" for part in MARKS)
    lines = [
        "## a. A long queue",
        "",
        f"`--count {drained.count}`: transfers wait in the queue of one wallet, ungrouped; the clock runs from the"
        " moment that workers may begin until the last is confirmed. The busy period leaves out the first block"
        " and the last.",
        "",
        "| what | figure | aim | |",
        "|---|---|---|---|",
        f"| share of the blocks' {CAPACITY} over the busy period | {drained.share:.1%} | ≥ 90 % |"
        f" {verdict(drained.share >= 0.9)} |",
        f"| confirmed | {drained.per_second:.0f} a second, {drained.count} in {drained.seconds:.1f} s | | |",
        f"| blocks with ours | {len(drained.blocks)}, fullest {max(drained.blocks)}, emptiest of the busy period"
        f" {min(drained.blocks[1:-1] or drained.blocks)} | | |",
        f"| processor time of a transfer, ms | {each} | | |",
        f"| RPC calls of a transfer | {drained.calls.total() / drained.count:.2f} | | |",
        f"| commits of a transfer | {drained.commits:.3f} | | |",
        "",
    ]
    return lines + await intake(bench)


async def intake(bench: Bench) -> list[str]:
    """Requests at a fixed rate, whether earlier ones were answered or not."""
    options, stand = bench.options, await bench.stand(grouping=False)
    total = round(options.minutes * options.per_minute)
    if not total:
        return []
    receiver_before = await stand.system.gas_of(RECEIVER)
    answers: collections.Counter[str] = collections.Counter()
    latencies: list[float] = []

    async def one(number: int) -> str | None:
        began = time.perf_counter()
        try:
            view = await stand.system.transfer(
                "default", RECEIVER, 1 + number, sender=stand.wallet["address"], valid_for_blocks=1000
            )
        except AssertionError as error:
            answers[str(error)[:80]] += 1
            return None
        latencies.append(time.perf_counter() - began)
        return str(view["id"])

    begun, tasks = time.monotonic(), []
    for number in range(total):
        await asyncio.sleep(max(begun + number * 60 / options.per_minute - time.monotonic(), 0))
        tasks.append(asyncio.create_task(one(number)))
        if number % options.per_minute == options.per_minute - 1:
            print(f"intake: {number + 1} of {total}", flush=True)
    ids = [id for id in await asyncio.gather(*tasks) if id is not None]
    asked_s = time.monotonic() - begun
    await stand.confirmed()
    waits, halted = [], 0
    for id in ids:
        view = await stand.system.get(f"/transactions/{id}")
        halted += view["state"] == "confirmed" and view["result"]["vmstate"] == "HALT"
        waits.append(_seconds(view["created_at"], view["updated_at"]))
    # The receiver belongs to nobody, so that it has what the chain says was moved.
    moved = await stand.system.gas_of(RECEIVER) - receiver_before
    right = moved == total * (total + 1) // 2
    rate = halted / asked_s * 60
    met = halted == total and right and rate >= 200
    return [
        f"Intake by the API at a fixed rate: {options.per_minute} a minute for {options.minutes:g} minutes,"
        " ungrouped.",
        "",
        "| what | figure | aim | |",
        "|---|---|---|---|",
        f"| confirmed with HALT | {halted} of {total}, {rate:.0f} a minute | all, ≥ 200 a minute |"
        f" {verdict(met)} |",
        f"| the receiver got on the chain | {moved} datoshi, {'exactly' if right else 'NOT'} what was sent | | |",
        f"| answer of the API, p50 / p95 | {_quantiles(latencies, 1000)} ms | | |",
        f"| from accepted to confirmed, p50 / p95 | {_quantiles(waits)} s | | |",
        *(f"| refused | {count}: {answer} | | |" for answer, count in answers.items()),
        "",
    ]


def _seconds(first: str, last: str) -> float:
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()


def _quantiles(samples: Sequence[float], unit: float = 1) -> str:
    cuts = statistics.quantiles(samples, n=20, method="inclusive")
    return f"{cuts[9] * unit:.2f} / {cuts[18] * unit:.2f}"


# --- b: grouping ----------------------------------------------------------------------------------------------


async def grouping(bench: Bench) -> list[str]:
    options = bench.options
    rates: dict[bool, list[float]] = {False: [], True: []}
    carried: list[float] = []
    for grouped in (False, True):
        # Not counted: statements are planned, tables grow, the sizes of groups settle.
        await bench.drain(options.group_count // 4, grouping=grouped)
    for grouped in alternating(options.rounds):
        drained = await bench.drain(options.group_count, grouping=grouped)
        rates[grouped].append(drained.per_second * 60)
        if grouped:
            carried.append(drained.count / sum(drained.blocks))
    times = ratio(rates[True], rates[False])
    return [
        "## b. Grouping",
        "",
        f"`NEOLAYER_OPT_TRANSACTION_GROUPING` off and on, {options.rounds} rounds each of {options.group_count}"
        " transfers that wait in the queue.",
        "",
        "| what | figure | aim | |",
        "|---|---|---|---|",
        f"| calls confirmed a minute, ungrouped | {median(rates[False]).format('{:.0f}')} | | |",
        f"| grouped | {median(rates[True]).format('{:.0f}')} | | |",
        f"| times as many | {times.format()} | ≥ 5 | {verdict(times.low >= 5)} |",
        f"| calls of an on-chain transaction | {statistics.mean(carried):.0f} | | |",
        "",
    ]


# --- all of it ------------------------------------------------------------------------------------------------

SECTIONS: Final[dict[str, Callable[[Bench], Awaitable[list[str]]]]] = {
    "a": long_queue,
    "b": grouping,
    "c": monitoring,
    "e": against_neo_mamba,
}


async def main(options: argparse.Namespace) -> str:
    lines = [
        "# Transactions",
        "",
        f"`{_command(options)}` on {os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d}: a private network of one"
        f" neo-go node, 1 s blocks of {CAPACITY} transactions; node, PostgreSQL, enclave, worker, API and the load"
        " all on this machine. Intervals are 95 % bootstrap intervals over rounds that alternate; an aim is met"
        " only if the worse bound meets it. The choice among nodes is measured in [nodes.md](nodes.md).",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        async with Bench(Path(folder), options) as bench:
            for name in options.only:
                section = await SECTIONS[name](bench)
                # At once, so that what comes later cannot take it along.
                print("\n".join(section), flush=True)
                lines += section
    return "\n".join(lines)


def _command(options: argparse.Namespace) -> str:
    defaults: dict[str, Any] = vars(parser().parse_args([]))
    given = {name: value for name, value in vars(options).items() if value != defaults[name] and name != "write"}
    return " ".join(
        ["python -m perf.transactions"] + [f"--{name.replace('_', '-')} {value}" for name, value in given.items()]
    )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", default="".join(SECTIONS), help=f"some of {''.join(SECTIONS)}")
    add("--count", type=int, default=30_000, help="a: transfers in the long queue")
    add("--minutes", type=float, default=10, help="a: of intake; 0 leaves it out")
    add("--per-minute", type=int, default=240, help="a: requests to the API")
    add("--rounds", type=int, default=10, help="b, c: of each kind")
    add("--group-count", type=int, default=8_000, help="b: transfers of a round")
    add("--monitor-count", type=int, default=2_000, help="c: transfers of a round")
    add("--peer-rounds", type=int, default=10, help="e")
    add("--single-count", type=int, default=5, help="e: transfers one by one")
    add("--gather-count", type=int, nargs="+", default=[400, 2_000], help="e: transfers at once")
    add("--workers", type=int, default=4, help="batches that the worker process has under way at a time")
    add("--write", type=Path, help="write the report there")
    return parser


if __name__ == "__main__":
    given = parser().parse_args()
    report = asyncio.run(main(given))
    print(report)
    if given.write:
        given.write.write_text(report)
