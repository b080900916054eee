"""The service's client of an enclave as these tests use it."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

from neolayer.core.errors import ServiceError
from neolayer.enclave import (
    EnclaveClient,
    HostFunction,
    Limits,
    Load,
    Result,
)
from neolayer.enclave.direct import CellConnection
from tests.enclave_process.host import CALM, Process, is_direct

ECHO = "export default (input) => input"
ASK = "export default async (input, ctx) => ctx.neo.read(input)"
EXECUTION = UUID(int=7)


class Gate:
    """A host function that answers once it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.asked: list[Any] = []

    async def __call__(self, name: str, argument: bytes) -> bytes:
        self.asked.append(json.loads(argument))
        await self.opened.wait()
        return argument


async def no_host(name: str, argument: bytes) -> bytes:
    raise ServiceError(f"{name} was not expected")


async def echo_host(name: str, argument: bytes) -> bytes:
    return json.dumps([name, json.loads(argument)]).encode()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


class Caller:
    """A host's client, and the functions that it has loaded."""

    def __init__(self, process: Process, **options: Any) -> None:
        self.client = EnclaveClient(process.socket, **options)

    async def load(
        self, source: str, *, tenant: str = "alice", egress: tuple[str, ...] = (), **limits: int
    ) -> str:
        bundle = f"bundle-{uuid4()}"
        await self.client.load(Load(tenant, bundle, "test", source, Limits(**limits), [], list(egress)))
        return bundle

    async def call(
        self,
        bundle: str,
        input: Any = None,
        host: HostFunction = no_host,
        *,
        depth: int = 0,
        timeout_ms: int = 10_000,
    ) -> Result:
        body = b"" if input is None else json.dumps(input).encode()
        return await self.client.invoke(bundle, EXECUTION, body, host, timeout_ms=timeout_ms, depth=depth)

    async def open(self, tenant: str = "alice") -> CellConnection:
        """Have the tenant's calls go straight to its cell."""
        calm = await self.load(CALM, tenant=tenant)
        async with asyncio.timeout(20):
            while not is_direct(self.client, tenant):
                await self.call(calm)
                await asyncio.sleep(0.01)
        cell = self.client._ways[tenant].cell
        assert cell
        return cell

    async def warm(self, source: str, **options: Any) -> str:
        """A function whose next call goes straight to its warm isolate."""
        await self.open(options.get("tenant", "alice"))
        bundle = await self.load(source, **options)
        await self.client.warm(bundle)
        return bundle


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
