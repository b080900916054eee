"""One connection to the enclave, many calls in flight on it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast
from uuid import UUID

import msgspec

from neolayer.core.errors import InvalidRequest, ServiceError
from neolayer.enclave.errors import EnclaveRefused, EnclaveUnavailable, OutcomeUnknown
from neolayer_enclave import protocol
from neolayer_enclave.protocol import Kind

_log = logging.getLogger(__name__)
_encode_request = msgspec.msgpack.Encoder().encode
_LENGTH_BYTES: Final = 4
#: An enclave that takes longer for anything but a call of a function counts as stuck; seconds.
REQUEST_TIMEOUT_S: Final = 15.0
#: A call's own limit is kept by the enclave; this much later it counts as stuck. It may wait 30 s for a process to
#: start and 5 s for its turn before that limit begins; seconds.
INVOKE_SLACK_S: Final = 40.0

#: Transactions, and bytes of them, that one request asks to sign: the enclave does nothing else meanwhile, 4 ms.
SIGN_AT_ONCE: Final = 64
SIGN_BYTES: Final = 1_000_000

_MAX_BODY_BYTES: Final = protocol.MAX_FRAME_BYTES - protocol.HEADER_AFTER_LENGTH
#: Largest answer to a running function.
MAX_HOST_RESULT_BYTES: Final = 1_000_000

_decode_failure = msgspec.msgpack.Decoder(protocol.Failure).decode
_decode_host_call = msgspec.msgpack.Decoder(protocol.HostCall).decode
#: As a plain number: results come thousands a second.
_RESULT: Final = int(Kind.RESULT)
#: Handles of bundles that are remembered.
MAX_HANDLES: Final = 10_000

#: Requests past their time are looked for this often; seconds.
SWEEP_S: Final = 0.5

#: Serves what a running function asks of the host: gets the JSON argument, returns JSON.
type HostFunction = Callable[[str, bytes], Awaitable[bytes]]


class Call(Protocol):
    """Who waits for a call of a function; told of its end once, from the event loop."""

    def finished(self, result: protocol.Result) -> None: ...

    def failed(self, error: ServiceError) -> None:
        """`EnclaveRefused`: it was not started. `OutcomeUnknown`: the enclave was lost while it ran."""

    async def serve(self, name: str, argument: bytes) -> bytes:
        """Serve what the running function asks of the host; see `HostFunction`."""
        ...


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
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._handles: dict[str, bytes] = {}

    async def close(self) -> None:
        """Calls that run are told `OutcomeUnknown` before this returns."""
        if self._connection:
            self._connection.close()
            await self._connection.closed.wait()

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
        if len(self._handles) >= MAX_HANDLES:
            del self._handles[next(iter(self._handles))]
        self._handles[bundle.bundle] = loaded.handle

    def start(
        self, bundle: str, execution: UUID, input: bytes, call: Call, *, timeout_ms: int, depth: int = 0
    ) -> bool:
        """Send a call off without waiting for anything; its end is told to ``call``.

        Returns:
            False when that is not possible just now, because the connection or the bundle's handle is missing:
            nothing was sent, `invoke` says what is wrong.
        """
        connection = self._connection
        handle = self._handles.get(bundle)
        if handle is None or connection is None or not connection.open:
            return False
        connection.invoke(
            protocol.encode_invoke(handle, depth, execution.bytes, input), call, timeout_ms / 1000 + INVOKE_SLACK_S
        )
        return True

    async def warm(self, bundle: str) -> bool:
        """Make a bundle's isolate ahead of its next call. Returns whether it was there.

        Raises:
            EnclaveRefused: ``not_loaded`` asks for `load` first; ``invalid_function``, its calls will fail.
        """
        handle = self._handles.get(bundle)
        if handle is None:
            raise EnclaveRefused("not_loaded", "this bundle was not loaded", retryable=True)
        return (await self._call(protocol.Warm(handle), protocol.Warmed)).was_warm

    async def invoke(
        self, bundle: str, execution: UUID, input: bytes, host: HostFunction, *, timeout_ms: int, depth: int = 0
    ) -> protocol.Result:
        """Run a bundle. ``host`` serves the function's calls back, many at a time.

        Raises:
            EnclaveRefused: code ``not_loaded`` asks for `load` first.
            EnclaveUnavailable: it was not started.
            OutcomeUnknown: the enclave was lost while it ran.
        """
        if self._connection is None or not self._connection.open:
            await self._connect()
        call = _Awaited(host)
        if not self.start(bundle, execution, input, call, timeout_ms=timeout_ms, depth=depth):
            raise EnclaveRefused("not_loaded", "this bundle was not loaded", retryable=True)
        return await call.result

    async def stats(self) -> protocol.Statistics:
        return await self._call(protocol.Stats(), protocol.Statistics)

    async def layers(self) -> list[protocol.Layer]:
        """The walls around the functions' processes."""
        return (await self._call(protocol.Layers(), protocol.Hardening)).layers

    async def _call[R](self, request: protocol.Message, reply: type[R]) -> R:
        connection = self._connection
        if connection is None or not connection.open:
            connection = await self._connect()
        body = await connection.request(request, timeout_s=REQUEST_TIMEOUT_S)
        return msgspec.msgpack.decode(body, type=reply)

    async def _connect(self) -> "_Connection":
        async with self._connecting:
            if self._connection is None or not self._connection.open:
                try:
                    _, self._connection = await asyncio.get_running_loop().create_unix_connection(
                        _Connection, str(self._socket)
                    )
                except OSError as error:
                    raise EnclaveUnavailable(f"enclave at {self._socket}: {error.strerror or error}") from error
            return self._connection


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


