"""Processes that a killed supervisor left behind."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

from neolayer.supervisor.places import HOME_MARK
from neolayer.supervisor.process import kill_all


def find(home: Path) -> list[psutil.Process]:
    """All processes that carry the mark of this home, and their descendants; never ourselves or our ancestors.

    PostgreSQL's backends and cells without an environment are found as children of a process that has it.
    """
    ours = psutil.Process()
    spared = {ours.pid, *(parent.pid for parent in ours.parents())}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        # Other users' processes do not show their environment, and are none of ours.
        with contextlib.suppress(psutil.Error):
            if process.pid not in spared and process.environ().get(HOME_MARK) == os.fspath(home):
                for member in (process, *process.children(recursive=True)):
                    found.setdefault(member.pid, member)
    return list(found.values())


async def end(home: Path, *, within: float = 3.0) -> list[str]:
    """End the leftovers of this home; returns ``name (pid)`` of those that were started by the supervisor.

    The caller holds the lock of the home, so nobody else supervises them.
    """
    left = find(home)
    pids = {process.pid for process in left}
    names = []
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            # Only the first of each family is asked: it ends its own, and PostgreSQL's take signals otherwise.
            if process.ppid() not in pids:
                names.append(f"{process.name()} ({process.pid})")
                # To PostgreSQL, SIGTERM means to wait for its clients, SIGINT to stop now, cleanly.
                process.send_signal(signal.SIGINT if process.name() == "postgres" else signal.SIGTERM)
    await _ended(left, within)
    # Looked for once more: some may have started another before they ended.
    late = find(home)
    kill_all([*left, *late])
    await _ended([*left, *late], within)
    return names


async def _ended(processes: list[psutil.Process], within: float) -> None:
    """Returns when all have ended, or the time is over; they are nobody's children here, so they are asked."""
    deadline = time.monotonic() + within
    for process in processes:
        while lives(process) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def lives(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
