"""A cell: the Node process in which one tenant's functions run. See ``runner/cell.mjs`` for the other end.

A cell is expected to enforce every limit itself. What it cannot do, because V8 aborts, parks or eats the machine,
is done from here: such a cell is killed, its running calls fail, and the next call of the tenant gets a new one.
"""

import asyncio
import contextlib
import ctypes
import logging
import mmap
import os
import re
import resource
import signal
import socket
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, Self

import msgspec

from neolayer_enclave import egress
from neolayer_enclave.frames import FramePeer
from neolayer_enclave.protocol import ErrorInfo, Failure, Limits, Result

RUNNER: Final = Path(__file__).parent / "runner" / "cell.mjs"
#: ``--no-node-snapshot``: isolated-vm's isolates and Node's own must not start from different snapshots.
NODE_FLAGS: Final = ("--no-node-snapshot",)

LOAD, UNLOAD, INVOKE, DELIVER, CANCEL, CHECK = range(1, 7)
RESULT, CALL, CHECKED = range(16, 19)
RESULT_HEAD: Final = struct.Struct("<BIIdHI")
CALL_HEAD: Final = struct.Struct("<IB")
DELIVER_HEAD: Final = struct.Struct("<IBI")
#: `BlackBox`: since (CLOCK_MONOTONIC, ms; 0 until the cell is up), bundle and call on the main thread, bundles on
#: other threads.
BLACK_BOX: Final = struct.Struct("<dII12I")
BLACK_BOX_BYTES: Final = 64
COLD: Final = 1
FAILED: Final = 2
HOST_FUNCTIONS: Final = {0: "neo.read", 1: "neo.send", 3: "neo.wallet"}
FETCH: Final = 2

#: How long after its deadline a call may stay unanswered before the cell counts as hung. With the time to notice
#: and to kill it is below the 0.5 s that callers are promised.
GRACE_S: Final = 0.4
#: What a cell may hold beside its functions, whose own limits come on top.
CELL_RSS_BYTES: Final = 512 * 1024 * 1024
MAX_RUNNING: Final = 1000
MAX_FETCHES: Final = 50
MAX_STDERR_BYTES: Final = 2_048
#: V8 aborts when memory is out and traps when a size is beyond it.
V8_GAVE_UP: Final = frozenset({signal.SIGABRT, signal.SIGTRAP, signal.SIGILL})
PAGE_BYTES: Final = resource.getpagesize()
PR_SET_PDEATHSIG: Final = 1
#: Loaded once: `ctypes` must not search for libraries between fork and exec.
LIBC: Final = ctypes.CDLL(None, use_errno=True)
CHECK_LIMITS: Final = Limits(timeout_ms=5_000, cpu_ms=1_000, memory_mb=128)
#: For a new process to come up on a busy machine.
STARTING_S: Final = 10.0

_log = logging.getLogger(__name__)
_decode_error = msgspec.json.Decoder(ErrorInfo).decode


class CheckReply(msgspec.Struct, frozen=True):
    code: str
    message: str
    line: int | None = None
    column: int | None = None


class HostFailure(msgspec.Struct, frozen=True):
    """What a function sees of a failed host call."""

    code: str
    message: str


_decode_check = msgspec.json.Decoder(CheckReply | None).decode
_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Bundle:
    """A function as it was loaded, ready for a cell."""

    tenant: str
    name: str
    #: Says whether another `Load` of the same name has the same content.
    digest: bytes
    #: Body of the cell's LOAD frame.
    content: bytes
    limits: Limits
    patterns: list[egress.Pattern]

    @classmethod
    def make(
        cls,
        tenant: str,
        name: str,
        digest: bytes,
        *,
        shown: str,
        source: str,
        limits: Limits,
        secrets: dict[str, str],
        patterns: list[egress.Pattern],
    ) -> Self:
        """``shown`` becomes the file name in stack traces."""
        content = _json(
            {
                "file": f"{re.sub(r'[^\w.-]', '_', shown)}.js",
                "source": source,
                "secrets": _json(secrets).decode(),
                "limits": _plain(limits),
            }
        )
        return cls(tenant, name, digest, content, limits, patterns)


class Caller(Protocol):
    """Who waits for a call: a connection of the host."""

    def finished(self, id: int, result: Result) -> None: ...

    def host_call(self, run: "Run", seq: int, name: str, argument: bytes) -> None: ...


