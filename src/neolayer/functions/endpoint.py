"""``POST /api/v1/functions/{name}/invoke`` at the level of the HTTP parser: the one hottest path.

A plain request of this kind is answered here without the framework, a task or a coroutine: its last byte sends
the call off to the enclave, the call's end writes the response. It is answered exactly as the framework's route
would (same authentication, same problem bodies, same metrics). Everything else, and whatever is out of the
ordinary about such a request, goes the way of all requests through the ASGI application.
"""

import asyncio
import logging
import time
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from neolayer.api.auth import Authenticator, bearer_token
from neolayer.api.body import DRAIN_BYTES
from neolayer.api.metrics import REQUESTS
from neolayer.api.problems import encode_problem, problem_headers
from neolayer.core.errors import BodyTooLarge, MalformedJson, ServiceError
from neolayer.core.types import Principal
from neolayer.enclave import Result
from neolayer.functions.service import Functions

_log = logging.getLogger(__name__)
PREFIX: Final = b"/api/v1/functions/"
SUFFIX: Final = b"/invoke"
#: Largest input of a function; bytes.
MAX_INPUT_BYTES: Final = 1_000_000
#: All headers of a request together; bytes.
MAX_HEAD_BYTES: Final = 65_536
#: Requests of a connection that wait for an answer to the one before.
MAX_PIPELINED: Final = 128
#: A longer head is not remembered; bytes a connection.
MAX_REMEMBERED_BYTES: Final = 4_096
#: A request that stops arriving ends its connection; seconds.
ARRIVAL_TIMEOUT_S: Final = 30.0
#: Requests with one of these ask for more than a plain call.
_UNUSUAL: Final = frozenset({b"expect", b"idempotency-key", b"prefer", b"upgrade", b"content-encoding"})
_ROUTE: Final = "/api/v1/functions/{name}/invoke"
_SUCCEEDED: Final = REQUESTS.of("POST", _ROUTE, "200")
#: Checks that bytes are one JSON value without building it.
_check_json = msgspec.json.Decoder(msgspec.Raw).decode


def check_input(body: bytes) -> None:
    """See that a function's input is empty or JSON.

    Raises:
        MalformedJson: neither.
    """
    if body:
        try:
            _check_json(body)
            if not body.isascii():
                body.decode()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedJson(f"the input is not JSON: {error}") from None


class InvokeEndpoint:
    """What the connections of this process need to serve calls themselves."""

    def __init__(self, functions: Functions, authenticator: Authenticator) -> None:
        self.functions = functions
        self.authenticator = authenticator


class _NoEvent:
    """In place of the event by which a coroutine would wait for more of the request."""

    def set(self) -> None:
        pass


class Head(NamedTuple):
    """What a connection's latest plain invocation began with, up to its empty line.

    Clients repeat themselves: the same bytes mean the same again, and the parser need not be asked.
    """

    text: bytes
    body_length: int
    name: str
    authorization: bytes


