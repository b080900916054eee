"""The enclave as the rest of the house sees it: one connection to its process, and one to each cell in use."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec

from neolayer.core.errors import ServiceError
from neolayer.enclave.connection import Call, Connection, tell
from neolayer.enclave.direct import CellConnection, Way, opened
from neolayer.enclave.errors import EnclaveRefused, EnclaveUnavailable
from neolayer_enclave import protocol

#: An enclave that takes longer for anything but a call of a function counts as stuck; seconds.
REQUEST_TIMEOUT_S: Final = 15.0
#: A call's own limit is kept by the enclave; this much later it counts as stuck. It may wait 30 s for a process to
#: start and 5 s for its turn before that limit begins; seconds.
INVOKE_SLACK_S: Final = 40.0
#: Transactions, and bytes of them, that one request asks to sign: the enclave does nothing else meanwhile, 4 ms.
SIGN_AT_ONCE: Final = 64
SIGN_BYTES: Final = 1_000_000
#: Handles of bundles that are remembered, and ways to cells.
MAX_HANDLES: Final = 10_000

#: Serves what a running function asks of the host: gets the JSON argument, returns JSON.
type HostFunction = Callable[[str, bytes], Awaitable[bytes]]


class Enclave(Protocol):
    """What the rest of the house asks of the enclave, wherever it runs."""

    async def hello(self) -> protocol.Identity: ...
    async def attest(self, nonce: bytes) -> protocol.Evidence: ...
    async def seal(self, tenant: str, name: str, version: int, plaintext: bytes, epoch: int) -> bytes: ...
    async def seal_upload(self, tenant: str, name: str, version: int, upload: bytes, epoch: int) -> bytes: ...
    async def reseal(self, epoch: int, secrets: list[protocol.OwnedSecret]) -> list[bytes | None]: ...
    async def create_key(self, tenant: str, wallet: str) -> protocol.WalletKey: ...
    async def sign_transaction(
        self, tenant: str, wallet: str, sealed: bytes, network: int, unsigned: bytes
    ) -> protocol.Signature: ...
    async def sign_transactions(
        self, tenant: str, wallet: str, sealed: bytes, network: int, unsigned: Sequence[bytes]
    ) -> list[bytes]: ...
    async def check(self, tenant: str, source: str) -> bytes: ...
    async def load(self, bundle: protocol.Load) -> None: ...
    async def warm(self, bundle: str) -> bool: ...
    def start(
        self, bundle: str, execution: UUID, input: bytes, call: Call, *, timeout_ms: int, depth: int = 0
    ) -> bool: ...
    async def invoke(
        self, bundle: str, execution: UUID, input: bytes, host: HostFunction, *, timeout_ms: int, depth: int = 0
    ) -> protocol.Result: ...
    async def stats(self) -> protocol.Statistics: ...
    async def layers(self) -> list[protocol.Layer]: ...


class EnclaveClient:
    """Implements `Enclave` over the unix socket.

    Connects at the first call and again after the connection was lost. Requests that were in flight when it was
    lost raise `EnclaveUnavailable`; calls of functions end with `OutcomeUnknown`: they may have had effects.
    Once a function has been called through the enclave, further calls of its tenant go straight to the cell.
    """

    def __init__(self, socket: Path, *, direct: bool = True, busy_poll: bool = True) -> None:
        """
        Args:
            direct: calls need not pass the enclave process where a cell can be reached without it.
            busy_poll: look for the answer to a call that is alone for up to 0.1 ms instead of sleeping at once.
        """
        self._socket = socket
        #: A cell could not run meanwhile on the only processor.
        self.busy_poll = busy_poll and (os.process_cpu_count() or 1) > 1
        self._direct = direct
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        #: By bundle: its handle, and the way to its tenant's cell.
        self._known: dict[str, tuple[bytes, Way]] = {}
        #: By tenant.
        self._ways: dict[str, Way] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: Connections to cells, also those to which no further calls go.
        self.cells: set[CellConnection] = set()
        self.closing = False

    async def close(self) -> None:
        """Calls that run are told `OutcomeUnknown` before this returns."""
        self.closing = True
        connections = [*self.cells, *([self._connection] if self._connection else [])]
        for connection in connections:
            connection.close()
        for connection in connections:
            await connection.closed.wait()
        # What is left of them ends by itself now, and tells those that wait.
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def hello(self) -> protocol.Identity:
        return await self._call(protocol.Hello(), protocol.Identity)

    async def attest(self, nonce: bytes) -> protocol.Evidence:
        return await self._call(protocol.Attest(nonce), protocol.Evidence)

    async def seal(self, tenant: str, name: str, version: int, plaintext: bytes, epoch: int) -> bytes:
        request = protocol.Seal(tenant, name, version, plaintext, epoch)
        return (await self._call(request, protocol.Sealed)).ciphertext

    async def seal_upload(self, tenant: str, name: str, version: int, upload: bytes, epoch: int) -> bytes:
        """
        Raises:
            EnclaveRefused: code ``upload_invalid``.
        """
        request = protocol.SealUpload(tenant, name, version, upload, epoch)
        return (await self._call(request, protocol.Sealed)).ciphertext

    async def reseal(self, epoch: int, secrets: list[protocol.OwnedSecret]) -> list[bytes | None]:
        """Null for those that do not open."""
        return (await self._call(protocol.Reseal(epoch, secrets), protocol.Resealed)).ciphertexts

    async def create_key(self, tenant: str, wallet: str) -> protocol.WalletKey:
        return await self._call(protocol.CreateKey(tenant, wallet), protocol.WalletKey)

    async def sign_transaction(
        self, tenant: str, wallet: str, sealed: bytes, network: int, unsigned: bytes
    ) -> protocol.Signature:
        request = protocol.SignTransaction(tenant, wallet, sealed, network, unsigned)
        return await self._call(request, protocol.Signature)

    async def sign_transactions(
        self, tenant: str, wallet: str, sealed: bytes, network: int, unsigned: Sequence[bytes]
    ) -> list[bytes]:
        """Signatures in the order of the transactions."""
        signatures: list[bytes] = []
        part: list[bytes] = []
        size = 0
        for index, data in enumerate(unsigned):
            part.append(data)
            size += len(data)
            if len(part) == SIGN_AT_ONCE or size >= SIGN_BYTES or index + 1 == len(unsigned):
                request = protocol.SignTransactions(tenant, wallet, sealed, network, part)
                signatures += (await self._call(request, protocol.Signatures)).signatures
                part, size = [], 0
        return signatures

    async def check(self, tenant: str, source: str) -> bytes:
        """Parse a source; returns its SHA-256."""
        return (await self._call(protocol.Check(tenant, source), protocol.Checked)).code_hash

    async def load(self, bundle: protocol.Load) -> None:
        loaded = await self._call(bundle, protocol.Loaded)
        if len(self._known) >= MAX_HANDLES:
            del self._known[next(iter(self._known))]
        if bundle.tenant not in self._ways and len(self._ways) >= MAX_HANDLES:
            self._drop_way()
        way = self._ways.setdefault(bundle.tenant, Way())
        self._known[bundle.bundle] = loaded.handle, way

    def start(
        self, bundle: str, execution: UUID, input: bytes, call: Call, *, timeout_ms: int, depth: int = 0
    ) -> bool:
        """Send a call off without waiting for anything; its end is told to ``call``.

        Args:
            timeout_ms: what it may take, if that is less than the bundle's limit.

        Returns:
            False when that is not possible just now, because the connection or the bundle's handle is missing:
            nothing was sent, `invoke` says what is wrong.
        """
        known = self._known.get(bundle)
        if known is None:
            return False
        handle, way = known
        body = protocol.encode_invoke(handle, depth, execution.bytes, input, timeout_ms)
        timeout_s = timeout_ms / 1000 + INVOKE_SLACK_S
        if way.cell is not None:
            way.cell.invoke(body, call, timeout_s)
            return True
        connection = self._connection
        if connection is None or not connection.open:
            return False
        if self._direct and not way.opening:
            call = _Approach(call, self, way, handle)
        connection.invoke(body, call, timeout_s)
        return True

    async def warm(self, bundle: str) -> bool:
        """Make a bundle's isolate ahead of its next call. Returns whether it was there.

        Raises:
            EnclaveRefused: ``not_loaded`` asks for `load` first; ``invalid_function``, its calls will fail;
                ``cell_crashed``, its process was ended meanwhile; try again.
        """
        known = self._known.get(bundle)
        if known is None:
            raise EnclaveRefused("not_loaded", "this bundle was not loaded", retryable=True)
        return (await self._call(protocol.Warm(known[0]), protocol.Warmed)).was_warm

    async def invoke(
        self, bundle: str, execution: UUID, input: bytes, host: HostFunction, *, timeout_ms: int, depth: int = 0
    ) -> protocol.Result:
        """Run a bundle. ``host`` serves the function's calls back, many at a time.

        Raises:
            EnclaveRefused: code ``not_loaded`` asks for `load` first.
            EnclaveUnavailable: it was not started.
            OutcomeUnknown: the enclave was lost while it ran.
        """
        await self._connected()
        call = _Awaited(host)
        if not self.start(bundle, execution, input, call, timeout_ms=timeout_ms, depth=depth):
            raise EnclaveRefused("not_loaded", "this bundle was not loaded", retryable=True)
        return await call.result

    async def stats(self) -> protocol.Statistics:
        return await self._call(protocol.Stats(), protocol.Statistics)

    async def layers(self) -> list[protocol.Layer]:
        """The walls around the functions' processes."""
        return (await self._call(protocol.Layers(), protocol.Hardening)).layers

    # --- Enclave of the connections to cells ------------------------------------------------------------------

    def approach(self, way: Way, handle: bytes) -> None:
        """Have further calls go straight to the cell, if that is possible."""
        if way.cell or way.opening or self.closing or asyncio.get_running_loop().time() < way.not_before:
            return
        self.later(opened(way, self, str(self._socket), handle, REQUEST_TIMEOUT_S))

    def resend(self, body: bytes, call: Call, deadline: float) -> None:
        self.later(self._resend(body, call, deadline))

    async def fates(self, request: protocol.Fate) -> protocol.Fates:
        return await self._call(request, protocol.Fates)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resend(self, body: bytes, call: Call, deadline: float) -> None:
        try:
            connection = await self._connected()
            connection.invoke(body, call, deadline - asyncio.get_running_loop().time())
        except ServiceError as error:
            tell(call.failed, error)

    def _drop_way(self) -> None:
        tenant, way = next(iter(self._ways.items()))
        del self._ways[tenant]
        self._known = {bundle: known for bundle, known in self._known.items() if known[1] is not way}
        way.dropped = True
        if way.cell is not None:
            way.cell.retire()

    # ----------------------------------------------------------------------------------------------------------

    async def _call[R](self, request: protocol.Message, reply: type[R]) -> R:
        connection = await self._connected()
        body = await connection.request(request, timeout_s=REQUEST_TIMEOUT_S)
        return msgspec.msgpack.decode(body, type=reply)

    async def _connected(self) -> Connection:
        if self._connection is not None and self._connection.open:
            return self._connection
        async with self._connecting:
            if self.closing:
                raise EnclaveUnavailable("this service is stopping")
            if self._connection is None or not self._connection.open:
                try:
                    _, self._connection = await asyncio.get_running_loop().create_unix_connection(
                        Connection, str(self._socket)
                    )
                except OSError as error:
                    raise EnclaveUnavailable(f"enclave at {self._socket}: {error.strerror or error}") from error
            return self._connection


class _Approach:
    """A call through the enclave, after which the way to its cell is open."""

    def __init__(self, call: Call, client: EnclaveClient, way: Way, handle: bytes) -> None:
        self._call = call
        self._client = client
        self._way = way
        self._handle = handle

    def finished(self, result: protocol.Result) -> None:
        self._call.finished(result)
        self._client.approach(self._way, self._handle)

    def failed(self, error: ServiceError) -> None:
        self._call.failed(error)

    async def serve(self, name: str, argument: bytes) -> bytes:
        return await self._call.serve(name, argument)


class _Awaited:
    """A call whose end somebody awaits."""

    def __init__(self, host: HostFunction) -> None:
        self.result: asyncio.Future[protocol.Result] = asyncio.get_running_loop().create_future()
        self._host = host

    async def serve(self, name: str, argument: bytes) -> bytes:
        return await self._host(name, argument)

    def finished(self, result: protocol.Result) -> None:
        if not self.result.done():
            self.result.set_result(result)

    def failed(self, error: ServiceError) -> None:
        if not self.result.done():
            self.result.set_exception(error)