#: What is looked up for an id that nobody waits for.
_NOBODY: Final[tuple[float, Call | None]] = (0.0, None)


class _Connection(asyncio.Protocol):
    """Frames in and out. Replies are matched by id; the host's own calls run as tasks."""

    def __init__(self) -> None:
        self.open = False
        self.closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._next_id = 0
        #: By id, with the time of the event loop when it is given up.
        self._requests: dict[int, tuple[float, asyncio.Future[bytes]]] = {}
        self._calls: dict[int, tuple[float, Call]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self.closed.set()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for _, future in self._requests.values():
            if not future.done():
                future.set_exception(EnclaveUnavailable("the connection to the enclave was lost"))
        calls, self._calls = self._calls, {}
        for _, call in calls.values():
            _tell(call.failed, OutcomeUnknown())
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    async def request(self, message: protocol.Message, *, timeout_s: float) -> bytes:
        """
        Raises:
            InvalidRequest: more than a frame holds.
            EnclaveUnavailable: the connection was lost, or no answer came in time.
        """
        encoded = _encode_request(message)
        if len(encoded) > _MAX_BODY_BYTES:
            raise InvalidRequest(f"the enclave takes at most {_MAX_BODY_BYTES} bytes at a time")
        id, future = self._new_id(), self._loop.create_future()
        self._requests[id] = self._loop.time() + timeout_s, future
        try:
            self._send(protocol.frame(Kind.REQUEST, id, encoded))
            return cast(bytes, await future)
        finally:
            del self._requests[id]

    def invoke(self, body: bytes, call: Call, timeout_s: float) -> None:
        id = self._new_id()
        self._calls[id] = self._loop.time() + timeout_s, call
        self._send(protocol.frame(Kind.INVOKE, id, body))

    def _new_id(self) -> int:
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        self._next_id = id = (self._next_id + 1) & 0xFFFF_FFFF
        return id

    def _send(self, frame: bytes) -> None:
        """Dropped when the connection is gone. uvloop joins the writes of one turn of the event loop."""
        if self.open and self._transport:
            self._transport.write(frame)

    def _sweep(self) -> None:
        """One timer for all requests: most are answered long before one of their own would be worth its cost."""
        now = self._loop.time()
        for deadline, future in self._requests.values():
            if now > deadline and not future.done():
                future.set_exception(EnclaveUnavailable("the enclave gave no answer in time"))
        for id in [id for id, (deadline, _) in self._calls.items() if now > deadline]:
            _tell(self._calls.pop(id)[1].failed, OutcomeUnknown())
        busy = self._requests or self._calls
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if busy else None

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        header = protocol.HEADER
        while end - start >= header.size:
            length, kind, id = header.unpack_from(buffer, start)
            if not protocol.HEADER_AFTER_LENGTH <= length <= protocol.MAX_FRAME_BYTES:
                _log.error("the enclave announced a frame of %d bytes", length)
                self.close()
                return
            stop = start + _LENGTH_BYTES + length
            if stop > end:
                break
            self._frame(kind, id, bytes(buffer[start + header.size : stop]))
            start = stop
        if start:
            del buffer[:start]

    def _frame(self, kind: int, id: int, body: bytes) -> None:
        if kind == _RESULT:
            _, call = self._calls.pop(id, _NOBODY)
            if call is not None:
                try:
                    result = protocol.decode_result(body)
                except Exception:
                    _log.exception("the enclave's result makes no sense")
                    _tell(call.failed, OutcomeUnknown())
                else:
                    _tell(call.finished, result)
        elif kind == Kind.HOST_CALL:
            asking = _decode_host_call(body)
            _, call = self._calls.get(asking.request, _NOBODY)
            task = self._loop.create_task(self._serve(id, asking, call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif id in self._calls:
            _tell(self._calls.pop(id)[1].failed, _refusal(_decode_failure(body)))
        elif id in self._requests and not (future := self._requests[id][1]).done():
            if kind == Kind.RESPONSE:
                future.set_result(body)
            else:
                future.set_exception(_refusal(_decode_failure(body)))

    async def _serve(self, id: int, asking: protocol.HostCall, call: Call | None) -> None:
        try:
            if call is None:
                raise EnclaveUnavailable("the call that asks is no longer running")
            kind, body = Kind.HOST_RESULT, await call.serve(asking.name, asking.argument)
            if len(body) > MAX_HOST_RESULT_BYTES:
                raise InvalidRequest(
                    f"the answer has {len(body)} bytes, a function can take {MAX_HOST_RESULT_BYTES}"
                )
        except ServiceError as error:
            kind, body = (
                Kind.HOST_ERROR,
                protocol.encode(protocol.Failure(error.code, error.detail, error.retryable)),
            )
        except Exception:
            _log.exception("serving %s for a function", asking.name)
            failure = protocol.Failure("internal_error", "the service failed to serve this call")
            kind, body = Kind.HOST_ERROR, protocol.encode(failure)
        self._send(protocol.frame(kind, id, body))


def _refusal(failure: protocol.Failure) -> EnclaveRefused:
    extra: dict[str, Any] = {}
    if failure.line is not None:
        extra = {"line": failure.line, "column": failure.column}
    return EnclaveRefused(failure.code, failure.message, retryable=failure.retryable, **extra)


def _tell[T](told: Callable[[T], None], what: T) -> None:
    """One who waits must not be able to break the connection that all share."""
    try:
        told(what)
    except Exception:
        _log.exception("the end of a call could not be told")
