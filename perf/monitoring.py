"""What it costs to find out that a transaction is in a block: following blocks, and polling each transaction."""

from neolayer.transactions.pool import scale
from perf.bench import Bench, alternating, verdict
from perf.polling import Child
from perf.stats import Interval, median, ratio


async def monitoring(bench: Bench) -> list[str]:
    options, stand = bench.options, await bench.stand(grouping=False)
    used: dict[str, dict[bool, list[float]]] = {
        name: {False: [], True: []} for name in ("calls", "requests", "messages", "statements", "cpu_s")
    }
    async with Child.beside(stand.system.database_url, bench.node.devnet.rpc_url) as child:
        # The system's own follower leaves the leader's lock to it, and stands by when its process is back.
        stand.system.kill("worker")
        await child.leads()
        for follows in alternating(options.rounds):
            await scale(stand.database, 0)
            await child.do("follow" if follows else "poll")
            await stand.drain(options.monitor_count, options.workers)
            figures = await child.do("rest")
            for name, value in figures.items():
                used[name][follows].append(value / options.monitor_count)
            each = ", ".join(f"{name} {used[name][follows][-1]:.4f}" for name in figures)
            print(f"{'follow' if follows else 'poll'}: {each}", flush=True)
    pushed = median(used["messages"][True]).format("{:.3f}")
    rows = []
    for name, title, unit, pattern in (
        ("requests", "HTTP requests", 1, "{:.4f}"),
        ("calls", "JSON-RPC calls, each of a batch", 1, "{:.3f}"),
        ("statements", "SQL statements", 1, "{:.3f}"),
        ("cpu_s", "processor time, ms", 1000, "{:.3f}"),
    ):
        off, on = ([value * unit for value in used[name][follows]] for follows in (False, True))
        less = ratio(on, off)
        saved = Interval(*(100 * (1 - bound) for bound in (less.middle, less.high, less.low)))
        aim = {"requests": 95.0, "calls": 95.0}.get(name, 40.0)
        rows.append(
            f"| {title} | {median(off).format(pattern)} | {median(on).format(pattern)} |"
            f" {saved.format('{:.1f}')} % | {aim:.0f} % | {verdict(saved.low >= aim)} |"
        )
    return [
        "## c. Following",
        "",
        "What finding out costs for each confirmed transaction, in a process that does nothing else: once a block"
        " time asking for each sent transaction (`getapplicationlog`, then `gettransactionheight` and its block,"
        f" once), against following blocks. {options.rounds} rounds each of {options.monitor_count} ungrouped"
        " transfers. Both write down the same with the same statements.",
        "",
        "| for each confirmed transaction | polling | following | less | aim | |",
        "|---|---|---|---|---|---|",
        *rows,
        f"| WebSocket messages, which nobody asks for one by one | 0 | {pushed} | | | |",
        "",
    ]
