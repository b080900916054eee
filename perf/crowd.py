"""Many tenants at once: 1,000 executions in flight that wait on `fetch`, then CPU work of 100 tenants.

Starts a whole system in a temporary folder; prints what its processes hold while all wait:

    python -m perf.crowd --tenants 100 --each 10 --write docs/performance/crowd.md
"""

import argparse
import asyncio
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from tests.system import System

from neolayer.accounts.service import create_tenant
from neolayer.db.pool import Database
from neolayer.supervisor import leftovers

WAITS: Final = "export default async (url) => (await fetch(url)).json()"
#: About 200 ms of one processor.
WORKS: Final = """export default (input) => {
  const end = Date.now() + 60_000, until = 12_000_000;
  let n = 0;
  for (let i = 0; i < until && Date.now !== end; i++) n = (n * 31 + i) % 1_000_003;
  return n;
}"""
MIB: Final = 1024 * 1024


class Server:
    """Answers nobody until everybody has asked."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self.asked = 0
        self.all_asked = asyncio.Event()
        self.answer = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.asked == self._expected:
            self.all_asked.set()
        await self.answer.wait()
        return web.json_response(int(request.query["n"]))


async def _tenants(system: System, count: int) -> list[str]:
    database = Database(system.database_url)
    await database.open()
    try:
        return [(await create_tenant(database, f"crowd-{number:03}"))[1].key for number in range(count)]
    finally:
        await database.close()


async def _deploy(system: System, key: str, name: str, source: str, egress: list[str]) -> None:
    body = {"source": source, "egress": egress, "timeout_ms": 30_000, "cpu_ms": 10_000}
    await system.request("PUT", f"/functions/{name}", body, key=key, status=None)


async def _invoke(client: ClientSession, key: str, name: str, input: str) -> tuple[int, object, float]:
    begun = time.perf_counter()
    headers = {"authorization": f"Bearer {key}"}
    async with client.post(f"/api/v1/functions/{name}/invoke", data=input, headers=headers) as response:
        return response.status, await response.json(content_type=None), time.perf_counter() - begun


def _memory(system: System) -> tuple[float, float, int]:
    """RSS and PSS in MiB of the processes of the service but PostgreSQL, Valkey and the chain; their number."""
    rss = pss = count = 0
    ours = [process for process in system.processes() if _is_ours(process)]
    for process in ours + [child for each in ours for child in each.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
        except psutil.Error:
            continue
        rss, pss, count = rss + memory.rss, pss + memory.pss, count + 1
    return rss / MIB, pss / MIB, count


def _is_ours(process: psutil.Process) -> bool:
    line = " ".join(process.cmdline())
    return "neolayer_enclave" in line or line.endswith((" api", " worker"))


async def run(system: System, tenants: int, each: int) -> list[str]:
    keys = await _tenants(system, tenants)
    # One connection a call.
    client = ClientSession(system.url, connector=TCPConnector(limit=0), timeout=ClientTimeout(total=120))
    server = Server(tenants * each)
    app = web.Application()
    app.router.add_get("/", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2048)
    await site.start()
    port = runner.addresses[0][1]
    egress = [f"http://127.0.0.1:{port}"]
    for at in range(0, tenants, 10):
        await asyncio.gather(
            *(_deploy(system, key, "waits", WAITS, egress) for key in keys[at : at + 10]),
        )
    lines = []
    before = _memory(system)
    begun = time.perf_counter()
    calls = [
        asyncio.ensure_future(_invoke(client, key, "waits", f'"http://127.0.0.1:{port}/?n={n}"'))
        for n in range(each)
        for key in keys
    ]
    async with asyncio.timeout(28):
        await server.all_asked.wait()
    reached = time.perf_counter() - begun
    rss, pss, count = _memory(system)
    server.answer.set()
    results = await asyncio.gather(*calls)
    errors = [(status, output) for status, output, _ in results if status != 200]
    right = sum(output == at // tenants for at, (_, output, _) in enumerate(results))
    lines.append(
        f"| {tenants} tenants × {each} waiting on `fetch` | {len(results)} in flight after {reached:.1f} s,"
        f" {len(errors)} errors, {right} right answers; RSS {rss:,.0f} MiB, PSS {pss:,.0f} MiB in {count}"
        f" processes (before: {before[0]:,.0f} and {before[1]:,.0f} MiB in {before[2]}) |"
    )
    if errors:
        print(errors[:3])
    for at in range(0, tenants, 10):
        await asyncio.gather(*(_deploy(system, key, "works", WORKS, []) for key in keys[at : at + 10]))
    begun = time.perf_counter()
    results = await asyncio.gather(*(_invoke(client, key, "works", "1") for key in keys))
    took = time.perf_counter() - begun
    seconds = sorted(each for _, _, each in results)
    errors = [(status, output) for status, output, _ in results if status != 200]
    lines.append(
        f"| CPU work of {tenants} tenants at once | all ended after {took:.1f} s, {len(errors)} errors,"
        f" {len({str(output) for _, output, _ in results})} distinct answers; first {seconds[0]:.1f} s,"
        f" median {seconds[len(seconds) // 2]:.1f} s, last {seconds[-1]:.1f} s |"
    )
    if errors:
        print(errors[:3])
    await client.close()
    await runner.cleanup()
    return lines


async def main(tenants: int, each: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        system = System(Path(folder) / "system", egress_allow_private="true")
        try:
            await system.start()
            lines = await run(system, tenants, each)
        finally:
            try:
                await system.stop()
            finally:
                await leftovers.end(system.home)
    head = [
        "# Many tenants at once",
        "",
        f"`python -m perf.crowd --tenants {tenants} --each {each}` on {os.cpu_count()} cores,"
        f" {datetime.now(UTC):%Y-%m-%d}. Through the whole service, each tenant with its own key and functions."
        " Memory is that of enclave, cells, API and worker. Aims: no errors, at most 6,144 MiB of RSS, nobody"
        " starved.",
        "",
        "| what | figure |",
        "|---|---|",
    ]
    return "\n".join(head + lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--write", type=Path, help="write the report there")
    given = parser.parse_args()
    report = asyncio.run(main(given.tenants, given.each))
    print(report)
    if given.write:
        given.write.write_text(report)
