"""The process of a cell: one Node, blank until a tenant's cell takes it, never taken twice."""

import asyncio
import contextlib
import fcntl
import functools
import json
import logging
import math
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from neolayer_enclave.ceiling import Ceiling, Ceilings
from neolayer_enclave.launcher.main import BLACK_BOX_FD, CHANNEL_FD, REPORT_FD, SOCKET_FD
from neolayer_enclave.launcher.plan import Plan

#: Since (CLOCK_MONOTONIC, ms; 0 until the process is up), bundle and call on the main thread, bundles on others.
BLACK_BOX: Final = struct.Struct("<dII12I")
BLACK_BOX_BYTES: Final = 64
MAX_STDERR_BYTES: Final = 2_048
#: V8 aborts when memory is out and traps when a size is beyond it.
V8_GAVE_UP: Final = frozenset({signal.SIGABRT, signal.SIGTRAP, signal.SIGILL})
#: The first process of a namespace cannot be ended by its own SIGABRT: abort() then ends in a fault.
V8_LAST_WORDS: Final = ("FATAL ERROR", "Fatal error", "Fatal process", "is_heap_oom = 1", "Last few GCs")
PAGE_BYTES: Final = resource.getpagesize()
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
LAUNCH: Final = (
    "import sys; sys.path.insert(0, sys.argv.pop()); from neolayer_enclave.launcher.main import main; main()"
)
#: Niceness of what starts behind others.
BEHIND: Final = 15
CAP_SYS_NICE: Final = 23
#: Read of a cell's channel at a time, many confirmations of connections.
CHANNEL_BYTES: Final = 65_536
#: Above those that the launcher inherits.
FIRST_FREE_FD: Final = 10

_log = logging.getLogger(__name__)


class BlackBox(NamedTuple):
    """What a cell was doing when it was last able to say so."""

    #: CLOCK_MONOTONIC, s; 0 until the process is up.
    since: float
    #: Numbers; 0 is none.
    bundle: int
    call: int
    #: Bundles being run on other threads.
    others: frozenset[int]


