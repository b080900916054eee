"""Frames to and from the enclave, or one of its cells: requests, calls of functions, what they ask."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import msgspec

from neolayer.core.errors import InvalidRequest, ServiceError
from neolayer.enclave.errors import EnclaveRefused, EnclaveUnavailable, OutcomeUnknown
from neolayer_enclave import protocol
from neolayer_enclave.protocol import Kind

_log = logging.getLogger(__name__)
_LENGTH_BYTES: Final = 4
_MAX_BODY_BYTES: Final = protocol.MAX_FRAME_BYTES - protocol.HEADER_AFTER_LENGTH
#: Largest answer to a running function.
MAX_HOST_RESULT_BYTES: Final = 1_000_000
#: Requests past their time are looked for this often; seconds.
SWEEP_S: Final = 0.5

_encode_request = msgspec.msgpack.Encoder().encode
_decode_failure = msgspec.msgpack.Decoder(protocol.Failure).decode
_decode_host_call = msgspec.msgpack.Decoder(protocol.HostCall).decode
#: As a plain number: results come thousands a second.
_RESULT: Final = int(Kind.RESULT)


class Call(Protocol):
    """Who waits for a call of a function; told of its end once, from the event loop."""

    def finished(self, result: protocol.Result) -> None: ...

    def failed(self, error: ServiceError) -> None:
        """`EnclaveRefused`: it was not started. `OutcomeUnknown`: the enclave was lost while it ran."""

    async def serve(self, name: str, argument: bytes) -> bytes:
        """Serve what the running function asks of the host; see `HostFunction`."""
        ...


#: What is looked up for an id that nobody waits for.
_NOBODY: Final[tuple[float, Call | None, bytes]] = (0.0, None, b"")
_NOTHING: Final[tuple[float, asyncio.Future[bytes] | None]] = (0.0, None)


class Connection(asyncio.Protocol):
    """Frames in and out. Replies are matched by id; the host's own calls run as tasks."""

    def __init__(self) -> None:
        self.open = False
        self.closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        #: A chunk is being read, from which somebody may be told.
        self._reading = False
        #: The other side makes no sense: nothing more of it is read.
        self._condemned = False
        self._next_id = 0
        #: By id, with the time of the event loop when it is given up.
        self._requests: dict[int, tuple[float, asyncio.Future[bytes]]] = {}
        #: The same, and the body of their frame.
        self._calls: dict[int, tuple[float, Call, bytes]] = {}
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
        self.calls_lost(calls)
        for task in self._tasks:
            task.cancel()

    def calls_lost(self, calls: dict[int, tuple[float, Call, bytes]]) -> None:
        """They were not answered when the connection was lost."""
        for _, call, _ in calls.values():
            tell(call.failed, OutcomeUnknown())

    def close(self) -> None:
        """At once: the other side may not read what is left to be written."""
        if self._transport:
            self._transport.abort()

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
        self._calls[id] = self._loop.time() + timeout_s, call, body
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
        if late := [id for id, (deadline, _, _) in self._calls.items() if now > deadline]:
            self.overdue()
            for id in late:
                tell(self._calls.pop(id)[1].failed, OutcomeUnknown())
        busy = self._requests or self._calls
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if busy else None

    def data_received(self, data: bytes) -> None:
        if self._condemned:
            return
        self._reading = True
        try:
            self._read(data)
        except Exception:
            # There is no way to resume.
            _log.exception("what the enclave or a cell says makes no sense")
            self._condemned = True
            self.close()
        finally:
            self._reading = False

    def _read(self, data: bytes) -> None:
        buffer: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            buffer = self._buffer
        start, end = 0, len(buffer)
        header = protocol.HEADER
        while end - start >= header.size:
            length, kind, id = header.unpack_from(buffer, start)
            if not protocol.HEADER_AFTER_LENGTH <= length <= protocol.MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes is announced")
            stop = start + _LENGTH_BYTES + length
            if stop > end:
                break
            self._frame(kind, id, bytes(buffer[start + header.size : stop]))
            start = stop
        if buffer is data:
            self._buffer += data[start:]
        else:
            del self._buffer[:start]

    def _frame(self, kind: int, id: int, body: bytes) -> None:
        if kind == _RESULT:
            _, call, _ = self._calls.pop(id, _NOBODY)
            if call is not None:
                try:
                    result = protocol.decode_result(body)
                except Exception:
                    _log.exception("the enclave's result makes no sense")
                    tell(call.failed, OutcomeUnknown())
                else:
                    tell(call.finished, result)
        elif kind == Kind.HOST_CALL:
            asking = _decode_host_call(body)
            if not self.open:
                return
            _, call, _ = self._calls.get(asking.request, _NOBODY)
            self.asked(asking)
            task = self._loop.create_task(self._serve(id, asking, call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif kind == Kind.ERROR:
            error = refusal(_decode_failure(body))
            if id in self._calls:
                self.refused(*self._calls.pop(id), error)
            elif (future := self._requests.get(id, _NOTHING)[1]) and not future.done():
                future.set_exception(error)
        elif kind == Kind.RESPONSE:
            if (future := self._requests.get(id, _NOTHING)[1]) and not future.done():
                future.set_result(body)
        else:
            raise ValueError(f"unknown frame {kind}")

    def refused(self, deadline: float, call: Call, body: bytes, error: EnclaveRefused) -> None:
        """A call was not started."""
        tell(call.failed, error)

    def overdue(self) -> None:
        """A call was not answered long after its limit."""

    def asked(self, asking: protocol.HostCall) -> None:
        """A function asks something of this host."""

    def encode_failure(self, failure: protocol.Failure) -> bytes:
        """Body of a ``HOST_ERROR``."""
        return protocol.encode(failure)

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
            failure = protocol.Failure(error.code, error.detail, error.retryable)
            kind, body = Kind.HOST_ERROR, self.encode_failure(failure)
        except Exception:
            _log.exception("serving %s for a function", asking.name)
            failure = protocol.Failure("internal_error", "the service failed to serve this call")
            kind, body = Kind.HOST_ERROR, self.encode_failure(failure)
        self._send(protocol.frame(kind, id, body))


def refusal(failure: protocol.Failure) -> EnclaveRefused:
    extra: dict[str, Any] = {}
    if failure.line is not None:
        extra = {"line": failure.line, "column": failure.column}
    return EnclaveRefused(failure.code, failure.message, retryable=failure.retryable, **extra)


def tell[T](told: Callable[[T], None], what: T) -> None:
    """One who waits must not be able to break the connection that all share."""
    try:
        told(what)
    except Exception:
        _log.exception("the end of a call could not be told")
