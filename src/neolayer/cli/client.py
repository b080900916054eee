"""The command line's connection to the API: where it is, with which key, and what it answers."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import aiohttp
from cyclopts import Parameter

from neolayer.core.errors import ServiceError, Unavailable
from neolayer.core.text import connection_reason

#: Written by `neolayer up` into its home: {"url", "api_key", "devnet_rpc_port"}; mode 0600.
CREDENTIALS: Final = "client.json"
#: A stream says something more often than that, or its connection is dead; seconds.
SILENCE_S: Final = 30.0
RECONNECT_S: Final = 1.0


class NoCredentials(ServiceError):
    """There is no API key."""

    code = "no_credentials"


class ApiProblem(ServiceError):
    """The API refused. ``body`` is the problem as it came."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(body.get("detail") or f"HTTP {status}")
        self.body = body
        self.code = body.get("code", "http_error")
        self.status = status


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Connection:
    """Options of every command that talks to the API."""

    #: Address of the API.
    url: Annotated[str | None, Parameter(env_var="NEOLAYER_URL", help="Address of the API.")] = None
    api_key: Annotated[
        str | None, Parameter(env_var="NEOLAYER_API_KEY", help="API key; without it the one of `neolayer up`.")
    ] = None
    json: Annotated[bool, Parameter(negative="", help="Print the API's JSON and nothing else.")] = False


#: Everything from the environment and from what `neolayer up` left.
DEFAULT: Final = Connection()


def home() -> Path:
    return Path(os.environ.get("NEOLAYER_HOME", ".neolayer")).expanduser().absolute()


def credentials() -> dict[str, Any]:
    """What `neolayer up` left for the client; empty when it never ran here."""
    try:
        found: dict[str, Any] = json.loads((home() / CREDENTIALS).read_text())
    except (OSError, ValueError):
        return {}
    return found


class Client:
    """Use as an async context manager."""

    def __init__(self, connection: Connection) -> None:
        saved = credentials()
        self.url = (connection.url or saved.get("url") or "http://127.0.0.1:8420").rstrip("/")
        if "://" not in self.url:
            self.url = f"http://{self.url}"
        key = connection.api_key or saved.get("api_key")
        if not key:
            raise NoCredentials(
                f"no API key: {home() / CREDENTIALS} does not exist. Run this where `neolayer up` was started, "
                "or set NEOLAYER_HOME, or NEOLAYER_URL and NEOLAYER_API_KEY"
            )
        self._headers = {"authorization": f"Bearer {key}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Client":
        timeout = aiohttp.ClientTimeout(total=60)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str | int | None] | None = None,
        body: Any = None,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[Any, dict[str, str]]:
        """The decoded answer and its headers.

        Args:
            path: below ``/api/v1``.
            body: sent as JSON; or ``raw`` bytes that are JSON already.

        Raises:
            ApiProblem: the API refused.
            Unavailable: it is not there.
        """
        assert self._session is not None
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        given = {name: value for name, value in (params or {}).items() if value is not None}
        all_headers = {"content-type": "application/json"} | (headers or {})
        try:
            async with self._session.request(
                method, f"{self.url}/api/v1{path}", params=given, data=data, headers=all_headers
            ) as response:
                content = await response.read()
                status, answer_headers = response.status, dict(response.headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from None
        try:
            answer = json.loads(content) if content else None
        except ValueError:
            detail = f"{self.url} answered HTTP {status} without JSON: is it the address of the API?"
            raise ApiProblem(status, {"detail": detail}) from None
        if status >= 400:
            raise ApiProblem(status, answer if isinstance(answer, dict) else {})
        return answer, answer_headers

    async def events(self, path: str, params: dict[str, str | int | None]) -> AsyncIterator[Any]:
        """The decoded data of server-sent events, without an end: after a break it goes on where it was.

        Raises:
            ApiProblem: the API refused.
            Unavailable: it was not there at the first try.
        """
        assert self._session is not None
        given = {name: value for name, value in params.items() if value is not None}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_S)
        last_id, connected = "", False
        while True:
            headers = {"last-event-id": last_id} if last_id else {}
            try:
                async with self._session.get(
                    f"{self.url}/api/v1{path}", params=given, headers=headers, timeout=timeout, read_bufsize=2**22
                ) as response:
                    if 400 <= response.status < 500:
                        raise ApiProblem(response.status, json.loads(await response.read()))
                    response.raise_for_status()
                    connected = True
                    async for raw in response.content:
                        field, _, value = raw.decode().rstrip("\n").partition(": ")
                        if field == "id":
                            last_id = value
                        elif field == "data":
                            yield json.loads(value)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                if not connected:
                    raise self._unreachable(error) from None
            await asyncio.sleep(RECONNECT_S)

    def _unreachable(self, error: Exception) -> Unavailable:
        reason = connection_reason(error) if isinstance(error, aiohttp.ClientConnectorError) else str(error)
        return Unavailable(f"no answer from {self.url} ({reason or 'timeout'}): is `neolayer up` running?")

    async def get(self, path: str, **params: str | int | None) -> Any:
        return (await self.request("GET", path, params=params))[0]


def items(page: Any) -> list[dict[str, Any]]:
    """What a list holds.

    Raises:
        Unavailable: it is no list of our API.
    """
    if not isinstance(page, dict) or not isinstance(page.get("items"), list):
        raise Unavailable("whoever answers at that address is not this API: check --url or NEOLAYER_URL")
    found: list[dict[str, Any]] = page["items"]
    return found


def call(connection: Connection, method: str, path: str, **options: Any) -> Any:
    """One request from a synchronous command."""

    async def run() -> Any:
        async with Client(connection) as client:
            return (await client.request(method, path, **options))[0]

    return asyncio.run(run())