class CellProcess:
    """A Node process from its start to its end. Both ends of its socket, and what it leaves behind."""

    def __init__(
        self,
        plan: Plan,
        ceilings: Ceilings | None,
        ended: Callable[["CellProcess"], None],
        *,
        behind: bool = False,
    ) -> None:
        """``behind``: it gets the processors that nobody else wants, until `promote`.

        Raises:
            OSError: it cannot be started.
        """
        self.started = time.monotonic()
        #: Exit code, negative for a signal.
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.ended.add_done_callback(lambda _: ended(self))
        self._pid: int | None = None
        self._killed = False
        self.behind = self._began_behind = behind and may_promote()
        self._stderr = b""
        self._report = b""
        #: Processes of ours that run, by the descriptor that tells of their end.
        self._watched: dict[int, int] = {}
        self._ceiling: Ceiling | None = ceilings.make() if ceilings else None
        if self._ceiling:
            plan = plan._replace(groups=[*plan.groups, *self._ceiling.groups])
        with contextlib.ExitStack() as failing:
            if self._ceiling:
                failing.callback(self._ceiling.remove)
            self.socket = self._spawn(plan)
            failing.pop_all()

    @property
    def up(self) -> bool:
        return self.black_box().since > 0

    @property
    def failure(self) -> tuple[str, str] | None:
        """The layer that the launcher could not build, and why."""
        for line in self._report.decode(errors="replace").splitlines():
            word, _, rest = line.partition(" ")
            if word == "error":
                layer, _, reason = rest.partition(" ")
                return layer, reason
        return None

    def black_box(self) -> BlackBox:
        since_ms, bundle, call, *others = BLACK_BOX.unpack_from(self._box)
        return BlackBox(since_ms / 1000, bundle, call, frozenset(number for number in others if number))

    def kill(self) -> None:
        """End it; `ended` tells when it is gone."""
        self._killed = True
        # Until the launcher reports only itself is known here, and it may be about to leave a child: that one is
        # killed when the report comes.
        for descriptor in self._watched:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)

    async def discard(self) -> int:
        """End one that nobody took; returns its exit code."""
        self.kill()
        self.socket.close()
        return await self.ended

    def hand_over(self, descriptor: int, first: int) -> None:
        """Give it a connection; ``first`` is the least id of the calls that come on it. The caller's descriptor
        stays open.

        As Node's ``lib/internal/child_process.js`` has it: a line of JSON that carries a descriptor. Receiving one
        needs no system call that the cells' filter would have to allow.

        Raises:
            OSError: it does not take any.
        """
        with contextlib.suppress(BlockingIOError):
            self._channel.recv(CHANNEL_BYTES)  # its confirmations; not all that one might ever say
        line = json.dumps({"cmd": "NODE_HANDLE", "type": "net.Native", "msg": {"first": first}}) + "\n"
        socket.send_fds(self._channel, [line.encode()], [descriptor])

    def promote(self) -> None:
        """Let it have its share of the processors."""
        self.behind = False
        # Each thread has a priority of its own, which new ones inherit.
        for pid in self._watched.values():
            with contextlib.suppress(OSError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with contextlib.suppress(ProcessLookupError):
                        os.setpriority(os.PRIO_PROCESS, int(thread), 0)

    def limit(self, bytes: int) -> None:
        """See that it holds no more. Without control groups this is for the caller to watch, see `held`."""
        if self._ceiling:
            self._ceiling.set(bytes)

    def over(self, bytes: int) -> bool:
        """Whether it holds more than this and nobody else looks after that; cheap where a control group does."""
        return self._ceiling is None and self.rss_bytes() > bytes

    def rss_bytes(self) -> int:
        try:
            with open(f"/proc/{self._pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * PAGE_BYTES
        except OSError:
            return 0

    def main_cpu_s(self) -> float:
        """CPU time of its main thread so far, in steps of 10 ms; endless if it is gone."""
        try:
            with open(f"/proc/{self._pid}/task/{self._pid}/stat", "rb") as file:
                # proc(5): of the fields behind the name in parentheses, utime and stime.
                fields = file.read().rpartition(b") ")[2].split()
        except OSError:
            return math.inf
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def out_of_memory(self) -> bool:
        """Of an ended process: whether the want of memory ended it."""
        code = -self.ended.result()
        if self._ceiling and self._ceiling.hit:
            return True
        return code in V8_GAVE_UP or (
            code == signal.SIGSEGV and any(words in self.last_words() for words in V8_LAST_WORDS)
        )

    def last_words(self) -> str:
        """The end of its stderr, in one line; or why it was not started."""
        if self.failure:
            return " ".join(self.failure)
        return " | ".join(filter(None, self._stderr.decode(errors="replace").splitlines()))

    # --- its life -------------------------------------------------------------------------------------------

    def _spawn(self, plan: Plan) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._channel, their_channel_end = socket.socketpair()
        self._channel.setblocking(False)
        with contextlib.ExitStack() as both, contextlib.ExitStack() as failing:
            failing.callback(ours.close)
            failing.callback(self._channel.close)
            both.callback(theirs.close)
            both.callback(their_channel_end.close)
            box = _kept(os.memfd_create("black-box", os.MFD_CLOEXEC), both)
            os.ftruncate(box, BLACK_BOX_BYTES)
            self._box = mmap.mmap(box, BLACK_BOX_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
            stderr, their_stderr = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            failing.callback(os.close, stderr)
            their_stderr = _kept(their_stderr, both)
            report, their_report = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            failing.callback(os.close, report)
            their_report = _kept(their_report, both)
            their_socket = _kept(os.dup(theirs.fileno()), both)
            their_channel = _kept(os.dup(their_channel_end.fileno()), both)
            launcher = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", LAUNCH, plan.encode(), str(Path(__file__).parent.parent)],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_RDWR, 0),
                    (os.POSIX_SPAWN_DUP2, their_stderr, 2),
                    (os.POSIX_SPAWN_DUP2, their_socket, SOCKET_FD),
                    (os.POSIX_SPAWN_DUP2, box, BLACK_BOX_FD),
                    (os.POSIX_SPAWN_DUP2, their_report, REPORT_FD),
                    (os.POSIX_SPAWN_DUP2, their_channel, CHANNEL_FD),
                ],
                setsigmask=(),
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
            failing.pop_all()
        if self.behind:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, launcher, BEHIND)
        self._pipes = {stderr, report}
        self._watch(launcher)
        loop = asyncio.get_running_loop()
        loop.add_reader(stderr, self._read, stderr, self._heard)
        loop.add_reader(report, self._read, report, self._reported)
        return ours

    def _read(self, descriptor: int, take: Callable[[bytes], None]) -> None:
        try:
            data = os.read(descriptor, 65_536)
        except BlockingIOError:
            return
        take(data)
        if not data:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
            self._pipes.discard(descriptor)
            self._check_end()

    def _heard(self, data: bytes) -> None:
        self._stderr = (self._stderr + data)[-MAX_STDERR_BYTES:]

    def _reported(self, data: bytes) -> None:
        self._report += data
        for line in self._report.splitlines():
            if self._pid is None and line.startswith(b"pid "):
                self._pid = int(line[4:])
                if self._pid not in self._watched.values():
                    self._watch(self._pid)
                if self._killed:
                    self.kill()
                elif self._began_behind and not self.behind:
                    # It was promoted while only the launcher was known.
                    self.promote()

    def _watch(self, pid: int) -> None:
        descriptor = os.pidfd_open(pid)
        self._watched[descriptor] = pid
        asyncio.get_running_loop().add_reader(descriptor, self._reap, descriptor)

    def _reap(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        pid = self._watched.pop(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        # That of the process which was Node, or was to become it.
        if pid == self._pid or self._pid is None:
            self._code = os.waitstatus_to_exitcode(status)
        self._check_end()

    def _check_end(self) -> None:
        if not self._watched and not self._pipes and not self.ended.done():
            self._channel.close()
            if self._ceiling:
                self._ceiling.remove()
            self.ended.set_result(self._code)


@functools.cache
def may_promote() -> bool:
    """Whether this process may raise priorities again that it has lowered."""
    status = Path("/proc/self/status").read_text().splitlines()
    rights = next((int(line.split()[1], 16) for line in status if line.startswith("CapEff")), 0)
    return bool(rights >> CAP_SYS_NICE & 1)


def _kept(descriptor: int, stack: contextlib.ExitStack) -> int:
    """The same out of the way of the numbers that the launcher expects."""
    high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD)
    os.close(descriptor)
    stack.callback(os.close, high)
    return high
