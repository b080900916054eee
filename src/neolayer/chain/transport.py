"""One HTTP request to one node: its bytes, its replies as raw JSON, and every way in which it can fail."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import aiohttp
import msgspec

from neolayer.chain.errors import RpcError
from neolayer.core.text import connection_reason

#: How a node failed: ``timeout``; ``refused``: not reached; ``cut``: reached, no answer; ``http``: an error of
#: its server; ``limited``: too many requests; ``garbage``: not JSON-RPC; ``behind``: too low for the question;
#: ``network``: of another network.
type FailureKind = Literal["timeout", "refused", "cut", "http", "limited", "garbage", "behind", "network"]

#: Gateways limit rates inside of HTTP 200, too: EIP-1474 has −32005, others use −32029 and −32097.
_LIMIT_CODES: Final = (-32005, -32029, -32097)
_LIMIT_WORDS: Final = re.compile(r"rate.?limit|too many requests|request limit|quota", re.IGNORECASE)
#: A node that names no time rests this long; none rests longer than the other; seconds.
REST_S: Final = 1.0
REST_MAX_S: Final = 60.0
#: neo-go answers a request of more than 1 MiB with a parse error; bytes.
MAX_BODY_BYTES: Final = 900_000
#: Of a call in a request beside its method and parameters, rounded up; bytes.
_CALL_BYTES: Final = 64
#: Before and after the calls of a request that must tell at which height they were answered.
_BEFORE: Final = "before"
_AFTER: Final = "after"


class NodeFailed(Exception):
    """This node gave no usable answer; another may."""

    def __init__(self, kind: FailureKind, message: str, *, rest_s: float = 0.0) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        #: How long the node asks to be left alone; seconds.
        self.rest_s = rest_s

    @property
    def maybe_reached(self) -> bool:
        """Whether the node may have done what it was asked."""
        return self.kind in ("timeout", "cut", "http", "garbage")


_NOTHING: Final = msgspec.Raw()


class Reply(msgspec.Struct, frozen=True):
    """A node's answer to one call, as it came: shared answers are decoded by each caller for itself."""

    #: Empty when there is none.
    result: msgspec.Raw = _NOTHING
    error: dict[str, Any] | None = None
    id: int | str | None = None

    def value(self) -> Any:
        """
        Raises:
            RpcError: the node refused the call.
        """
        if self.error is not None:
            raise RpcError(self.error.get("code", 0), self.error.get("message", ""), self.error.get("data"))
        return decode(self.result)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node said to one request."""

    replies: Sequence[Reply]
    #: Index of its latest block before and after it answered; None if that was not asked.
    before: int | None = None
    after: int | None = None
    #: The connection was cut once before: the node may have done already what it was asked.
    repeated: bool = False


type Call = tuple[str, Sequence[Any]]


def portions(calls: Sequence[Call], most: int) -> Iterator[Sequence[Call]]:
    """Calls in their order, divided into what one request may hold.

    Args:
        most: calls in one.
    """
    first = size = 0
    for index, call in enumerate(calls):
        more = len(msgspec.json.encode(call)) + _CALL_BYTES
        if index > first and (index - first == most or size + more > MAX_BODY_BYTES):
            yield calls[first:index]
            first, size = index, 0
        size += more
    if first < len(calls):
        yield calls[first:]


class Request:
    """Calls for one HTTP request. ``heights``: also learn the node's height before and after them."""

    def __init__(self, calls: Sequence[tuple[str, Sequence[Any]]], *, batch: bool, heights: bool) -> None:
        self.calls = calls
        self._batch = batch or heights
        self._heights = heights
        parts = [_part(index, method, params) for index, (method, params) in enumerate(calls)]
        if heights:
            parts = [_part(_BEFORE, "getblockcount"), *parts, _part(_AFTER, "getblockcount")]
        self.body = msgspec.json.encode(parts if self._batch else parts[0])

    def read(self, content: bytes) -> Answer:
        """
        Raises:
            NodeFailed: this is no answer to the request.
        """
        try:
            replies = _batch_of(content) if self._batch else [_single_of(content)]
        except (msgspec.MsgspecError, ValueError):
            raise NodeFailed("garbage", "the reply is not JSON-RPC") from None
        for reply in replies:
            if reply.error is None and not bytes(reply.result):
                raise NodeFailed("garbage", "the reply is not JSON-RPC")
            if reply.error is not None and _limited(reply.error):
                raise NodeFailed("limited", str(reply.error.get("message", "limited")), rest_s=REST_S)
        if not self._batch:
            return Answer(replies)
        by_id = {reply.id: reply for reply in replies}
        try:
            answers = [by_id[index] for index in range(len(self.calls))]
            if not self._heights:
                return Answer(answers)
            before, after = (int(by_id[name].value()) - 1 for name in (_BEFORE, _AFTER))
        except (KeyError, TypeError, ValueError):
            raise NodeFailed("garbage", "the reply is not one of a JSON-RPC batch") from None
        except RpcError as error:
            raise NodeFailed("garbage", f"getblockcount: {error}") from None
        return Answer(answers, before, after)


