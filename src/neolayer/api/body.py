"""Reading what is left of a request's body.

A client that is still sending when the connection closes sees a broken pipe instead of the answer.
So after an early answer (413, 401, …) the rest is read and thrown away, up to a bound.
"""

from typing import Final

from litestar.types import ASGIApp, Message, Receive, Scope, Send

#: Whoever sends more gets the connection closed; bytes.
DRAIN_BYTES: Final = 32 * 1024 * 1024


async def drain(receive: Receive) -> None:
    """Read to the end of the body, to the client's leaving, or `DRAIN_BYTES`."""
    drained = 0
    while drained < DRAIN_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            return
        drained += len(message.get("body", b""))
        if not message.get("more_body"):
            return


class DrainedBody:
    """Drains what the application left unread."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]):
            await self._app(scope, receive, send)
            return
        complete = False

        async def watch() -> Message:
            nonlocal complete
            message = await receive()
            complete = complete or not message.get("more_body")
            return message  # type: ignore[return-value]

        await self._app(scope, watch, send)  # type: ignore[arg-type]
        if not complete:
            await drain(receive)
