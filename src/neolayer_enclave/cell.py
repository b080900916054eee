"""A cell: the Node process in which one tenant's functions run. See ``runner/cell.mjs`` for the other end.

A cell is expected to enforce every limit itself. What it cannot do, because V8 aborts, parks or eats the machine,
is done from here: such a cell is killed, its running calls fail, and the next call of the tenant gets a new one.
"""

import asyncio
import contextlib
import logging
import re
import struct
import time
from dataclasses import dataclass, field
from typing import Final, Protocol, Self

import msgspec

from neolayer_enclave import egress
from neolayer_enclave.frames import FramePeer
from neolayer_enclave.process import CellProcess
from neolayer_enclave.protocol import ErrorInfo, Failure, Limits, Result

LOAD, UNLOAD, INVOKE, DELIVER, CANCEL, CHECK = range(1, 7)
RESULT, CALL, CHECKED = range(16, 19)
RESULT_HEAD: Final = struct.Struct("<BIIdHI")
CALL_HEAD: Final = struct.Struct("<IB")
DELIVER_HEAD: Final = struct.Struct("<IBI")
COLD: Final = 1
FAILED: Final = 2
HOST_FUNCTIONS: Final = {0: "neo.read", 1: "neo.send", 3: "neo.wallet"}
FETCH: Final = 2

#: How long after its deadline a call may stay unanswered before the cell counts as hung.
GRACE_S: Final = 0.5
#: What a cell may hold beside its functions, whose own limits come on top.
CELL_RSS_BYTES: Final = 512 * 1024 * 1024
MAX_RUNNING: Final = 1000
MAX_FETCHES: Final = 50
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

    def refused(self, id: int, failure: Failure) -> None:
        """The call was not started."""

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
    """One Node process and what runs in it. Frames sent before it has one, or is up, wait."""

    def __init__(self, tenant: str, web: egress.Egress, rss_bytes: int, gone: "Gone") -> None:
        super().__init__()
        self.tenant = tenant
        self.process: CellProcess | None = None
        #: `time.monotonic` of the last time it was asked for, and of when it got its process.
        self.used = time.monotonic()
        self.bound = 0.0
        self.runs: dict[int, Run] = {}
        self.isolates = 0
        self.ended = asyncio.Event()
        self.burial: asyncio.Task[None]
        self._egress = web
        self._rss_bytes = rss_bytes
        self._gone = gone
        self._checks: dict[int, asyncio.Future[CheckReply | None]] = {}
        self._ids = 0
        #: Numbers under which the cell knows bundles.
        self._numbers: dict[str, int] = {}
        self._bundles = 0
        self._unsent: list[tuple[int, int, tuple[bytes, ...]]] | None = []
        self._up_since: float | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._refusal: Failure | None = None
        self._reason: str | None = None
        #: Whose fault the end is, if known: a call or the number of a bundle, and the error code.
        self._culprit: tuple[Run | int, str] | None = None
        self._over = False

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
        if self.process is None or self._over:
            return
        now = time.monotonic()
        box = self.process.black_box()
        if self._up_since is None and box.since:
            self._up_since = now
        on_main = self.runs.get(box.call)
        if on_main:
            # As long as the cell itself allows an entry on its main thread, see `#entryMs` there. Meanwhile it
            # cannot notice that another call is due.
            allowed = (2 * on_main.bundle.limits.cpu_ms + 100) / 1000 + GRACE_S
            if now - box.since > allowed:
                self._culprit = (on_main, "cpu_limit")
                self.kill("a call does not end")
                return
        elif late := next((run for run in self.runs.values() if now > self._latest(run)), None):
            self._culprit = (late, "timeout")
            self.kill("a call was not ended at its deadline")
            return
        bundles = {run.bundle.name: run.bundle.limits.memory_mb for run in self.runs.values()}
        ceiling = self._rss_bytes + sum(bundles.values()) * 1024 * 1024
        self.process.limit(ceiling)
        if self.process.over(ceiling):
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

    def bind(self, process: CellProcess) -> None:
        """Give it its process, which is nobody else's then."""
        self.process = process
        self.bound = time.monotonic()
        for run in self.runs.values():
            # Waiting is not the call's time.
            run.deadline += self.bound - run.started
            run.started = self.bound
        process.limit(self._rss_bytes)
        self._connecting = asyncio.get_running_loop().create_task(self._connect(process))

    def refuse(self, failure: Failure) -> None:
        """End it before it was started."""
        self._refusal = failure
        self._stop(crashed=False)

    async def _connect(self, process: CellProcess) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=process.socket)

    def _stop(self, *, crashed: bool) -> None:
        if self._over:
            return
        self._over = True
        self._unsent = []
        self.burial = asyncio.get_running_loop().create_task(self._bury())
        self._gone(self, crashed=crashed)

    async def _bury(self) -> None:
        if self._connecting:
            with contextlib.suppress(OSError):
                await self._connecting
        self.close()
        if self.process:
            self.process.kill()
            code = await self.process.ended
            # It ended by itself: V8's abort, the kernel at its ceiling, or a bug of ours.
            if self._reason is None and code != 0:
                _log.warning("cell of %s ended with %s: %s", self.tenant, code, self.process.last_words())
                if self.process.out_of_memory():
                    self._culprit = self._in_memory_trouble()
        for answer in self._checks.values():
            if not answer.done():
                if self._refusal:
                    answer.set_exception(CheckFailed(self._refusal))
                else:
                    answer.set_result(CheckReply("invalid_function", "its top level ends the process it runs in"))
        for run in list(self.runs.values()):
            self._failed(run)
        self.runs.clear()
        self.isolates = 0
        self.ended.set()

    def _failed(self, run: Run) -> None:
        self._drop_tasks(run)
        if self._refusal:
            run.caller.refused(run.request, self._refusal)
            return
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
        assert self.process
        box = self.process.black_box()
        entered = {number for number in (box.bundle, *box.others) if number}
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
