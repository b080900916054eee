"""One connection to the enclave, many calls in flight on it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

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
#: A call's own limit is kept by the enclave; this much later it counts as stuck: start of a cell, queue; seconds.
INVOKE_SLACK_S: Final = 10.0

_MAX_BODY_BYTES: Final = protocol.MAX_FRAME_BYTES - protocol.HEADER_AFTER_LENGTH
#: Largest answer to a running function.
MAX_HOST_RESULT_BYTES: Final = 1_000_000

_decode_failure = msgspec.msgpack.Decoder(protocol.Failure).decode
_decode_host_call = msgspec.msgpack.Decoder(protocol.HostCall).decode
_decode_result = msgspec.msgpack.Decoder(protocol.Result).decode

#: Requests past their time are looked for this often; seconds.
SWEEP_S: Final = 0.5

#: Serves what a running function asks of the host: gets the JSON argument, returns JSON.
type HostFunction = Callable[[str, bytes], Awaitable[bytes]]


class Enclave(Protocol):
    """What the rest of the house asks of the enclave, wherever it runs."""

    async def hello(self) -> protocol.Identity: ...
    async def attest(self, nonce: bytes) -> protocol.Evidence: ...
    async def seal(self, tenant: str, name: str, version: int, plaintext: bytes) -> bytes: ...
    async def create_key(self, tenant: str, wallet: str) -> protocol.WalletKey: ...
    async def sign_transaction(
        self, tenant: str, wallet: str, sealed: bytes, network: int, unsigned: bytes
    ) -> protocol.Signature: ...
    async def check(self, tenant: str, source: str) -> bytes: ...
    async def load(self, bundle: protocol.Load) -> None: ...
    async def invoke(
        self, tenant: str, bundle: str, execution: str, input: bytes, host: HostFunction, *, timeout_ms: int
    ) -> protocol.Result: ...
    async def stats(self) -> protocol.Statistics: ...
    async def layers(self) -> list[protocol.Layer]: ...


class EnclaveClient:
    """Implements `Enclave` over the unix socket.

    Connects at the first call and again after the connection was lost. Calls that were in flight when it was
    lost raise `EnclaveUnavailable`; whether they ran is unknown.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        if self._connection:
            self._connection.close()

    async def hello(self) -> protocol.Identity:
        return await self._call(protocol.Hello(), protocol.Identity)

    async def attest(self, nonce: bytes) -> protocol.Evidence:
        return await self._call(protocol.Attest(nonce), protocol.Evidence)

    async def seal(self, tenant: str, name: str, version: int, plaintext: bytes) -> bytes:
        sealed = await self._call(protocol.Seal(tenant, name, version, plaintext), protocol.Sealed)
        return sealed.ciphertext

    async def create_key(self, tenant: str, wallet: str) -> protocol.WalletKey:
        return await self._call(protocol.CreateKey(tenant, wallet), protocol.WalletKey)

    async def sign_transaction(
        self, tenant: str, wallet: str, sealed: bytes, network: int, unsigned: bytes
    ) -> protocol.Signature:
        request = protocol.SignTransaction(tenant, wallet, sealed, network, unsigned)
        return await self._call(request, protocol.Signature)

    async def check(self, tenant: str, source: str) -> bytes:
        """Parse a source; returns its SHA-256."""
        return (await self._call(protocol.Check(tenant, source), protocol.Checked)).code_hash

    async def load(self, bundle: protocol.Load) -> None:
        await self._call(bundle, protocol.Loaded)

    async def invoke(
        self, tenant: str, bundle: str, execution: str, input: bytes, host: HostFunction, *, timeout_ms: int
    ) -> protocol.Result:
        """Run a bundle. ``host`` serves the function's calls back, many at a time.

        Raises:
            EnclaveRefused: code ``not_loaded`` asks for `load` first.
            EnclaveUnavailable: it was not started.
            OutcomeUnknown: the enclave was lost while it ran.
        """
        connection = self._connection
        if connection is None or not connection.open:
            connection = await self._connect()
        request = protocol.Invoke(tenant, bundle, execution, input)
        try:
            return _decode_result(
                await connection.request(request, host, timeout_s=timeout_ms / 1000 + INVOKE_SLACK_S)
            )
        except EnclaveUnavailable as error:
            raise OutcomeUnknown from error

    async def stats(self) -> protocol.Statistics:
        return await self._call(protocol.Stats(), protocol.Statistics)

    async def layers(self) -> list[protocol.Layer]:
        """The walls around the functions' processes."""
        return (await self._call(protocol.Layers(), protocol.Hardening)).layers

    async def _call[R](self, request: protocol.Message, reply: type[R]) -> R:
        connection = self._connection
        if connection is None or not connection.open:
            connection = await self._connect()
        body = await connection.request(request, None, timeout_s=REQUEST_TIMEOUT_S)
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


