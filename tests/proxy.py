"""A proxy before a Neo node that stages faults. It speaks JSON-RPC over HTTP, and passes WebSockets on.

Each fault is a rule over the method's name, so that a test can stage it for sends alone, say; a batch counts as
its first method, except where single calls are answered or changed.
"""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web

#: Decides by the method's name what happens to a request.
type Rule = Callable[[str], bool]
#: Changes the result of one call: method and result → result. Events of blocks come as method ``block_added``.
type Rewrite = Callable[[str, Any], Any]
#: An event of a WebSocket → those that are sent in its place.
type EventRule = Callable[[dict[str, Any]], list[dict[str, Any]]]
#: A call's method and parameters → the error that it is answered with, or None.
type Objection = Callable[[str, list[Any]], dict[str, Any] | None]


def nothing(_: str) -> bool:
    return False


def everything(_: str) -> bool:
    return True


def sending(method: str) -> bool:
    return method == "sendrawtransaction"


def reading(method: str) -> bool:
    return not sending(method)


def no_objection(_: str, __: list[Any]) -> None:
    return None


def unchanged(_: str, result: Any) -> Any:
    return result


def as_they_come(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [event]


def higher_by(blocks: int) -> Rewrite:
    """A node that claims blocks it does not have; or, with less than 0, one that has lost some."""
    return lambda method, result: result + blocks if method == "getblockcount" else result


class NodeProxy:
    def __init__(self, target: str) -> None:
        self.target = target
        self.url = ""
        #: Requests that are kept here and never reach the node: it accepts connections and does not answer.
        self.hold: Rule = nothing
        #: Requests that reach the node and whose answers are lost.
        self.drop_answer: Rule = nothing
        #: Requests that are answered as a success and never reach the node, as if it had forgotten them.
        self.swallow: Rule = nothing
        #: Connections that are cut at once.
        self.refuse: Rule = nothing
        #: Requests that are answered with `answer` and never reach the node.
        self.answer_instead: Rule = nothing
        #: Status, headers and body: an overloaded gateway (429, 503), garbage with status 200.
        self.answer: tuple[int, dict[str, str], bytes] = (429, {"Retry-After": "1"}, b"slow down")
        #: Calls that are answered with an error and never reach the node, while others of their batch do.
        self.objection: Objection = no_objection
        #: How long each request is kept before it goes on, and each event; seconds.
        self.delay_s = 0.0
        #: What becomes of results, in batches too.
        self.rewrite: Rewrite = unchanged
        #: What becomes of events.
        self.events: EventRule = as_they_come
        #: A stream of events that the node gives no subscription to.
        self.no_subscription_to: str | None = None
        #: WebSockets stay open and bring nothing more.
        self.mute = False
        #: Whether there are WebSockets at all: a C# node has none.
        self.websockets = True
        self.held = 0
        self.dropped = 0
        self.swallowed = 0
        #: Requests that came, by method.
        self.asked: Counter[str] = Counter()
        #: Calls that came, by method, each of a batch.
        self.calls: Counter[str] = Counter()
        #: Transactions (Base64) that the node took and whose sender was not told.
        self.taken_unheard: set[str] = set()
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._open: set[web.WebSocketResponse] = set()

    async def start(self) -> None:
        # A fault must not be hidden by the proxy's own pool of connections.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        application = web.Application(client_max_size=10_000_000)
        application.router.add_post("/", self._forward)
        application.router.add_get("/ws", self._websocket)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        assert self._runner is not None
        assert self._session is not None
        self.cut_websockets()
        await self._runner.cleanup()
        await self._session.close()

    def hang(self) -> None:
        """Accept connections and answer nothing, on WebSockets either."""
        self.hold, self.mute = everything, True

    def heal(self) -> None:
        """End all faults."""
        self.hold = self.drop_answer = self.swallow = self.refuse = self.answer_instead = nothing
        self.delay_s, self.rewrite, self.mute, self.websockets = 0.0, unchanged, False, True
        self.objection, self.events, self.no_subscription_to = no_objection, as_they_come, None

    def cut_websockets(self) -> None:
        for websocket in self._open:
            if websocket._req is not None and websocket._req.transport is not None:
                websocket._req.transport.abort()

    async def _forward(self, request: web.Request) -> web.Response:
        assert self._session is not None
        body = await request.json()
        method = body[0]["method"] if isinstance(body, list) else body["method"]
        self.asked[method] += 1
        self.calls.update(one["method"] for one in (body if isinstance(body, list) else [body]))
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.refuse(method):
            _cut(request)
        if self.hold(method):
            self.held += 1
            await asyncio.sleep(3600)
        if self.answer_instead(method):
            status, headers, content = self.answer
            return web.Response(status=status, headers=headers, body=content)
        if self.swallow(method):
            self.swallowed += 1
            many = body if isinstance(body, list) else [body]
            answers = [{"jsonrpc": "2.0", "id": one["id"], "result": {}} for one in many]
            return web.json_response(answers if isinstance(body, list) else answers[0])
        if self.objection is not no_objection:
            return web.json_response(await self._objected(body))
        async with self._session.post(self.target, json=body) as answer:
            content = await answer.read()
        if self.drop_answer(method):
            self.dropped += 1
            self._note_unheard(body, json.loads(content))
            _cut(request)
        if self.rewrite is not unchanged:
            return web.json_response(self._rewritten(body, await answer.json(content_type=None)))
        return web.Response(body=content, content_type="application/json")

    async def _objected(self, body: Any) -> Any:
        assert self._session is not None
        many, answers = body if isinstance(body, list) else [body], []
        for one in many:
            if error := self.objection(one["method"], one["params"]):
                answers.append({"jsonrpc": "2.0", "id": one["id"], "error": error})
            else:
                async with self._session.post(self.target, json=one) as answer:
                    answers.append(await answer.json(content_type=None))
        return answers if isinstance(body, list) else answers[0]

    def _rewritten(self, body: Any, answer: Any) -> Any:
        methods = {part["id"]: part["method"] for part in (body if isinstance(body, list) else [body])}
        for reply in answer if isinstance(answer, list) else [answer]:
            if "result" in reply:
                reply["result"] = self.rewrite(methods[reply["id"]], reply["result"])
        return answer

    def _changed_events(self, text: str) -> list[str]:
        if self.rewrite is unchanged and self.events is as_they_come:
            return [text]
        event = json.loads(text)
        if "method" not in event:
            return [text]
        if event["method"] == "block_added":
            event["params"][0] = self.rewrite("block_added", event["params"][0])
        return [json.dumps(one) for one in self.events(event)]

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        if not self.websockets:
            raise web.HTTPNotFound
        if self.hold("websocket"):
            await asyncio.sleep(3600)
        near = web.WebSocketResponse(max_msg_size=0)
        await near.prepare(request)
        self._open.add(near)
        address = self.target.replace("http", "ws", 1) + "/ws"
        try:
            async with self._session.ws_connect(address, max_msg_size=0) as far:
                back = asyncio.create_task(self._pass_on(far, near))
                with contextlib.suppress(ConnectionError):
                    async for message in near:
                        if self.mute:
                            continue
                        request = json.loads(message.data)
                        if request["params"] == [self.no_subscription_to]:
                            error = {"code": -32602, "message": "unknown stream"}
                            await near.send_json({"jsonrpc": "2.0", "id": request["id"], "error": error})
                        else:
                            await far.send_str(message.data)
                back.cancel()
                await asyncio.gather(back, return_exceptions=True)
        finally:
            self._open.discard(near)
        return near

    async def _pass_on(self, far: aiohttp.ClientWebSocketResponse, near: web.WebSocketResponse) -> None:
        # A longer way and not a narrower one: what is on it does not hold up what follows.
        way: asyncio.Queue[tuple[float, str] | None] = asyncio.Queue()

        async def arrive() -> None:
            with contextlib.suppress(ConnectionError):
                while (coming := await way.get()) is not None:
                    due_s, text = coming
                    if (left_s := due_s - time.monotonic()) > 0:
                        await asyncio.sleep(left_s)
                    await near.send_str(text)
            await near.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(arrive())
            async for message in far:
                if not self.mute:
                    for text in self._changed_events(message.data):
                        way.put_nowait((time.monotonic() + self.delay_s, text))
            way.put_nowait(None)

    def _note_unheard(self, request: Any, answer: Any) -> None:
        many, answers = (request, answer) if isinstance(request, list) else ([request], [answer])
        taken = {one["id"] for one in answers if "result" in one}
        self.taken_unheard |= {
            one["params"][0] for one in many if one["method"] == "sendrawtransaction" and one["id"] in taken
        }


def _cut(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()
    raise web.HTTPServiceUnavailable
