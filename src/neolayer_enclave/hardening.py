"""The walls around the cells: which there are, what each prevents, and which can be had on this machine."""

import asyncio
import logging
import os
import subprocess
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from neolayer_enclave.ceiling import Ceilings, NoCeilings
from neolayer_enclave.launcher.main import CHANNEL_FD
from neolayer_enclave.launcher.plan import Plan
from neolayer_enclave.loading import CELL, NODE_FLAGS, RUNNER
from neolayer_enclave.process import CellProcess
from neolayer_enclave.protocol import Layer

#: Local time is the machine's business, and hidden with its files. One arena of malloc: a cell has few threads,
#: and each that had its own would keep what it frees. The channel is where Node expects the one to its parent.
ENVIRONMENT: Final = {
    "NODE_ENV": "production",
    "TZ": "UTC",
    "MALLOC_ARENA_MAX": "1",
    "NODE_CHANNEL_FD": str(CHANNEL_FD),
}
#: What each layer prevents, in the order in which they are built and documented.
PREVENTS: Final = {
    "memory": "a cell that grows past its ceiling taking the machine with it before it is noticed",
    "network": "any connection, also to this machine: the cell has a network of its own without devices",
    "filesystem": "seeing files: the root holds Node, its libraries and the runner, read-only; no /proc",
    "processes": "seeing, signalling or tracing other processes, shared memory and message queues",
    "user": "acting as root: the cell runs as nobody (65534)",
    "capabilities": "every privileged operation, and getting one back",
    "no_new_privs": "gaining rights by executing a file",
    "rlimits": "core files, files of more than 64 KB, more than 64 descriptors",
    "landlock": "opening any other path, writing, TCP, signals out; kept by a second part of the kernel",
    "seccomp": "sockets, ptrace, new processes, executing, mounts, namespaces, bpf, io_uring, keys",
    "permission": "Node's own file writes, child processes and worker threads, before they reach the kernel",
}
#: A blank cell must be up within this time to count as working; seconds.
TRIAL_S: Final = 15.0

_log = logging.getLogger(__name__)


@dataclass
class Hardening:
    """The layers that cells get. Made by `settle`."""

    node: Path
    #: Of `PREVENTS`; those on.
    on: list[str]
    ceilings: Ceilings | None
    #: Why a layer is not on.
    off: dict[str, tuple[str, str]] = field(default_factory=dict)
    _libraries: list[str] = field(default_factory=list)

    def start(self, ended: Callable[[CellProcess], None], *, behind: bool = False) -> CellProcess:
        """Start a blank cell; ``behind`` others in the use of the processors.

        Raises:
            OSError: it cannot be started.
        """
        return CellProcess(self._plan(), self.ceilings, ended, behind=behind)

    def table(self) -> list[Layer]:
        return [
            Layer(name, prevents, *(("on", "") if name in self.on else self.off[name]))
            for name, prevents in PREVENTS.items()
        ]

    @property
    def missing(self) -> list[str]:
        """Layers that would protect and are not there."""
        return [name for name, (state, _) in self.off.items() if state != "unneeded"]

    def _plan(self) -> Plan:
        own_root = "filesystem" in self.on
        node, runner = ("/node", "/runner") if own_root else (str(self.node), str(RUNNER))
        argv = [node, *NODE_FLAGS]
        if "permission" in self.on:
            argv += ["--permission", "--allow-addons", "--no-warnings", f"--allow-fs-read={runner}/*"]
            # Looked for by the loader of native modules.
            argv += ["--allow-fs-read=/etc/alpine-release"]
        argv += [f"{runner}/{CELL.relative_to(RUNNER)}", "3", "4"]
        executable = [node, *self._libraries]
        return Plan(
            argv=argv,
            environment=ENVIRONMENT,
            layers=list(self.on),
            groups=[],
            binds=[(str(self.node), node), (str(RUNNER), runner), *((path, path) for path in self._libraries)],
            # Native modules are mapped for execution, which Landlock does not count as such.
            read=[runner],
            execute=executable,
        )


async def settle(node: Path, without: Collection[str] = ()) -> tuple[Hardening, CellProcess | None]:
    """Find out which layers can be had, by starting a cell with them. Returns that cell too, blank as it is.

    ``without`` names layers that are not wanted. A machine on which no cell starts gets a table full of reasons
    and no cell.
    """
    off: dict[str, tuple[str, str]] = dict.fromkeys(without, ("off", "switched off"))
    ceilings = None
    if "memory" not in off:
        try:
            ceilings = Ceilings()
        except (NoCeilings, OSError) as error:
            off["memory"] = ("unavailable", f"{error}; the cells' memory is watched from outside, every 20 ms")
    if os.geteuid() != 0 and "user" not in off:
        off["user"] = ("unneeded", "the enclave itself does not run as root")
    hardening = Hardening(node, [name for name in PREVENTS if name not in off], ceilings, off, _libraries(node))
    suspects: list[str] = []
    while True:
        process, culprit, reason = await _trial(hardening)
        if process:
            break
        if culprit not in hardening.on:
            if not hardening.on:
                _log.error("no cell can be started: %s", reason)
                return hardening, None
            # Node did not say which: the last ones first, then those that were not to blame come back.
            culprit = hardening.on[-1]
            suspects.append(culprit)
        hardening.off[culprit] = ("unavailable", reason)
        hardening.on.remove(culprit)
        if culprit == "memory":
            hardening.ceilings = None
    for suspect in suspects[:-1]:
        hardening.on = [name for name in PREVENTS if name in (*hardening.on, suspect)]
        retried, _, reason = await _trial(hardening)
        if retried:
            await process.discard()
            process = retried
            del hardening.off[suspect]
        else:
            hardening.on.remove(suspect)
    for name, (state, reason) in hardening.off.items():
        _log.log(logging.INFO if state == "unneeded" else logging.WARNING, "layer %s: %s, %s", name, state, reason)
    return hardening, process


async def _trial(hardening: Hardening) -> tuple[CellProcess | None, str, str]:
    """A cell that came up; or the layer that failed, empty if unknown, and the reason."""
    ended = asyncio.Event()
    try:
        process = hardening.start(lambda _: ended.set())
    except OSError as error:
        return None, "", f"{error.filename or hardening.node}: {error.strerror}"
    deadline = time.monotonic() + TRIAL_S
    while not process.up and not ended.is_set() and time.monotonic() < deadline:  # noqa: ASYNC110 - shared memory
        await asyncio.sleep(0.005)
    if process.up and not ended.is_set():
        return process, "", ""
    code = await process.discard()
    if process.failure:
        return None, *process.failure
    words = process.last_words()[-300:]
    return None, "", f"with it a cell ends with {code}{': ' if words else ''}{words}"


def _libraries(node: Path) -> list[str]:
    """The shared libraries of the binary, as the loader finds them, and the loader itself."""
    # What ldd does.
    listed = subprocess.run(
        [node], env={"LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, timeout=10, check=False
    )
    found = []
    for line in listed.stdout.splitlines():
        path = next((word for word in line.split() if word.startswith("/")), None)
        if path and os.path.exists(path):
            found.append(path)
    if not found:
        # A loader that does not tell: the folders where they are.
        found = [path for path in ("/lib", "/lib64", "/usr/lib") if os.path.isdir(path)]
    cache = "/etc/ld.so.cache"
    return [*found, cache] if os.path.exists(cache) else found
