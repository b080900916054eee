"""One supervised child process."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from neolayer.supervisor.errors import PartFailed

#: A log that is larger at a start is moved aside, to ``<name>.log.1``; bytes.
LOG_ROTATE_SIZE: Final = 8 * 1024 * 1024
#: How much of a log is looked at for the last lines; bytes.
_TAIL: Final = 64 * 1024


@dataclass(frozen=True)
class Command:
    """What to run, and how it wants to be stopped."""

    argv: tuple[str, ...]
    #: The whole environment.
    env: Mapping[str, str]
    #: Takes stdout and stderr; the process never waits for us to read and outlives us unharmed.
    log: Path
    stop_signal: signal.Signals = signal.SIGTERM
    #: After this time of waiting for a clean end it is killed.
    stop_seconds: float = 2.0


class Child:
    """A running process in a session of its own: Ctrl-C in the terminal reaches the supervisor only."""

    def __init__(self, command: Command, process: asyncio.subprocess.Process, log_start: int) -> None:
        self._command = command
        self._process = process
        self._log_start = log_start

    def __repr__(self) -> str:
        return f"<Child {self._command.argv[0]} pid={self.pid} returncode={self.returncode}>"

    @classmethod
    async def start(cls, command: Command) -> "Child":
        """Start it.

        Raises:
            PartFailed: the program cannot be executed.
        """
        with contextlib.suppress(FileNotFoundError):
            if command.log.stat().st_size > LOG_ROTATE_SIZE:
                command.log.replace(command.log.with_name(command.log.name + ".1"))
        with command.log.open("ab") as log:
            log_start = log.tell()
            try:
                process = await asyncio.create_subprocess_exec(
                    *command.argv,
                    env=dict(command.env),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                raise PartFailed(f"cannot run {command.argv[0]}: {error.strerror}; try `make up`") from None
            return cls(command, process, log_start)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Negative: ended by this signal."""
        return self._process.returncode

    @property
    def log(self) -> Path:
        return self._command.log

    def output(self) -> list[str]:
        """The last lines it wrote since its start."""
        with self._command.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - _TAIL))
            return log.read().decode(errors="replace").splitlines()

    def last_words(self, lines: int = 8) -> str:
        """Its last lines, for an error message."""
        return "\n".join([line for line in self.output() if line.strip()][-lines:])

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        return await self._process.wait()

    async def stop(self) -> None:
        """Ask it to end, wait, and kill what is left of it and its descendants."""
        family = self._family()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(self._command.stop_signal)
        try:
            await asyncio.wait_for(self._process.wait(), self._command.stop_seconds)
        except TimeoutError:
            pass
        finally:
            kill_all(family)
        await self._process.wait()

    def kill(self) -> None:
        """End it and its descendants at once."""
        kill_all(self._family())

    def _family(self) -> list[psutil.Process]:
        if self.returncode is not None:
            return []
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def kill_all(processes: list[psutil.Process]) -> None:
    """SIGKILL to those that still live. psutil checks that a pid was not given to another process meanwhile."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            process.kill()


async def run_to_end(command: Command, within: float) -> None:
    """Run a program that ends by itself.

    Raises:
        PartFailed: it failed or took longer than ``within`` seconds.
    """
    child = await Child.start(command)
    try:
        code = await asyncio.wait_for(child.wait(), within)
    except TimeoutError:
        raise PartFailed(f"{command.argv[0]} did not end within {within:.0f} s; see {child.log}") from None
    finally:
        child.kill()
    if code != 0:
        raise PartFailed(f"{command.argv[0]} failed ({code}): {child.last_words()}; see {child.log}")
