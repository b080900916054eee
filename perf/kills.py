"""Seeded moments at which worker processes are killed, and the processes that are started again after it.

A moment is a time after the start; or a request to the node that the worker makes, before it reaches the node or
after the node answered and before the worker hears it; or an event of the node's, before or after the worker hears
it. The same seed gives the same moments.
"""

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

import psutil
from tests.proxy import NodeProxy, as_they_come, nothing
from tests.system import System

from neolayer.supervisor.places import HOME_MARK

#: Requests that workers make and the API does not: of the pipeline, the sender, the follower.
METHODS: Final = ("getrawmempool", "sendrawtransaction", "getblock")
#: What the follower is told.
EVENTS: Final = ("transaction_executed", "block_added")
#: Latest moment after a worker's start; seconds.
LATEST_S: Final = 1.5
#: A request that does not come within this time is not waited for; seconds.
PATIENCE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Kill:
    """One moment."""

    when: Literal["time", "before", "after"]
    #: After the worker's start.
    seconds: float = 0.0
    #: Which request of which method, or event.
    method: str = ""
    number: int = 0

    def __str__(self) -> str:
        if self.when == "time":
            return f"{self.seconds:.3f} s after its start"
        kind = "event" if self.method in EVENTS else "request"
        return f"{self.when} {kind} {self.number} of {self.method}"


def schedule(seed: int, count: int) -> list[Kill]:
    """So many moments: half by time, half by requests and events."""
    chance = random.Random(seed)  # noqa: S311 - replayable
    kills = []
    for _ in range(count):
        if chance.random() < 0.5:
            kills.append(Kill("time", seconds=chance.uniform(0, LATEST_S)))
            continue
        when: Literal["before", "after"] = "before" if chance.random() < 0.5 else "after"
        kills.append(Kill(when, method=chance.choice(METHODS + EVENTS), number=chance.randint(1, 2)))
    return kills


class Workers:
    """A worker process of our own beside those of `neolayer up`, which pause longer after each time they end."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when it works."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "neolayer", "worker"),
            env=self._system.environ_of_parts
            | {
                # What `rpc_url` says is for counting, past the proxy.
                "NEOLAYER_RPC_URLS": self._system.environ["NEOLAYER_RPC_URLS"],
                HOME_MARK: str(self._system.home),
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            assert await self._process.stdout.readline(), "the worker ended at its start"

    async def kill(self) -> None:
        """SIGKILL to all worker processes, those of `neolayer up` as well."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.kill()
        for process in self._system.processes():
            # One may have just ended by itself.
            with suppress(psutil.Error):
                if "worker" in process.cmdline():
                    process.kill()
        await self._process.wait()
        self._process = None

    async def stop(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()


@asynccontextmanager
async def workers_beside(system: System) -> AsyncIterator[Workers]:
    workers = Workers(system)
    try:
        yield workers
    finally:
        await workers.stop()


async def reached(kill: Kill, proxy: NodeProxy) -> bool:
    """Wait for a moment; False when its request or event does not come. Until `released` the worker hears nothing
    of a request, nor of an event that it is to be killed before."""
    if kill.when == "time":
        await asyncio.sleep(kill.seconds)
        return True
    come = asyncio.Event()
    left = kill.number

    def counted(method: str) -> bool:
        nonlocal left
        left -= method == kill.method
        if left > 0 or method != kill.method:
            return False
        come.set()
        return True

    def told(event: dict[str, Any]) -> list[dict[str, Any]]:
        return [] if counted(event["method"]) and kill.when == "before" else [event]

    if kill.method in EVENTS:
        proxy.events = told
    elif kill.when == "before":
        proxy.hold = counted
    else:
        proxy.drop_answer = counted
    try:
        async with asyncio.timeout(PATIENCE_S):
            await come.wait()
    except TimeoutError:
        return False
    return True


def released(proxy: NodeProxy) -> None:
    proxy.hold = proxy.drop_answer = nothing
    proxy.events = as_they_come
