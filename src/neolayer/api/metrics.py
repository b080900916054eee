"""Prometheus metrics of the HTTP side, and the page that shows all of the process's metrics."""

import time
from collections.abc import Awaitable, Callable
from typing import Final

from litestar import Response, get
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from neolayer.observability.tally import TalliedHistogram

REQUESTS: Final = TalliedHistogram(
    "neolayer_http_request_duration_seconds",
    "Time from the request's arrival to the end of its response.",
    ["method", "route", "status"],
    (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)

#: Brings gauges up to date just before they are shown.
type Refresh = Callable[[], Awaitable[None]]


class RequestMetrics:
    """Times every request by its route template, so that ids do not become labels; also those without a route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = scope.get("path_template") or "unmatched"
            REQUESTS.of(str(scope.get("method")), route, str(status)).observe(time.perf_counter() - start)


@get("/metrics", include_in_schema=False)
async def metrics(refresh: Refresh) -> Response[bytes]:
    await refresh()
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST.removesuffix("; charset=utf-8"))