class Transport:
    """Kept connections to all nodes. Belongs to the event loop it is first used in."""

    def __init__(self, *, connections: int) -> None:
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """Also for WebSockets to the same nodes."""
        if self._session is None:
            # How many are in use is up to each node's limit; this bounds what a mistake there can do.
            connector = aiohttp.TCPConnector(limit=0, limit_per_host=self._connections, keepalive_timeout=60)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(self, url: str, request: Request, timeout_s: float) -> Answer:
        """
        Raises:
            NodeFailed: no usable answer.
        """
        limits = aiohttp.ClientTimeout(total=timeout_s)
        repeated = False
        try:
            try:
                status, headers, content = await self._exchange(url, request.body, limits)
            except aiohttp.ServerDisconnectedError:
                # A kept connection that the node closed as idle just now. All our calls may be repeated.
                repeated = True
                status, headers, content = await self._exchange(url, request.body, limits)
        except TimeoutError:
            raise NodeFailed("timeout", f"no answer within {timeout_s:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise NodeFailed("cut" if repeated else "refused", connection_reason(error)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise NodeFailed("cut", str(error) or type(error).__name__) from None
        if status == 429:
            raise NodeFailed("limited", "HTTP 429", rest_s=_rest_s(headers))
        if status >= 500:
            raise NodeFailed("http", f"HTTP {status}", rest_s=_rest_s(headers) if "Retry-After" in headers else 0)
        answer = request.read(content)
        return replace(answer, repeated=True) if repeated else answer

    async def _exchange(self, url: str, body: bytes, limits: aiohttp.ClientTimeout) -> tuple[int, Any, bytes]:
        headers = {"Content-Type": "application/json"}
        async with self.session.post(url, data=body, headers=headers, timeout=limits) as response:
            return response.status, response.headers, await response.read()


def decode(content: bytes | msgspec.Raw) -> Any:
    """JSON as nodes write it: contracts put lone surrogates into it, which only the slower decoder takes."""
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        return json.loads(bytes(content))


def _part(id_: int | str, method: str, params: Sequence[Any] = ()) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id_, "method": method, "params": params}


_read_single: Final = msgspec.json.Decoder(Reply).decode
_read_batch: Final = msgspec.json.Decoder(list[Reply]).decode


def _single_of(content: bytes) -> Reply:
    try:
        return _read_single(content)
    except msgspec.DecodeError:
        return _slowly(json.loads(content))


def _batch_of(content: bytes) -> list[Reply]:
    try:
        return _read_batch(content)
    except msgspec.DecodeError:
        parts = json.loads(content)
        if not isinstance(parts, list):
            raise ValueError("not a batch") from None
        return [_slowly(part) for part in parts]


def _slowly(part: Any) -> Reply:
    """A reply in which msgspec finds a lone surrogate, or which has another shape."""
    if not isinstance(part, dict) or not isinstance(part.get("error", {}), dict | None):
        raise ValueError("not a reply")
    result = msgspec.Raw(json.dumps(part["result"]).encode()) if "result" in part else _NOTHING
    return Reply(result, part.get("error") or None, part.get("id"))


def _limited(error: dict[str, Any]) -> bool:
    code, message = error.get("code"), str(error.get("message", ""))
    return code in (*_LIMIT_CODES, 429) or (code == -32000 and _LIMIT_WORDS.search(message) is not None)


def _rest_s(headers: Any) -> float:
    """``Retry-After`` in seconds; a date is taken as the default."""
    try:
        return min(max(float(headers.get("Retry-After", REST_S)), 0.0), REST_MAX_S)
    except ValueError:
        return REST_S
