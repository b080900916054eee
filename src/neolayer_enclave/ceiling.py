"""Memory ceilings kept by the kernel: a control group for each cell, where the machine lets us make some."""

import contextlib
import itertools
import logging
import os
from pathlib import Path
from typing import Final

PREFIX: Final = "neolayer-"

_log = logging.getLogger(__name__)


class NoCeilings(Exception):
    """Control groups cannot be made here."""


class Ceilings:
    """Our own group, in which each cell gets one below it."""

    def __init__(self) -> None:
        """
        Raises:
            NoCeilings: says why.
        """
        self._folder, self._v2 = own_group()
        self._numbers = itertools.count(1)
        _remove_leftovers(self._folder)
        try:
            if self._v2:
                _delegate(self._folder)
            self.make().remove()
        except OSError as error:
            raise NoCeilings(f"{error.filename or self._folder}: {error.strerror}") from None

    def make(self) -> "Ceiling":
        """
        Raises:
            OSError: it cannot be made.
        """
        folder = self._folder / f"{PREFIX}{os.getpid()}-{next(self._numbers)}"
        folder.mkdir()
        return Ceiling(folder, v2=self._v2)


class Ceiling:
    """The control group of one cell."""

    def __init__(self, folder: Path, *, v2: bool) -> None:
        self._folder = folder
        self._limit = folder / ("memory.max" if v2 else "memory.limit_in_bytes")
        self._events = folder / ("memory.events" if v2 else "memory.oom_control")
        self._usage = folder / ("memory.current" if v2 else "memory.usage_in_bytes")
        self._bytes = 0
        #: Whether the kernel ended the cell at its ceiling; known when it is removed.
        self.hit = False
        if not self._limit.exists():
            folder.rmdir()
            raise OSError(0, "no memory controller", str(folder))

    @property
    def groups(self) -> list[str]:
        return [str(self._folder / "cgroup.procs")]

    def set(self, bytes: int) -> None:
        """Set the ceiling. It is lowered only when less is held: what was right a moment ago is no crime."""
        if bytes == self._bytes:
            return
        with contextlib.suppress(OSError):
            if bytes < self._bytes and int(self._usage.read_text()) >= bytes:
                return
            self._limit.write_text(str(bytes))
            self._bytes = bytes

    def remove(self) -> None:
        """To be called when no process is left in it."""
        try:
            events = dict(line.split() for line in self._events.read_text().splitlines())
            self.hit = int(events.get("oom_kill", 0)) > 0
            self._folder.rmdir()
        except OSError as error:
            _log.warning("control group %s stays behind: %s", self._folder, error.strerror)


def own_group() -> tuple[Path, bool]:
    """Folder of the control group of this process that has the memory controller, and whether it is version 2."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        v2 = controllers == ""
        if not v2 and "memory" not in controllers.split(","):
            continue
        for fields in mounts:
            at = fields.index("-")
            kind, options = fields[at + 1], fields[at + 3].split(",")
            root, place = fields[3], Path(fields[4])
            if kind != ("cgroup2" if v2 else "cgroup") or not (v2 or "memory" in options):
                continue
            folder = place / os.path.relpath(path, root)
            if v2 and not (folder / "cgroup.controllers").exists():
                continue
            if v2 and "memory" not in (folder / "cgroup.controllers").read_text().split():
                continue
            return folder, v2
    raise NoCeilings("no control group with the memory controller is mounted")


def _delegate(folder: Path) -> None:
    """Version 2 knows no processes beside groups with controllers: ours move into a group of their own."""
    if "memory" in (folder / "cgroup.subtree_control").read_text().split():
        return
    own = folder / f"{PREFIX}enclave"
    own.mkdir(exist_ok=True)
    (own / "cgroup.procs").write_text(str(os.getpid()))
    (folder / "cgroup.subtree_control").write_text("+memory")


def _remove_leftovers(folder: Path) -> None:
    """Groups of enclaves that were killed. A living one's may be empty just because its cell is on the way."""
    for each in folder.glob(f"{PREFIX}*"):
        maker = each.name.split("-")[1]
        if maker.isdigit() and int(maker) != os.getpid() and Path(f"/proc/{maker}").exists():
            continue
        with contextlib.suppress(OSError):
            each.rmdir()