class InvokeProtocol(HttpToolsProtocol):
    """One HTTP connection. uvicorn's, but for plain invocations."""

    #: Its ``invocations`` is an `InvokeEndpoint`, or null: then everything is passed on to it.
    app: Any

    _head: Head | None = None
    #: That began in the chunk being parsed.
    _messages = 0

    #: Bytes of a request whose headers are not complete.
    _head_bytes = 0
    _in_head = False
    #: Its last byte has not come.
    _arriving = False
    _last_active = 0.0

    def on_message_begin(self) -> None:
        # The scope is made when it turns out that one is needed.
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._in_head = self._arriving = True
        self._messages += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer behind a chunked body
        name = name.lower()
        if name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if self._is_plain_invocation():
            name = self.url[len(PREFIX) : -len(SUFFIX)].decode()
            authorization = next((value for name, value in self.headers if name == b"authorization"), b"")
            self.cycle = Invocation(self, name, authorization)  # type: ignore[assignment]
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            raise ValueError("too many requests before the first answer")

    def on_body(self, body: bytes) -> None:
        cycle: object = self.cycle
        if type(cycle) is Invocation:
            cycle.receive(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._arriving = False
        cycle: object = self.cycle
        if type(cycle) is Invocation:
            cycle.start()
        else:
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        was_idle = not self._arriving and (self.cycle is None or self.cycle.response_complete)
        head = self._head
        if (
            head is not None
            and was_idle
            and len(data) == len(head.text) + head.body_length
            and data.startswith(head.text)
            and not self.flow.write_paused
        ):
            self._last_active = self.loop.time()
            call = Invocation(self, head.name, head.authorization)
            self.cycle = call  # type: ignore[assignment]
            call.receive(data[len(head.text) :])
            call.start()
            return
        self._messages = 0
        super().data_received(data)
        if self._in_head:
            # What came before it in the chunk in which it began is not its own.
            self._head_bytes = 0 if self._messages else self._head_bytes + len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.close()
        elif was_idle and self._messages == 1 and not self._arriving:
            self._remember(data)

    def _remember(self, data: bytes) -> None:
        call: object = self.cycle
        if type(call) is not Invocation:
            return
        # The chunk must be one head and its body and nothing else: whoever shares this connection through a proxy
        # must not get to say where another's request begins.
        end = len(data) - call.received
        if end > MAX_REMEMBERED_BYTES or data.find(b"\r\n\r\n") + 4 != end:
            return
        lengths = [value for name, value in self.headers if name in (b"content-length", b"transfer-encoding")]
        if lengths == [str(call.received).encode()] or (not lengths and not call.received):
            self._head = Head(data[:end], call.received, call.name, call.authorization)

    # uvicorn sets and cancels a timer for each request. One that looks at the time when it fires costs nothing on
    # the way; it also ends a request that stopped arriving, which uvicorn waits for without end.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._last_active = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(ARRIVAL_TIMEOUT_S, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()

    def _unset_keepalive_if_required(self) -> None:
        self._last_active = self.loop.time()

    def on_response_complete(self) -> None:
        if self.pipeline:
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self._last_active = self.loop.time()
        self.flow.resume_reading()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        allowed = ARRIVAL_TIMEOUT_S if self._arriving or self.cycle is None else self.timeout_keep_alive
        left = self._last_active + allowed - self.loop.time()
        # While an answer is due reading may be paused, so that what is missing is not the client's fault; but one
        # who does not take its answers is not waited for.
        due = bool(self.pipeline) or (answering and not self._arriving)
        if left > 0 or (due and not self.flow.write_paused):
            again = max(left, 1.0)
            self.timeout_keep_alive_task = self.loop.call_later(again, self.timeout_keep_alive_handler)
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _is_plain_invocation(self) -> bool:
        url = self.url
        if not url.endswith(SUFFIX) or not url.startswith(PREFIX) or self.parser.get_method() != b"POST":
            return False
        if self.app.invocations is None or self.flow.write_paused:
            return False
        if self.cycle is not None and not self.cycle.response_complete:
            return False  # Sent before the last answer came: uvicorn has a queue for these.
        name = url[len(PREFIX) : -len(SUFFIX)]
        return (
            name.replace(b"-", b"").replace(b"_", b"").isalnum()
            and self.parser.should_keep_alive()
            and _UNUSUAL.isdisjoint([name for name, _ in self.headers])
        )


class Invocation:
    """One such request, from its headers to its response. Stands where uvicorn has the cycle of a request."""

    __slots__ = (
        "_begun", "_parts", "_protocol",
        "authorization", "body", "disconnected", "keep_alive", "more_body", "name", "received",
        "response_complete",
    )  # fmt: skip
    message_event: Final = _NoEvent()

    def __init__(self, protocol: InvokeProtocol, name: str, authorization: bytes) -> None:
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self._begun = time.perf_counter()
        self._protocol = protocol
        self.name = name
        self.authorization = authorization
        self._parts: list[bytes] = []
        #: Bytes of the body.
        self.received = 0

    def receive(self, body: bytes) -> None:
        self.received += len(body)
        if self.received <= MAX_INPUT_BYTES:
            self._parts.append(body)
        elif self.received <= DRAIN_BYTES:
            # A client that is still sending when the connection closes would not see the answer.
            self._parts.clear()
        elif not self.response_complete:
            self.keep_alive = False
            self._refuse(_too_large())

    def start(self) -> None:
        if self.response_complete:
            return
        try:
            endpoint: InvokeEndpoint = self._protocol.app.invocations
            principal = endpoint.authenticator.known(bearer_token(self.authorization))
            if principal is None:
                self._later(self._authenticate())
            else:
                self._call(principal)
        except ServiceError as error:
            self._refuse(error)
        except Exception:
            self._broken()

    def _call(self, principal: Principal) -> None:
        if self.received > MAX_INPUT_BYTES:
            raise _too_large()
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        # The connection holds this object until its next request.
        self._parts = []
        check_input(body)
        functions = self._protocol.app.invocations.functions
        bundle = functions.ready(principal.tenant_id, self.name)
        if bundle is None:
            self._later(self._invoke(principal, body))
        else:
            functions.start(principal, bundle, body, self)

    # --- what takes longer --------------------------------------------------------------------------------------

    def _later(self, work: Any) -> None:
        task = self._protocol.loop.create_task(work)
        self._protocol.tasks.add(task)
        task.add_done_callback(self._protocol.tasks.discard)

    async def _authenticate(self) -> None:
        peer = self._protocol.client
        try:
            endpoint: InvokeEndpoint = self._protocol.app.invocations
            key = bearer_token(self.authorization)
            self._call(await endpoint.authenticator.authenticate(key, peer[0] if peer else "local"))
        except ServiceError as error:
            self._refuse(error)
        except Exception:
            self._broken()

    async def _invoke(self, principal: Principal, body: bytes) -> None:
        try:
            self.answered(*await self._protocol.app.invocations.functions.invoke(principal, self.name, body))
        except ServiceError as error:
            self._refuse(error)
        except asyncio.CancelledError:
            raise
        except Exception:
            self._broken()

    # --- Waiter of the call -------------------------------------------------------------------------------------

    def answered(self, execution: UUID, result: Result) -> None:
        output = result.output
        self._send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"neolayer-execution: %b\r\nneolayer-start: %b\r\n%b\r\n%b"
            % (
                len(output),
                str(execution).encode(),
                b"cold" if result.cold else b"warm",
                b"" if self.keep_alive else b"connection: close\r\n",
                output,
            )
        )
        _SUCCEEDED.observe(time.perf_counter() - self._begun)

    def failed(self, error: ServiceError) -> None:
        self._refuse(error)

    def _refuse(self, error: ServiceError) -> None:
        body = encode_problem(error)
        headers = problem_headers(error) | {"content-length": str(len(body))}
        if not self.keep_alive:
            headers["connection"] = "close"
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._send(STATUS_LINE[error.status] + head.encode() + b"\r\n" + body)
        REQUESTS.of("POST", _ROUTE, str(error.status)).observe(time.perf_counter() - self._begun)

    def _broken(self) -> None:
        _log.exception("a call of %s failed", self.name)
        self._refuse(ServiceError())

    def _send(self, response: bytes) -> None:
        self.response_complete = True
        protocol = self._protocol
        # A connection tells only the latest of several requests that it is gone.
        if self.disconnected or protocol.transport.is_closing():
            return
        protocol.transport.write(response)
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"a function's input has at most {MAX_INPUT_BYTES} bytes")
