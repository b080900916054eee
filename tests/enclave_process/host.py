"""The host as these tests play it: raw frames on a real connection to a real enclave process."""

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self
from uuid import UUID, uuid4

import msgspec

from neolayer.core.errors import ServiceError
from neolayer.enclave import EnclaveClient, EnclaveRefused, OutcomeUnknown
from neolayer_enclave import protocol
from neolayer_enclave.protocol import HEADER, Failure, HostCall, Kind, Limits, Load, Result

#: By name of a bundle; names are unique here.
HANDLES: dict[str, bytes] = {}
EXECUTION = UUID(int=1)

CALM = "export default () => 'calm'"

type HostFunction = Callable[[str, Any], Awaitable[Any]]


class Refusal(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.code}: {failure.message}")
        self.failure = failure
        self.code = failure.code


class HostError(Exception):
    """What a test's host function raises to refuse a function."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


async def nothing(name: str, argument: Any) -> Any:
    raise HostError("unexpected", f"{name} was not expected")


@dataclass
class Process:
    """A running enclave."""

    socket: Path
    process: asyncio.subprocess.Process
    ready: dict[str, Any]

    @classmethod
    async def start(cls, folder: Path, *options: str, prefix: Sequence[str] = ()) -> Self:
        """``prefix``: a command that runs the enclave's."""
        path = folder / "enclave.sock"
        process = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            "-m",
            "neolayer_enclave",
            "--socket",
            path,
            "--state",
            folder / "state",
            *options,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout
        line = await asyncio.wait_for(process.stdout.readline(), 10)
        if not line:
            raise AssertionError(f"the enclave ended with {await process.wait()}")
        return cls(path, process, json.loads(line))

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 5)

    def cells(self) -> list[int]:
        """Process ids of the cells and of blank ones, but for those that are being launched."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        names = {int(pid): Path(f"/proc/{pid}/comm") for pid in text.split()}
        return [pid for pid, name in names.items() if name.exists() and "python" not in name.read_text()]


@dataclass
class Host:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    waiting: dict[int, tuple[asyncio.Future[bytes], HostFunction]] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    #: Makes the calls, past the enclave where it can; see `connect`.
    client: EnclaveClient | None = None
    ids: Any = field(default_factory=lambda: itertools.count(1))

    @classmethod
    async def connect(cls, process: Process, *, direct: bool = False) -> Self:
        """``direct``: calls of what was loaded here go straight to the cell, by the service's own client."""
        host = cls(*await asyncio.open_unix_connection(process.socket, limit=16 * 1024 * 1024))
        host.client = EnclaveClient(process.socket) if direct else None
        host._run(host._read())
        return host

    async def close(self) -> None:
        for task in list(self.tasks):
            task.cancel()
        if self.client:
            await self.client.close()
        self.writer.close()
        await self.writer.wait_closed()

    async def ask[R](self, request: protocol.Message, reply: type[R], host: HostFunction = nothing) -> R:
        return msgspec.msgpack.decode(await self.send(request, host), type=reply)

    def send(self, request: protocol.Message, host: HostFunction = nothing) -> asyncio.Future[bytes]:
        return self._send(Kind.REQUEST, protocol.encode(request), host)

    def call(
        self,
        bundle: str,
        input: bytes,
        host: HostFunction = nothing,
        *,
        execution: UUID = EXECUTION,
        depth: int = 0,
        timeout_ms: int = 0,
    ) -> asyncio.Future[bytes]:
        """Send an INVOKE; the future holds the body of its RESULT."""
        handle = HANDLES.get(bundle, b"unknown!")
        body = protocol.encode_invoke(handle, depth, execution.bytes, input, timeout_ms)
        return self._send(Kind.INVOKE, body, host)

    def _send(self, kind: Kind, body: bytes, host: HostFunction) -> asyncio.Future[bytes]:
        id = next(self.ids)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.waiting[id] = future, host
        self.writer.write(protocol.frame(kind, id, body))
        return future

    async def load(
        self,
        source: str,
        *,
        tenant: str = "alice",
        bundle: str | None = None,
        name: str = "hello",
        secrets: dict[str, str] | None = None,
        egress: list[str] | None = None,
        isolation: Literal["version", "call"] = "version",
        ahead: bool = True,
        **limits: int,
    ) -> str:
        """``ahead``: where calls are direct, make the isolate, so that the first one is, too."""
        bundle = bundle or f"bundle-{uuid4()}"
        sealed = [
            protocol.SealedSecret(key, 1, (await self.seal(tenant, key, 1, value.encode())))
            for key, value in (secrets or {}).items()
        ]
        request = Load(tenant, bundle, name, source, Limits(**limits), sealed, egress or [], isolation)
        HANDLES[bundle] = (await self.ask(request, protocol.Loaded)).handle
        if self.client:
            await self.client.load(request)
            await opened(self.client, tenant)
            if ahead:
                with contextlib.suppress(EnclaveRefused):
                    await self.client.warm(bundle)
        return bundle

    async def seal(self, tenant: str, name: str, version: int, plaintext: bytes) -> bytes:
        return (await self.ask(protocol.Seal(tenant, name, version, plaintext), protocol.Sealed)).ciphertext

    async def invoke(
        self,
        bundle: str,
        input: Any = None,
        *,
        execution: UUID = EXECUTION,
        depth: int = 0,
        timeout_ms: int = 0,
        host: HostFunction = nothing,
    ) -> Result:
        body = b"" if input is None else json.dumps(input).encode()
        if self.client:
            return await _by_client(self.client, bundle, body, host, execution, depth, timeout_ms)
        call = self.call(bundle, body, host, execution=execution, depth=depth, timeout_ms=timeout_ms)
        return protocol.decode_result(await call)

    async def run(self, source: str, input: Any = None, *, host: HostFunction = nothing, **options: Any) -> Result:
        """Load a source as a new bundle and call it once."""
        return await self.invoke(await self.load(source, **options), input, host=host)

    async def _read(self) -> None:
        while True:
            try:
                length, kind, id = HEADER.unpack(await self.reader.readexactly(HEADER.size))
                body = await self.reader.readexactly(length - protocol.HEADER_AFTER_LENGTH)
            except (asyncio.IncompleteReadError, ConnectionResetError):
                break
            if kind == Kind.HOST_CALL:
                self._run(self._serve(id, msgspec.msgpack.decode(body, type=HostCall)))
                continue
            future, _ = self.waiting.pop(id)
            if future.cancelled():
                continue
            if kind in (Kind.RESPONSE, Kind.RESULT):
                future.set_result(body)
            else:
                future.set_exception(Refusal(msgspec.msgpack.decode(body, type=Failure)))
        for future, _ in self.waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError())

    async def _serve(self, id: int, call: HostCall) -> None:
        _, host = self.waiting[call.request]
        try:
            answer = await host(call.name, json.loads(call.argument))
        except HostError as error:
            body = protocol.encode(Failure(error.code, str(error)))
            self.writer.write(protocol.frame(Kind.HOST_ERROR, id, body))
        else:
            self.writer.write(protocol.frame(Kind.HOST_RESULT, id, json.dumps(answer).encode()))

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def opened(client: EnclaveClient, tenant: str) -> None:
    """Have calls of the tenant go straight to its cell."""
    bundle = f"calm-{tenant}"
    await client.load(Load(tenant, bundle, "calm", CALM, Limits(), [], []))
    async with asyncio.timeout(20):
        while not is_direct(client, tenant):
            await _by_client(client, bundle, b"", nothing, EXECUTION, 0, 0)
            await asyncio.sleep(0.01)


def is_direct(client: EnclaveClient, tenant: str) -> bool:
    way = client._ways.get(tenant)
    return way is not None and way.cell is not None


async def _by_client(
    client: EnclaveClient,
    bundle: str,
    input: bytes,
    host: HostFunction,
    execution: UUID,
    depth: int,
    timeout_ms: int,
) -> Result:
    async def serve(name: str, argument: bytes) -> bytes:
        try:
            return json.dumps(await host(name, json.loads(argument))).encode()
        except HostError as error:
            refusal = ServiceError(str(error))
            refusal.code = error.code
            raise refusal from None

    try:
        return await client.invoke(bundle, execution, input, serve, timeout_ms=timeout_ms or 30_000, depth=depth)
    except EnclaveRefused as error:
        raise Refusal(Failure(error.code, error.detail, error.retryable)) from None
    except OutcomeUnknown as error:
        raise ConnectionResetError from error


def rss_bytes(pid: int) -> int:
    """What a process holds in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def output(result: Result) -> Any:
    assert result.error is None, result.error
    return json.loads(result.output)


def logs(result: Result) -> list[str]:
    return [text for _, _, text in json.loads(result.logs or b"[]")]
