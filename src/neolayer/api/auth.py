"""Who is asking: the bearer key of every request under ``/api/``."""

from typing import Protocol

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from neolayer.core.errors import Unauthenticated
from neolayer.core.types import Principal


class Authenticator(Protocol):
    """What the API asks of the accounts."""

    def known(self, key: bytes) -> Principal | None:
        """The principal of a key that was authenticated a moment ago; null: `authenticate` must tell."""
        ...

    async def authenticate(self, key: bytes, client: str) -> Principal:
        """The principal that an API key belongs to. ``client`` is the peer's address.

        Raises:
            Unauthenticated: unknown or revoked key.
            TooManyRequests: too many failures from this client.
        """
        ...


def bearer_key(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The key out of ``Authorization: Bearer …`` (RFC 6750).

    Raises:
        Unauthenticated: no such header, or another scheme.
    """
    return bearer_token(next((value for name, value in headers if name == b"authorization"), b""))


def bearer_token(authorization: bytes) -> bytes:
    """The key out of the header's value.

    Raises:
        Unauthenticated: another scheme, or nothing.
    """
    if authorization[:7].lower() != b"bearer ":
        raise Unauthenticated
    return authorization[7:].strip()


def client_address(scope: Scope) -> str:
    peer = scope.get("client")
    return peer[0] if peer else "local"


class AuthMiddleware(ASGIMiddleware):
    """Sets ``scope["user"]``; health, metrics and schema stay open."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        if scope["path"].startswith("/api/"):
            key = bearer_key(list(scope["headers"]))
            scope["user"] = await self._authenticator.authenticate(key, client_address(scope))
        await next_app(scope, receive, send)
