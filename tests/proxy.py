"""A proxy before a Neo node that stages faults. It speaks JSON-RPC over HTTP, no WebSocket."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web

#: Decides by the method's name what happens to a request.
type Rule = Callable[[str], bool]


def nothing(_: str) -> bool:
    return False


def everything(_: str) -> bool:
    return True


def sending(method: str) -> bool:
    return method == "sendrawtransaction"


class NodeProxy:
    def __init__(self, target: str) -> None:
        self.target = target
        self.url = ""
        #: Requests that are kept here and never reach the node.
        self.hold: Rule = nothing
        #: Requests that reach the node and whose answers are lost.
        self.drop_answer: Rule = nothing
        #: Requests that are answered as a success and never reach the node, as if it had forgotten them.
        self.swallow: Rule = nothing
        #: Connections that are cut at once.
        self.refuse: Rule = nothing
        self.held = 0
        self.dropped = 0
        self.swallowed = 0
        #: Transactions (Base64) that the node took and whose sender was not told.
        self.taken_unheard: set[str] = set()
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        self._session = aiohttp.ClientSession()
        application = web.Application(client_max_size=10_000_000)
        application.router.add_post("/", self._forward)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        assert self._runner is not None
        assert self._session is not None
        await self._runner.cleanup()
        await self._session.close()

    async def _forward(self, request: web.Request) -> web.Response:
        assert self._session is not None
        body = await request.json()
        method = body[0]["method"] if isinstance(body, list) else body["method"]
        if self.refuse(method):
            _cut(request)
        if self.hold(method):
            self.held += 1
            await asyncio.sleep(3600)
        if self.swallow(method):
            self.swallowed += 1
            many = body if isinstance(body, list) else [body]
            answers = [{"jsonrpc": "2.0", "id": one["id"], "result": {}} for one in many]
            return web.json_response(answers if isinstance(body, list) else answers[0])
        async with self._session.post(self.target, json=body) as answer:
            content = await answer.read()
        if self.drop_answer(method):
            self.dropped += 1
            self._note_unheard(body, json.loads(content))
            _cut(request)
        return web.Response(body=content, content_type="application/json")

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