@dataclass(slots=True)
class _Waiting:
    """A request on its way."""

    future: asyncio.Future[bytes]
    #: Time of the event loop.
    deadline: float
    host: HostFunction | None


class _Connection(asyncio.Protocol):
    """Frames in and out. Replies are matched by id; the host's own calls run as tasks."""

    def __init__(self) -> None:
        self.open = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._next_id = 0
        self._waiting: dict[int, _Waiting] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._sweeper is not None:
            self._sweeper.cancel()
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(EnclaveUnavailable("the connection to the enclave was lost"))
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    async def request(self, message: protocol.Message, host: HostFunction | None, *, timeout_s: float) -> bytes:
        """
        Raises:
            InvalidRequest: more than a frame holds.
            EnclaveUnavailable: the connection was lost, or no answer came in time.
        """
        encoded = _encode_request(message)
        if len(encoded) > _MAX_BODY_BYTES:
            raise InvalidRequest(f"the enclave takes at most {_MAX_BODY_BYTES} bytes at a time")
        self._next_id = id = (self._next_id + 1) & 0xFFFF_FFFF
        waiting = _Waiting(self._loop.create_future(), self._loop.time() + timeout_s, host)
        self._waiting[id] = waiting
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        try:
            self._send(protocol.frame(Kind.REQUEST, id, encoded))
            return await waiting.future
        finally:
            del self._waiting[id]

    def _send(self, frame: bytes) -> None:
        """Dropped when the connection is gone. uvloop joins the writes of one turn of the event loop."""
        if self.open and self._transport:
            self._transport.write(frame)

    def _sweep(self) -> None:
        """One timer for all requests: most are answered long before one of their own would be worth its cost."""
        now = self._loop.time()
        for waiting in self._waiting.values():
            if now > waiting.deadline and not waiting.future.done():
                waiting.future.set_exception(EnclaveUnavailable("the enclave gave no answer in time"))
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if self._waiting else None

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
        if kind == Kind.HOST_CALL:
            call = _decode_host_call(body)
            asking = self._waiting.get(call.request)
            task = self._loop.create_task(self._serve(id, call, asking.host if asking else None))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        waiting = self._waiting.get(id)
        if waiting is None or waiting.future.done():
            return
        if kind == Kind.RESPONSE:
            waiting.future.set_result(body)
        else:
            waiting.future.set_exception(_refusal(_decode_failure(body)))

    async def _serve(self, id: int, call: protocol.HostCall, host: HostFunction | None) -> None:
        try:
            if host is None:
                raise EnclaveUnavailable("the call that asks is no longer running")
            kind, body = Kind.HOST_RESULT, await host(call.name, call.argument)
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
            _log.exception("serving %s for a function", call.name)
            failure = protocol.Failure("internal_error", "the service failed to serve this call")
            kind, body = Kind.HOST_ERROR, protocol.encode(failure)
        self._send(protocol.frame(kind, id, body))


def _refusal(failure: protocol.Failure) -> EnclaveRefused:
    extra: dict[str, Any] = {}
    if failure.line is not None:
        extra = {"line": failure.line, "column": failure.column}
    return EnclaveRefused(failure.code, failure.message, retryable=failure.retryable, **extra)
