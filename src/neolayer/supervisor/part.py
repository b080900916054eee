"""What the supervisor knows of a part, and ways to see that one is ready."""

import asyncio
import contextlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from neolayer.supervisor.errors import MissingPackage
from neolayer.supervisor.process import Child, Command


class NotReady(Exception):
    """Not yet: asked again soon. The text says what is missing."""


@dataclass(frozen=True)
class Part:
    """A child process, an external service that is only looked at, or a step that runs once."""

    name: str
    #: Asked until it no longer raises `NotReady`; returns what to show: an address, a version, a result.
    ready: Callable[[Child | None], Awaitable[str]]
    #: Prepares the ground and says what to run; called before every start. None: nothing is run.
    launch: Callable[[], Awaitable[Command]] | None = None
    #: Names of the parts that must be ready before this one starts, and are stopped after it.
    after: frozenset[str] = frozenset()
    #: How long it may take to become ready.
    start_seconds: float = 30.0
    #: Runs elsewhere, by the setting of this name.
    external: str | None = None


def package_folder(package: str, what: str, instead: str) -> Path:
    """Where an installed package lies, without importing it.

    Raises:
        MissingPackage: ``what`` needs it; ``instead`` is the setting that does without.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(
            f"{what} is not installed: run `make up`, or "
            f"`pip install 'neo-service-layer[embedded]'`, or set {instead}"
        )
    return Path(spec.submodule_search_locations[0])


def without_secrets(url: str) -> str:
    """An address as it may be shown: without user and password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def node_address(url: str) -> str:
    """A Neo node's address as it may be shown: gateways take keys in path and query, too."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def plain_environment(mark: Mapping[str, str]) -> dict[str, str]:
    """Ours without settings: embedded programs take none from the environment, and some would (``PGPORT``)."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "NEOLAYER_"))} | dict(
        mark
    )


async def answers_http(url: str, body: Any = None, timeout_s: float = 2.0) -> Any:
    """The decoded JSON answer to a GET, or to a POST of ``body``.

    Raises:
        NotReady: no answer, or not 200.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310 - from settings
    local = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))

    def ask() -> Any:
        try:
            with opener.open(request, timeout=timeout_s) as response:
                content = response.read()
        except urllib.error.URLError as error:
            raise NotReady(str(error.reason)) from None
        except OSError as error:
            raise NotReady(error.strerror or str(error)) from None
        try:
            return json.loads(content)
        except ValueError:
            return content.decode(errors="replace")

    return await asyncio.to_thread(ask)


def said(child: Child | None) -> dict[str, Any]:
    """The JSON object that it wrote as a line of its own when it was ready.

    Raises:
        NotReady: it has not written it yet.
    """
    for line in child.output() if child else []:
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                found: dict[str, Any] = json.loads(line)
                return found
    raise NotReady("it has not reported yet")


async def listens(socket: Path) -> None:
    """Raises:
    NotReady: nobody accepts connections at this unix socket.
    """
    try:
        _, writer = await asyncio.open_unix_connection(os.fspath(socket))
    except OSError as error:
        raise NotReady(f"{socket}: {error.strerror}") from None
    writer.close()
