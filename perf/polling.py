"""Following blocks against polling each transaction: a process that confirms what is sent, one way or the other.

Run beside a system whose own follower it takes the place of, by holding the leader's lock. A line on stdin says
what to do, ``follow``, ``poll`` or ``rest``; a line on stdout answers with what was used since the line before:

    {"calls": …, "requests": …, "messages": …, "statements": …, "cpu_s": …}

    python -m perf.polling <url of the database> <url of the node>
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import psycopg

from neolayer.chain.follower import BlockFollower
from neolayer.chain.rpc import Block, RpcClient
from neolayer.core.types import Hash256
from neolayer.db.leader import lead
from neolayer.db.notices import notify
from neolayer.db.pool import Connection, Database
from neolayer.transactions.model import TOPIC
from neolayer.transactions.monitor import Monitor
from neolayer.transactions.queue import Queue
from neolayer.watches.service import Watches

#: HTTP requests of the poller under way at a time.
AT_ONCE: Final = 16
_SENT: Final = b"SELECT txid, grouped FROM transaction_attempts WHERE state = 'sent' ORDER BY sent_at_height"


class Meter:
    """What this process used."""

    def __init__(self) -> None:
        self.calls = self.requests = self.statements = 0
        self.follower: BlockFollower | None = None

    def read(self) -> dict[str, float]:
        return {
            "calls": self.calls,
            "requests": self.requests,
            "messages": self.follower.messages if self.follower else 0,
            "statements": self.statements,
            "cpu_s": time.process_time(),
        }


def meter_http(session: aiohttp.ClientSession, meter: Meter) -> None:
    """Count what this session asks the node, by the bodies that it sends."""

    async def sent(_: Any, __: Any, params: aiohttp.TraceRequestChunkSentParams) -> None:
        if params.chunk:
            request = json.loads(params.chunk)
            meter.requests += 1
            meter.calls += len(request) if isinstance(request, list) else 1

    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(sent)
    trace.freeze()
    session.trace_configs.append(trace)


class MeteredDatabase(Database):
    def __init__(self, url: str, meter: Meter) -> None:
        super().__init__(url)
        self._meter = meter

        class Cursor(psycopg.AsyncCursor[Any]):
            async def execute(self, query: Any, *args: Any, **options: Any) -> Any:
                # The pool looks at a connection with an empty one before it gives it out.
                meter.statements += query != ""
                return await super().execute(query, *args, **options)

        assert isinstance(self.pool.kwargs, dict)
        self.pool.kwargs |= {"cursor_factory": Cursor}

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        self._meter.statements += 2  # BEGIN and COMMIT
        async with super().transaction() as connection:
            yield connection


class Poller(Monitor):
    """As one writes it first: once a block time each sent transaction is asked for by its hash. One that is found
    is written down exactly as the follower does it."""

    async def run(self) -> None:
        await self.load_cursor()
        version = await self._rpc.version()
        blocks: dict[int, Block] = {}
        while True:
            began = time.monotonic()
            rows = await self._database.fetch(_SENT)
            limit = asyncio.Semaphore(AT_ONCE)
            await asyncio.gather(*(self._look(limit, blocks, bytes(txid), grouped) for txid, grouped in rows))
            await asyncio.sleep(max(version.ms_per_block / 1000 - (time.monotonic() - began), 0))

    async def _look(self, limit: asyncio.Semaphore, blocks: dict[int, Block], txid: bytes, grouped: bool) -> None:
        async with limit:
            hash_ = Hash256(txid)
            if (found := await self._rpc.application_log(hash_)) is None:
                return
            height = await self._rpc.transaction_height(hash_)
            assert height is not None
            if height not in blocks:
                blocks[height] = await self._rpc.get_block(height)
            async with self._database.transaction() as connection:
                await self._include(connection, blocks[height], [(found, grouped)])
                await notify(connection, TOPIC)


class Switch:
    """Does what stdin says."""

    def __init__(self, database: Database, rpc: RpcClient, meter: Meter) -> None:
        self._parts = database, rpc, Queue(database, lease_s=10), Watches(database, rpc)
        self._meter = meter

    async def run(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        task: asyncio.Task[None] | None = None
        before = self._meter.read()
        print(json.dumps({"leads": True}), flush=True)
        while line := (await reader.readline()).decode().strip():
            now = self._meter.read()
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                task = None
            if line != "rest":
                monitor = (Monitor if line == "follow" else Poller)(*self._parts, resend_after_blocks=1000)
                self._meter.follower = monitor.follower
                task = asyncio.create_task(monitor.run())
                if line == "follow":
                    # It catches up with blocks that were made meanwhile.
                    while monitor.follower.connected == "down":
                        await asyncio.sleep(0.02)
            print(json.dumps({name: now[name] - before[name] for name in now}), flush=True)
            before = self._meter.read()
        raise SystemExit


class Child:
    """This program as a process that is told what to do."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def beside(cls, database_url: str, rpc_url: str) -> AsyncIterator["Child"]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "perf.polling", database_url, rpc_url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield cls(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()

    async def leads(self) -> None:
        """Wait until it holds the leader's lock."""
        await self._answer()

    async def do(self, what: str) -> dict[str, float]:
        """Returns what was used since the last time."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n".encode())
        return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            line = await self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line)
        return answer


async def main(database_url: str, rpc_url: str) -> None:
    meter = Meter()
    database, rpc = MeteredDatabase(database_url, meter), RpcClient([rpc_url])
    meter_http(rpc.session, meter)
    await database.open()
    try:
        await lead(database_url, "block-follower", Switch(database, rpc, meter).run)
    finally:
        await database.close()
        await rpc.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