@dataclass(slots=True, eq=False)
class Run:
    """A running call of a function."""

    id: int
    caller: Caller
    #: Frame id of the caller's request.
    request: int
    bundle: Bundle
    cell: "Cell"
    #: `time.monotonic`.
    started: float
    deadline: float
    fetches: int = 0
    #: A host call with an effect was made: the call must not be repeated blindly.
    sent: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def answer(self, seq: int, *, ok: bool, text: bytes, body: bytes = b"") -> None:
        """Give the function what it waits for; dropped when the call is over."""
        self.cell.deliver(self, seq, ok=ok, text=text, body=body)


class Gone(Protocol):
    def __call__(self, cell: "Cell", *, crashed: bool) -> None: ...


class CheckFailed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class NoCapacity(Exception):
    """Every cell is busy, or the tenant has too many calls running."""


class Cell(FramePeer):
    """One Node process and what runs in it. Frames sent before it is up wait in its socket."""

    def __init__(self, tenant: str, node: Path, web: egress.Egress, rss_bytes: int, gone: "Gone") -> None:
        super().__init__()
        self.tenant = tenant
        self.runs: dict[int, Run] = {}
        self.isolates = 0
        self.ended = asyncio.Event()
        self.burial: asyncio.Task[None]
        self._node = node
        self._egress = web
        self._rss_bytes = rss_bytes
        self._gone = gone
        self._checks: dict[int, asyncio.Future[CheckReply | None]] = {}
        self._ids = 0
        #: Numbers under which the cell knows bundles.
        self._numbers: dict[str, int] = {}
        self._bundles = 0
        self._unsent: list[tuple[int, int, tuple[bytes, ...]]] | None = []
        self._process: asyncio.subprocess.Process | None = None
        self._black_box: mmap.mmap | None = None
        self._up_since: float | None = None
        self._stderr: asyncio.Task[str]
        self._reason: str | None = None
        #: Whose fault the end is, if known: a call or the number of a bundle, and the error code.
        self._culprit: tuple[Run | int, str] | None = None
        self._over = False
        self._starting = asyncio.get_running_loop().create_task(self._start())

    @property
    def idle(self) -> bool:
        return not self.runs and not self._checks

    def invoke(self, caller: Caller, request: int, bundle: Bundle, execution: bytes, input: bytes) -> Run:
        """Start a call; its end is told to ``caller``.

        Raises:
            NoCapacity: the tenant has too many calls running.
        """
        if len(self.runs) >= MAX_RUNNING:
            raise NoCapacity(f"more than {MAX_RUNNING} calls of this tenant are running")
        number = self._numbers.get(bundle.name)
        if number is None:
            self._bundles += 1
            number = self._numbers[bundle.name] = self._bundles
            self._tell(LOAD, number, bundle.content)
        now = time.monotonic()
        id = self._next_id()
        run = Run(id, caller, request, bundle, self, now, now + bundle.limits.timeout_ms / 1000)
        self.runs[id] = run
        self._tell(INVOKE, id, struct.pack("<IB", number, len(execution)), execution, input)
        return run

    async def check(self, source: str) -> None:
        """Load a source on trial.

        Raises:
            CheckFailed: it cannot become a function; says why and where.
        """
        id = self._next_id()
        answer: asyncio.Future[CheckReply | None] = asyncio.get_running_loop().create_future()
        self._checks[id] = answer
        try:
            content = _json({"file": "function.js", "source": source, "limits": _plain(CHECK_LIMITS)})
            self._tell(CHECK, id, content)
            async with asyncio.timeout(CHECK_LIMITS.timeout_ms / 1000 + GRACE_S + STARTING_S):
                wrong = await answer
        except TimeoutError:
            self.kill("a check took too long")
            wrong = CheckReply("invalid_function", "its top level does not end")
        finally:
            del self._checks[id]
        if wrong:
            raise CheckFailed(Failure(wrong.code, wrong.message, False, wrong.line, wrong.column))

    def unload(self, bundle: Bundle) -> None:
        number = self._numbers.pop(bundle.name, None)
        if number is not None:
            self._tell(UNLOAD, number)

    def deliver(self, run: Run, seq: int, *, ok: bool, text: bytes, body: bytes) -> None:
        if self.runs.get(run.id) is run:
            self._tell(DELIVER, run.id, DELIVER_HEAD.pack(seq, ok, len(text)), text, body)

    def cancel(self, run: Run) -> None:
        """End a call whose result nobody waits for."""
        if self.runs.pop(run.id, None):
            self._drop_tasks(run)
            self._tell(CANCEL, run.id)

    def end(self, reason: str) -> None:
        """End it without blame."""
        self._reason = reason
        self._stop(crashed=False)

    def kill(self, reason: str) -> None:
        """End it because it misbehaves."""
        _log.warning("cell of %s is killed: %s", self.tenant, reason)
        self._reason = reason
        self._stop(crashed=True)

    def watch(self) -> None:
        """Kill it if it hangs or grows too large."""
        if self._process is None or self._black_box is None:
            return
        now = time.monotonic()
        since_ms, _, call, *_ = BLACK_BOX.unpack_from(self._black_box)
        if self._up_since is None and since_ms:
            self._up_since = now
        on_main = self.runs.get(call)
        if on_main:
            # As long as the cell itself allows an entry on its main thread, see `#entryMs` there. Meanwhile it
            # cannot notice that another call is due.
            cpu_s = (2 * on_main.bundle.limits.cpu_ms + 100) / 1000
            latest, code = min(
                (since_ms / 1000 + cpu_s + GRACE_S, "cpu_limit"), (self._latest(on_main), "timeout")
            )
            if now > latest:
                self._culprit = (on_main, code)
                self.kill("a call does not end")
                return
        elif late := next((run for run in self.runs.values() if now > self._latest(run)), None):
            self._culprit = (late, "timeout")
            self.kill("a call was not ended at its deadline")
            return
        bundles = {run.bundle.name: run.bundle.limits.memory_mb for run in self.runs.values()}
        ceiling = self._rss_bytes + sum(bundles.values()) * 1024 * 1024
        if _rss_bytes(self._process.pid) > ceiling:
            self._culprit = self._in_memory_trouble()
            self.kill(f"it holds more than {ceiling >> 20} MB")

    def _latest(self, run: Run) -> float:
        """When the cell must have ended a call; its own clock starts when it is up."""
        if self._up_since is None:
            return run.deadline + STARTING_S
        late_start = max(0.0, self._up_since - run.started)
        return run.deadline + late_start + GRACE_S

    # --- its frames ---------------------------------------------------------------------------------------

    def frame_received(self, kind: int, id: int, body: bytes) -> None:
        if kind == RESULT:
            run = self.runs.pop(id, None)
            if run:
                self._finished(run, body)
        elif kind == CALL:
            run = self.runs.get(id)
            if run:
                seq, function = CALL_HEAD.unpack_from(body)
                self._asked(run, seq, function, body[CALL_HEAD.size :])
        elif kind == CHECKED:
            answer = self._checks.get(id)
            if answer and not answer.done():
                answer.set_result(_decode_check(body))
        else:
            raise ValueError(f"unknown frame {kind} of a cell")

    def lost(self) -> None:
        self._stop(crashed=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        for kind, id, parts in self._unsent or ():
            self.send(kind, id, *parts)
        self._unsent = None

    def _tell(self, kind: int, id: int, *parts: bytes) -> None:
        if self._unsent is None:
            self.send(kind, id, *parts)
        else:
            self._unsent.append((kind, id, parts))

    def _finished(self, run: Run, body: bytes) -> None:
        flags, wall_us, cpu_us, heap_bytes, self.isolates, length = RESULT_HEAD.unpack_from(body)
        text_end = RESULT_HEAD.size + length
        text, logs = body[RESULT_HEAD.size : text_end], body[text_end:]
        error = None
        if flags & FAILED:
            error, text = _decode_error(text), b""
            if error.retryable and run.sent:
                error = ErrorInfo(error.code, error.message, error.stack, retryable=False)
        self._drop_tasks(run)
        run.caller.finished(
            run.request,
            Result(
                output=text,
                error=error,
                logs=b"[%b]" % logs if logs else b"",
                wall_us=wall_us,
                cpu_us=cpu_us,
                heap_bytes=int(heap_bytes),
                cold=bool(flags & COLD),
                fetches=run.fetches,
            ),
        )

    def _asked(self, run: Run, seq: int, function: int, argument: bytes) -> None:
        if function == FETCH:
            task = asyncio.get_running_loop().create_task(self._fetch(run, seq, argument))
            run.tasks.add(task)
            task.add_done_callback(run.tasks.discard)
            return
        name = HOST_FUNCTIONS[function]
        run.sent |= name == "neo.send"
        run.caller.host_call(run, seq, name, argument)

    async def _fetch(self, run: Run, seq: int, argument: bytes) -> None:
        run.fetches += 1
        try:
            if run.fetches > MAX_FETCHES:
                raise egress.FetchRefused("too_many_fetches", f"a call may fetch {MAX_FETCHES} times")
            request = egress.decode_request(argument)
            response, body = await self._egress.fetch(
                request, run.bundle.patterns, run.deadline - time.monotonic()
            )
        except egress.FetchRefused as error:
            run.answer(seq, ok=False, text=_json(HostFailure(error.code, str(error))))
        except msgspec.DecodeError as error:
            run.answer(seq, ok=False, text=_json(HostFailure("invalid_request", str(error))))
        else:
            run.answer(seq, ok=True, text=_json(response), body=body)

    # --- its life ------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        box = os.memfd_create("black-box", os.MFD_CLOEXEC)
        try:
            os.ftruncate(box, BLACK_BOX_BYTES)
            self._black_box = mmap.mmap(box, BLACK_BOX_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
            self._process = await asyncio.create_subprocess_exec(
                self._node,
                *NODE_FLAGS,
                RUNNER,
                str(theirs.fileno()),
                str(box),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(), box),
                env={"NODE_ENV": "production"},
                cwd="/",
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            ours.close()
            self.kill(f"it cannot be started: {error}")
            return
        finally:
            theirs.close()
            os.close(box)
        assert self._process.stderr
        self._stderr = loop.create_task(_tail(self._process.stderr))
        if self._over:
            ours.close()
            return
        await loop.create_unix_connection(lambda: self, sock=ours)

    def _stop(self, *, crashed: bool) -> None:
        if self._over:
            return
        self._over = True
        self._unsent = []
        self.burial = asyncio.get_running_loop().create_task(self._bury())
        self._gone(self, crashed=crashed)

    async def _bury(self) -> None:
        await self._starting
        self.close()
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            if self._reason is not None:
                # What is known need not wait until the kernel has taken back a large process's memory.
                self._fail_all()
            code = await self._process.wait()
            await self._stderr
            # It ended by itself: V8's abort, or a bug of ours.
            if self._reason is None and code != 0:
                _log.warning("cell of %s ended with %s: %s", self.tenant, code, self._stderr.result())
                if -code in V8_GAVE_UP:
                    self._culprit = self._in_memory_trouble()
        self._fail_all()
        self.isolates = 0
        if self._black_box:
            self._black_box.close()
        self.ended.set()

    def _fail_all(self) -> None:
        for answer in self._checks.values():
            if not answer.done():
                answer.set_result(CheckReply("invalid_function", "its top level ends the process it runs in"))
        for run in list(self.runs.values()):
            self._failed(run)
        self.runs.clear()

    def _failed(self, run: Run) -> None:
        self._drop_tasks(run)
        error = ErrorInfo("cell_crashed", "the process of the function ended", retryable=not run.sent)
        if self._culprit:
            culprit, code = self._culprit
            if culprit is run or culprit == self._numbers.get(run.bundle.name):
                limits = run.bundle.limits
                message = {
                    "timeout": f"the call took longer than {limits.timeout_ms} ms",
                    "cpu_limit": f"the call used more than {limits.cpu_ms} ms of CPU time",
                    "memory_limit": f"the function used more than {limits.memory_mb} MB of memory",
                }[code]
                error = ErrorInfo(code, message)
        wall_us = int((time.monotonic() - run.started) * 1e6)
        result = Result(b"", error, b"", wall_us, 0, 0, cold=False, fetches=run.fetches)
        run.caller.finished(run.request, result)

    def _in_memory_trouble(self) -> tuple[int, str] | None:
        """The one bundle that was being run when the memory ran out, if it was one."""
        assert self._black_box
        _, bundle, _, *others = BLACK_BOX.unpack_from(self._black_box)
        entered = {number for number in (bundle, *others) if number}
        if not entered:
            entered = {self._numbers.get(run.bundle.name, 0) for run in self.runs.values()}
        return (entered.pop(), "memory_limit") if len(entered) == 1 else None

    def _drop_tasks(self, run: Run) -> None:
        for task in run.tasks:
            task.cancel()

    def _next_id(self) -> int:
        self._ids = self._ids % 0xFFFF_FFFF + 1
        return self._ids


def _plain(limits: Limits) -> dict[str, int]:
    return {"timeout_ms": limits.timeout_ms, "cpu_ms": limits.cpu_ms, "memory_mb": limits.memory_mb}


def _rss_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE_BYTES
    except FileNotFoundError:
        return 0


def _die_with_parent() -> None:
    # Also a cell whose main thread is stuck and would not notice that its socket closed.
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


async def _tail(stream: asyncio.StreamReader) -> str:
    tail = b""
    while chunk := await stream.read(MAX_STDERR_BYTES):
        tail = (tail + chunk)[-MAX_STDERR_BYTES:]
    return " | ".join(filter(None, tail.decode(errors="replace").splitlines()))
