"""Where the state of one system lives, and the lock that gives it to one supervisor."""

import fcntl
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from neolayer.supervisor.errors import AlreadyRunning, HomeUnusable

#: Every child carries the absolute path of its home under this name: so leftovers are told from foreign processes.
HOME_MARK: Final = "NEOLAYER_SUPERVISED_HOME"

#: A unix socket's path has room for 103 bytes on macOS, 107 on Linux.
_SOCKET_PATH_MAX: Final = 100
_LONGEST_SOCKET_NAME: Final = ".s.PGSQL.5432.lock"
#: PostgreSQL and libpq split lists of folders at commas, and trim blanks.
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9_./+@~-][A-Za-z0-9_./+@~ -]*")


@dataclass(frozen=True)
class Places:
    """The folders of one home."""

    home: Path
    #: Unix sockets. ``run`` in the home, or a private folder elsewhere when the home's path is too long for one.
    sockets: Path

    @classmethod
    def open(cls, home: Path) -> Self:
        """Make what is missing, readable by the owner only.

        Raises:
            HomeUnusable: it cannot be made or written.
        """
        home = Path(os.path.realpath(home))
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (home / "run", home / "logs"):
                folder.mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=home / "run"):
                pass
        except OSError as error:
            raise HomeUnusable(
                f"cannot write to the home {home}: {error.strerror}; "
                "set NEOLAYER_HOME to a folder that belongs to you"
            ) from None
        return cls(home=home, sockets=_socket_folder(home))

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def enclave_socket(self) -> Path:
        return self.sockets / "enclave.sock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the home for this process; the kernel lets go of it however the process ends.

        Raises:
            AlreadyRunning: names the process that holds it.
        """
        descriptor = os.open(self.home / "run" / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.read(descriptor, 20).decode().strip() or "unknown"
                raise AlreadyRunning(
                    f"`neolayer up` already runs on {self.home} (process {pid}); "
                    "stop it first; a second system needs its own NEOLAYER_HOME, NEOLAYER_PORT "
                    "and NEOLAYER_DEVNET_RPC_PORT"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def tidy(self) -> None:
        """Remove the socket folder if it lies outside the home; for after everything has stopped."""
        if self.sockets.parent != self.home:
            for left in self.sockets.glob("*"):
                left.unlink(missing_ok=True)
            self.sockets.rmdir()


def _socket_folder(home: Path) -> Path:
    inside = home / "run"
    if _PLAIN_PATH.fullmatch(str(inside)) and _fits(inside):
        return inside
    name = f"neolayer-{os.getuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - checked below
        if not base or not os.access(base, os.W_OK | os.X_OK) or not _fits(Path(base) / name):
            continue
        folder = Path(base) / name
        folder.mkdir(mode=0o700, exist_ok=True)
        # Others may write to /tmp, too: a link or a folder of somebody else is not used.
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder
    raise HomeUnusable(
        f"the path {home} is too long for unix sockets and there is no private folder for them elsewhere; "
        "set NEOLAYER_HOME to a shorter path"
    )


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / _LONGEST_SOCKET_NAME)) <= _SOCKET_PATH_MAX
