"""``POST /api/v1/functions/{name}/invoke`` as a raw ASGI handler: the one hottest path.

It answers exactly as a route of the framework would (same authentication, same problem bodies, same metrics);
it only skips the framework's per-request work, which costs as much again as the call itself.
"""

import logging
import time
from typing import Final, TypeIs
from uuid import UUID

import msgspec
from litestar.types import HTTPScope, Receive, Scope, Send

from neolayer.api.auth import Authenticator, bearer_key, client_address
from neolayer.api.body import drain
from neolayer.api.metrics import REQUESTS
from neolayer.api.problems import encode_problem, problem_headers
from neolayer.core.errors import BodyTooLarge, MalformedJson, ServiceError
from neolayer.functions.service import Functions

_log = logging.getLogger(__name__)
PREFIX: Final = "/api/v1/functions/"
SUFFIX: Final = "/invoke"
#: Largest input of a function; bytes.
MAX_INPUT_BYTES: Final = 1_000_000
_ROUTE: Final = "/api/v1/functions/{name}/invoke"
_SUCCEEDED: Final = REQUESTS.labels("POST", _ROUTE, 200)
#: Checks that bytes are one JSON value without building it.
_check_json = msgspec.json.Decoder(msgspec.Raw).decode


class InvokeEndpoint:
    def __init__(self, functions: Functions, authenticator: Authenticator) -> None:
        self._functions = functions
        self._authenticator = authenticator

    @staticmethod
    def matches(scope: Scope) -> TypeIs[HTTPScope]:
        if scope["type"] != "http":  # type: ignore[comparison-overlap] # the server sends plain strings
            return False
        path = scope["path"]
        return scope.get("method") == "POST" and path.endswith(SUFFIX) and path.startswith(PREFIX)

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        untouched = True
        try:
            key = bearer_key(scope["headers"])  # type: ignore[arg-type]
            principal = await self._authenticator.authenticate(key, client_address(scope))
            untouched = False
            body = await _read(receive)
            check_input(body)
            name = scope["path"][len(PREFIX) : -len(SUFFIX)]
            execution, result = await self._functions.invoke(principal, name, body)
        except ServiceError as error:
            await _send_problem(send, error)
            REQUESTS.labels("POST", _ROUTE, error.status).observe(time.perf_counter() - start)
            if untouched:
                await drain(receive)
        except _ClientGone:
            return
        except Exception:
            _log.exception("POST %s failed", scope["path"])
            await _send_problem(send, ServiceError())
            REQUESTS.labels("POST", _ROUTE, 500).observe(time.perf_counter() - start)
        else:
            await _send_output(send, execution, result.output, cold=result.cold)
            _SUCCEEDED.observe(time.perf_counter() - start)


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


class _ClientGone(Exception):
    """The client left before its request was complete."""


async def _read(receive: Receive) -> bytes:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise _ClientGone
    body: bytes = message.get("body", b"")  # type: ignore[assignment]
    if message.get("more_body"):
        chunks, size = [body], len(body)
        while message.get("more_body") and size <= MAX_INPUT_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                # Half a body may be JSON, too: it must not run.
                raise _ClientGone
            chunks.append(message.get("body", b""))  # type: ignore[arg-type]
            size += len(chunks[-1])
        body = b"".join(chunks)
    if len(body) > MAX_INPUT_BYTES:
        if message.get("more_body"):
            await drain(receive)
        raise BodyTooLarge(f"a function's input has at most {MAX_INPUT_BYTES} bytes")
    return body


async def _send_output(send: Send, execution: UUID, output: bytes, *, cold: bool) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(output)).encode()),
                (b"neolayer-execution", str(execution).encode()),
                (b"neolayer-start", b"cold" if cold else b"warm"),
            ],
        }
    )
    await send({"type": "http.response.body", "body": output, "more_body": False})


async def _send_problem(send: Send, error: ServiceError) -> None:
    body = encode_problem(error)
    headers = [(name.encode(), value.encode()) for name, value in problem_headers(error).items()]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
