"""A cell: the Node process in which one tenant's functions run. See ``runner/cell.mjs`` for the other end.

A cell is expected to enforce every limit itself. What it cannot do, because V8 aborts, parks or eats the machine,
is done from here: such a cell is killed, its running calls fail, and the next call of the tenant gets a new one.
"""

import asyncio
import contextlib
import logging
import os
import re
import struct
import time
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol, Self

import msgspec

from neolayer_enclave import egress, subtle
from neolayer_enclave.frames import FramePeer
from neolayer_enclave.loading import FORM_CHECKED, Loading
from neolayer_enclave.process import CellProcess
from neolayer_enclave.protocol import (
    HANDLE_BYTES,
    MAX_FRAME_BYTES,
    QUEUE_BYTES,
    ErrorInfo,
    Failure,
    Limits,
    encode_failed,
)
from neolayer_enclave.subtle import Budget

LOAD, UNLOAD, INVOKE, DELIVER, CANCEL, CHECK = range(1, 7)
RESULT, CALL, CHECKED = range(16, 19)
#: How functions become isolates, see `loading`.
OPTIONS, WARM, SHRINK = range(32, 35)
CODE, LOADED, FIRST, WARMED, UP = range(48, 53)
#: Of a RESULT, where the count of the cell's isolates is; the rest of it is `protocol.RESULT_HEAD` without the
#: queue's time, which the cell does not know.
ISOLATES: Final = struct.Struct("<3xH")
U32: Final = struct.Struct("<I")
#: Of an INVOKE's content, where its timeout is.
TIMEOUT_AT: Final = 17
CALL_HEAD: Final = struct.Struct("<IB")
DELIVER_HEAD: Final = struct.Struct("<IBI")
WARM_FAILED, WARM_MADE, WARM_WAS_THERE = range(3)
HOST_FUNCTIONS: Final = {0: "neo.read", 1: "neo.send", 3: "neo.wallet", 4: "functions.invoke"}
#: After one of these a call must not be repeated blindly.
EFFECTS: Final = frozenset({"neo.send", "functions.invoke"})
FETCH: Final = 2
SUBTLE: Final = 16
#: Nobody waits for a fetch any more.
ABORT: Final = 17
#: Length of the JSON text of a `FETCH` or `SUBTLE`; what follows it is the body.
TEXT_LENGTH: Final = struct.Struct("<I")

#: How long after its deadline a call may stay unanswered before the cell counts as hung. With the time to notice
#: and to kill it is below the 0.5 s that callers are promised.
GRACE_S: Final = 0.4
#: An entry on a cell's main thread that runs for so long is looked at more closely.
LONG_S: Final = 0.05
#: What a cell may hold beside its functions, whose own limits come on top.
CELL_RSS_BYTES: Final = 512 * 1024 * 1024
#: Calls of a tenant that run at a time, and that wait for their turn.
MAX_RUNNING: Final = 64
MAX_WAITING: Final = 256
#: The longest that one waits.
WAIT_S: Final = 5.0
#: Calls made by running functions never wait, or those that wait for them would wait for ever.
MAX_NESTED: Final = 512
MAX_FETCHES: Final = 50
#: Of the inputs of calls that wait.
MAX_WAITING_BYTES: Final = 32 * 1024 * 1024
#: What a cell sends grows a little on its way to the host; a frame too long would end the connection of all.
MAX_BODY_BYTES: Final = MAX_FRAME_BYTES - 65_536
CHECK_LIMITS: Final = Limits(timeout_ms=5_000, cpu_ms=1_000, memory_mb=128)
#: For a new process to come up on a busy machine.
STARTING_S: Final = 10.0

_log = logging.getLogger(__name__)


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
    #: What the host calls it by.
    handle: bytes
    #: First part of the cell's LOAD frame.
    head: bytes
    source: bytes
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
        isolation: str = "version",
    ) -> Self:
        """``shown`` becomes the file name in stack traces."""
        head = _json(
            {
                "file": f"{re.sub(r'[^\w.-]', '_', shown)}.js",
                "secrets": _json(secrets).decode(),
                "limits": _plain(limits),
                "isolation": isolation,
            }
        )
        head = len(head).to_bytes(4, "little") + head
        return cls(tenant, name, digest, os.urandom(HANDLE_BYTES), head, source.encode(), limits, patterns)

    @property
    def size(self) -> int:
        return len(self.head) + len(self.source)


class Caller(Protocol):
    """Who waits for a call: a connection of the host."""

    def finished(self, id: int, queue_us: bytes, result: bytes) -> None:
        """The two together are the body of a ``RESULT``."""

    def refused(self, id: int, failure: Failure) -> None:
        """The call was not started."""

    def host_call(self, run: "Run", seq: int, name: str, argument: bytes) -> None: ...


@dataclass(slots=True, eq=False)
class Run:
    """A call of a function, waiting or running."""

    caller: Caller
    #: Frame id of the caller's request.
    request: int
    bundle: Bundle
    #: Body of the cell's INVOKE frame behind the bundle: depth, execution, timeout, input.
    content: bytes
    cell: "Cell"
    #: `time.monotonic`.
    arrived: float
    #: These three once it runs.
    id: int = 0
    started: float = 0.0
    deadline: float = 0.0
    fetches: int = 0
    #: What works for the function's host calls, by their number; made when there is something, as most calls have
    #: nothing and are quick.
    working: dict[int, asyncio.Task[None]] | None = None
    computed: Budget | None = None
    #: A host call with an effect was made: the call must not be repeated blindly.
    sent: bool = False

    @property
    def nested(self) -> bool:
        return self.content[0] > 0

    @property
    def timeout_ms(self) -> int:
        """What it may take; less than its function may where its caller has less."""
        (given,) = U32.unpack_from(self.content, TIMEOUT_AT)
        limit = self.bundle.limits.timeout_ms
        return min(given, limit) if given else limit

    @property
    def queue_us(self) -> int:
        return int((self.started - self.arrived) * 1e6)

    def answer(self, seq: int, *, ok: bool, text: bytes, body: bytes = b"") -> None:
        """Give the function what it waits for; dropped when the call is over."""
        self.cell.deliver(self, seq, ok=ok, text=text, body=body)


class Gone(Protocol):
    def __call__(self, cell: "Cell", *, crashed: bool) -> None: ...


class CheckFailed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class CannotWarm(Exception):
    """The isolate of a bundle cannot be made ahead."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


CANNOT_LOAD: Final = Failure("invalid_function", "the function could not be loaded ahead of its calls")


class NoCapacity(Exception):
    """Every cell is busy."""


class TooManyCalls(Exception):
    """The tenant has as many calls running and waiting as it may."""


class Cell(FramePeer):
    """One Node process and what runs in it. Frames sent before it has one, or is up, wait."""

    def __init__(self, tenant: str, web: egress.Egress, loading: Loading, rss_bytes: int, gone: "Gone") -> None:
        super().__init__()
        self.tenant = tenant
        self.process: CellProcess | None = None
        #: `time.monotonic` of the last time it was asked for, and of when it got its process.
        self.used = time.monotonic()
        self.bound = 0.0
        self.runs: dict[int, Run] = {}
        #: Calls that wait for their turn.
        self.waiting: deque[Run] = deque()
        self.isolates = 0
        self.ended = asyncio.Event()
        self.burial: asyncio.Task[None]
        self._egress = web
        self._loading = loading
        self._rss_bytes = rss_bytes
        self._gone = gone
        self._checks: dict[int, asyncio.Future[CheckReply | None]] = {}
        #: Computes for `crypto.subtle`: one thread a tenant, so that none waits for another's data.
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="subtle")
        self._aside_bytes = 0
        self._checked: dict[int, bytes] = {}
        self._warms: dict[int, tuple[Bundle, asyncio.Future[int]]] = {}
        self._ids = 0
        #: Numbers under which the cell knows bundles.
        self._numbers: dict[str, int] = {}
        self._loaded: dict[int, Bundle] = {}
        #: Of those, whose code it has sent.
        self._coded: set[int] = set()
        self._bundles = 0
        #: `time.monotonic` of when it got a process that was not up; else 0.
        self._starting_since = 0.0
        self._unsent: list[tuple[int, int, tuple[bytes, ...]]] | None = []
        self._up_since: float | None = None
        #: The long entry on its main thread: since when it runs, and the CPU time of that thread then; s.
        self._main_since = 0.0
        self._main_cpu_s = 0.0
        self._connecting: asyncio.Task[None] | None = None
        self._refusal: Failure | None = None
        self._reason: str | None = None
        #: Whose fault the end is, if known: a call or the number of a bundle, and the error code.
        self._culprit: tuple[Run | int, str] | None = None
        self._over = False

    @property
    def idle(self) -> bool:
        return not self.runs and not self.waiting and not self._checks and not self._warms

    @property
    def _waiting_bytes(self) -> int:
        return sum(len(run.content) for run in self.waiting)

    def invoke(self, caller: Caller, request: int, bundle: Bundle, content: bytes) -> Run:
        """Start a call, or have it wait for its turn; its end is told to ``caller``.

        Raises:
            TooManyCalls: too many are waiting.
        """
        run = Run(caller, request, bundle, content, self, time.monotonic())
        self.take(run)
        return run

    def take(self, run: Run) -> None:
        """Start a call, or have it wait for its turn, also one that waited in a cell that is gone.

        Raises:
            TooManyCalls: too many are waiting.
        """
        run.cell = self
        running = len(self.runs)
        if running < MAX_RUNNING or (run.nested and running < MAX_RUNNING + MAX_NESTED):
            self._begin(run)
        elif run.nested or len(self.waiting) >= MAX_WAITING or self._waiting_bytes > MAX_WAITING_BYTES:
            raise TooManyCalls(
                f"{MAX_RUNNING} calls of this tenant are running and {len(self.waiting)} are waiting"
            )
        else:
            self.waiting.append(run)

    def _begin(self, run: Run) -> None:
        bundle = run.bundle
        number = self._number(bundle)
        run.started = now = time.monotonic()
        run.deadline = now + run.timeout_ms / 1000
        self._ids = run.id = self._ids % 0xFFFF_FFFF + 1
        self.runs[run.id] = run
        self._tell(INVOKE, run.id, U32.pack(number), run.content)
        self._loading.called(bundle)

    def _begin_next(self) -> None:
        while self.waiting and len(self.runs) < MAX_RUNNING:
            self._begin(self.waiting.popleft())

    async def warm(self, bundle: Bundle) -> bool:
        """Make the bundle's isolate. Returns whether there was one already.

        Raises:
            CannotWarm: the function's top level fails, which a call will tell more of, or the cell ended.
        """
        id = self._next_id()
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._warms[id] = bundle, answer
        try:
            self._tell(WARM, id, self._number(bundle).to_bytes(4, "little"))
            async with asyncio.timeout(bundle.limits.timeout_ms / 1000 + GRACE_S + STARTING_S):
                outcome = await answer
        except TimeoutError:
            if self.process:
                self.kill("an isolate could not be made ahead in time")
            outcome = WARM_FAILED
        finally:
            del self._warms[id]
        if outcome == WARM_FAILED:
            raise CannotWarm(CANNOT_LOAD)
        return outcome == WARM_WAS_THERE

    def shrink(self, most_bytes: int) -> None:
        """End isolates at rest until the others hold no more than that."""
        self._tell(SHRINK, 0, (most_bytes >> 20).to_bytes(4, "little"))

    async def check(self, source: str) -> None:
        """Load a source on trial.

        Raises:
            CheckFailed: it cannot become a function; says why and where.
        """
        id = self._next_id()
        answer: asyncio.Future[CheckReply | None] = asyncio.get_running_loop().create_future()
        self._checks[id] = answer
        self._checked[id] = source.encode()
        try:
            content = _json({"file": "function.js", "source": source, "limits": _plain(CHECK_LIMITS)})
            self._tell(CHECK, id, content)
            async with asyncio.timeout(CHECK_LIMITS.timeout_ms / 1000 + GRACE_S + STARTING_S):
                wrong = await answer
        except TimeoutError:
            if self.process:
                self.kill("a check took too long")
            wrong = CheckReply("invalid_function", "its top level does not end")
        finally:
            del self._checks[id], self._checked[id]
        if wrong:
            raise CheckFailed(Failure(wrong.code, wrong.message, False, wrong.line, wrong.column))

    def unload(self, bundle: Bundle) -> None:
        number = self._numbers.pop(bundle.name, None)
        if number is not None:
            del self._loaded[number]
            self._tell(UNLOAD, number)

    def _number(self, bundle: Bundle) -> int:
        """Under which the cell knows the bundle, from now on if not before."""
        number = self._numbers.get(bundle.name)
        if number is None:
            self._bundles += 1
            number = self._numbers[bundle.name] = self._bundles
            self._loaded[number] = bundle
            self._tell(LOAD, number, bundle.head, self._loading.program(bundle.tenant, bundle.source))
        return number

    def deliver(self, run: Run, seq: int, *, ok: bool, text: bytes, body: bytes) -> None:
        if self.runs.get(run.id) is run:
            self._tell(DELIVER, run.id, DELIVER_HEAD.pack(seq, ok, len(text)), text, body)

    def cancel(self, run: Run) -> None:
        """End a call whose result nobody waits for."""
        if self.runs.pop(run.id, None):
            self._drop_tasks(run)
            self._tell(CANCEL, run.id)
            self._begin_next()
        elif run in self.waiting:
            self.waiting.remove(run)

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
        """Kill it if it hangs or grows too large; send away who waited too long."""
        while self.waiting and time.monotonic() - self.waiting[0].arrived > WAIT_S:
            run = self.waiting.popleft()
            message = f"{MAX_RUNNING} calls of this tenant are running, none ended within {WAIT_S:g} s"
            run.caller.refused(run.request, Failure("too_many_calls", message, retryable=True))
        if self.process is None or self._over:
            return
        now = time.monotonic()
        box = self.process.black_box()
        if self._up_since is None and box.since:
            self._up_since = now
        on_main = self.runs.get(box.call)
        if on_main:
            if now - box.since > LONG_S:
                self._watch_main(on_main, box.since, now)
        elif late := next((run for run in self.runs.values() if now > self._latest(run)), None):
            self._culprit = (late, "timeout")
            self.kill("a call was not ended at its deadline")
            return
        if self._over:
            return
        bundles = {run.bundle.name: run.bundle.limits.memory_mb for run in self.runs.values()}
        ceiling = self._rss_bytes + sum(bundles.values()) * 1024 * 1024
        self.process.limit(ceiling)
        if self.process.over(ceiling):
            self._culprit = self._in_memory_trouble()
            self.kill(f"it holds more than {ceiling >> 20} MB")

    def _watch_main(self, run: Run, since: float, now: float) -> None:
        """See that an entry on the main thread ends, and that others do not suffer as long as it does not.

        The cell itself ends it by wall time, see `#entryMsHere` there. What V8 does not interrupt is ended here,
        once its CPU time is used up: the machine may be busy.
        """
        assert self.process
        if since != self._main_since:
            # What it did before it was seen counts in full.
            self._main_since, self._main_cpu_s = since, self.process.main_cpu_s() - (now - since)
        cpu_s = run.bundle.limits.cpu_ms / 1000
        late = now > self._latest(run)
        if late or (now > since + cpu_s + GRACE_S and self.process.main_cpu_s() - self._main_cpu_s > cpu_s):
            self._culprit = (run, "timeout" if late else "cpu_limit")
            self.kill("a call does not end")
            return
        for other in [other for other in self.runs.values() if other is not run and now > self._latest(other)]:
            # The cell cannot notice that it is due.
            self.cancel(other)
            self._fail(other, limit_error(other, "timeout"))

    def _latest(self, run: Run) -> float:
        """When the cell must have ended a call; its own clock starts when it is up."""
        if self._up_since is None:
            return run.deadline + STARTING_S
        late_start = max(0.0, self._up_since - run.started)
        return run.deadline + late_start + GRACE_S

    # --- its frames ---------------------------------------------------------------------------------------

    def frame_received(self, kind: int, id: int, body: bytes) -> None:
        if len(body) > MAX_BODY_BYTES:
            raise ValueError("a cell says more than can be passed on")
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
        elif kind == UP:
            self._loading.up(body)
        elif kind == FIRST:
            self._loading.first(body)
        elif kind == WARMED:
            _, waiting = self._warms.get(id, (None, None))
            if waiting and not waiting.done():
                waiting.set_result(body[0])
        elif kind == LOADED:
            if bundle := self._loaded.get(id):
                self._loading.loaded(bundle.tenant, bundle.source, body)
        elif kind == CODE:
            if body[0] & FORM_CHECKED:
                source = self._checked.get(id)
            else:
                # Once for each: a cell must not fill the disk.
                first = id in self._loaded and id not in self._coded
                self._coded.add(id)
                source = self._loaded[id].source if first else None
            if source is not None:
                self._loading.keep(self.tenant, source, body)
        else:
            raise ValueError(f"unknown frame {kind} of a cell")

    def lost(self) -> None:
        self._stop(crashed=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.send(OPTIONS, 0, self._loading.options(self._starting_since if self.runs else 0.0))
        for kind, id, parts in self._unsent or ():
            self.send(kind, id, *parts)
        self._unsent = None

    def _tell(self, kind: int, id: int, *parts: bytes) -> None:
        if self._unsent is None:
            self.send(kind, id, *parts)
        else:
            self._unsent.append((kind, id, parts))

    def _finished(self, run: Run, body: bytes) -> None:
        (self.isolates,) = ISOLATES.unpack_from(body)
        if run.working:
            self._drop_tasks(run)
        if self.waiting:
            self._begin_next()
        run.caller.finished(run.request, U32.pack(run.queue_us), body)

    def _asked(self, run: Run, seq: int, function: int, argument: bytes) -> None:
        if function == FETCH:
            self._work(run, seq, self._fetch(run, seq, *_parts(argument)))
            return
        if function == SUBTLE:
            self._subtle(run, seq, *_parts(argument))
            return
        if function == ABORT:
            if run.working and (work := run.working.get(seq)):
                work.cancel()
            return
        name = HOST_FUNCTIONS[function]
        run.sent |= name in EFFECTS
        run.caller.host_call(run, seq, name, argument)

    def _work(self, run: Run, seq: int, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        working = run.working = run.working or {}
        working[seq] = task
        task.add_done_callback(lambda _: working.pop(seq, None))

    async def _fetch(self, run: Run, seq: int, argument: bytes, body: bytes) -> None:
        run.fetches = min(run.fetches + 1, 0xFFFF)
        try:
            if run.fetches > MAX_FETCHES:
                raise egress.FetchRefused("too_many_fetches", f"a call may fetch {MAX_FETCHES} times")
            request = egress.decode_request(argument)
            response, content = await self._egress.fetch(
                request, body if request.has_body else None, run.bundle.patterns, run.deadline - time.monotonic()
            )
        except egress.FetchRefused as error:
            run.answer(seq, ok=False, text=_json(HostFailure(error.code, str(error))))
        except msgspec.DecodeError as error:
            run.answer(seq, ok=False, text=_json(HostFailure("invalid_request", str(error))))
        else:
            run.answer(seq, ok=True, text=_json(response), body=content)

    def _subtle(self, run: Run, seq: int, argument: bytes, data: bytes) -> None:
        try:
            operation = subtle.decode(argument)
            run.computed = run.computed or Budget()
            run.computed.spend(len(data))
            if len(data) > subtle.INLINE_BYTES:
                if self._aside_bytes + len(data) > subtle.MAX_ASIDE_BYTES:
                    raise subtle.Refused(
                        "QuotaExceededError", "too much is being computed at once: await some of it"
                    )
                self._aside_bytes += len(data)
                self._work(run, seq, self._subtle_aside(run, seq, operation, data))
                return
            answer = subtle.compute(operation, data)
        except (subtle.Refused, msgspec.DecodeError) as error:
            _refuse(run, seq, error)
        else:
            run.answer(seq, ok=True, text=b"", body=answer)

    async def _subtle_aside(self, run: Run, seq: int, operation: subtle.Operation, data: bytes) -> None:
        work = asyncio.get_running_loop().run_in_executor(self._aside, subtle.compute, operation, data)
        try:
            answer = await work
        except subtle.Refused as error:
            _refuse(run, seq, error)
        else:
            run.answer(seq, ok=True, text=b"", body=answer)
        finally:
            self._aside_bytes -= len(data)

    # --- its life ------------------------------------------------------------------------------------------

    def bind(self, process: CellProcess) -> None:
        """Give it its process, which is nobody else's then."""
        self.process = process
        self.bound = time.monotonic()
        self._starting_since = 0.0 if process.up else self.bound
        for run in self.runs.values():
            # Waiting is not the call's time.
            run.deadline += self.bound - run.started
            run.started = self.bound
        process.limit(self._rss_bytes)
        self._connecting = asyncio.get_running_loop().create_task(self._connect(process))

    def refuse(self, failure: Failure) -> None:
        """End it before it was started."""
        self._refusal = failure
        while self.waiting:
            run = self.waiting.popleft()
            run.caller.refused(run.request, failure)
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
            if self._reason is not None:
                # What is known need not wait until the kernel has taken back a large process's memory.
                self._fail_all()
            code = await self.process.ended
            # It ended by itself: V8's abort, the kernel at its ceiling, or a bug of ours.
            if self._reason is None and code != 0:
                _log.warning("cell of %s ended with %s: %s", self.tenant, code, self.process.last_words())
                if self.process.out_of_memory():
                    self._culprit = self._in_memory_trouble()
        self._aside.shutdown(wait=False, cancel_futures=True)
        self._fail_all()
        self.isolates = 0
        self.ended.set()

    def _fail_all(self) -> None:
        for answer in self._checks.values():
            if not answer.done():
                if self._refusal:
                    answer.set_exception(CheckFailed(self._refusal))
                else:
                    answer.set_result(CheckReply("invalid_function", "its top level ends the process it runs in"))
        for bundle, warming in self._warms.values():
            if not warming.done():
                warming.set_exception(CannotWarm(self._why_not_warm(bundle)))
        for run in list(self.runs.values()):
            self._failed(run)
        self.runs.clear()

    def _why_not_warm(self, bundle: Bundle) -> Failure:
        if self._refusal:
            return self._refusal
        if self._culprit and self._culprit[0] == self._numbers.get(bundle.name):
            return CANNOT_LOAD
        return Failure("cell_crashed", "the process of the function ended", retryable=True)

    def _failed(self, run: Run) -> None:
        self._drop_tasks(run)
        if self._refusal:
            run.caller.refused(run.request, self._refusal)
            return
        error = ErrorInfo("cell_crashed", "the process of the function ended", retryable=not run.sent)
        if self._culprit:
            culprit, code = self._culprit
            if culprit is run or culprit == self._numbers.get(run.bundle.name):
                error = limit_error(run, code)
        self._fail(run, error)

    def _fail(self, run: Run, error: ErrorInfo) -> None:
        wall_us = min(int((time.monotonic() - run.started) * 1e6), 0xFFFF_FFFF)
        result = encode_failed(error, queue_us=run.queue_us, wall_us=wall_us, fetches=run.fetches)
        run.caller.finished(run.request, result[:QUEUE_BYTES], result[QUEUE_BYTES:])

    def _in_memory_trouble(self) -> tuple[int, str] | None:
        """The one bundle that was being run when the memory ran out, if it was one."""
        assert self.process
        box = self.process.black_box()
        entered = {number for number in (box.bundle, *box.others) if number}
        if not entered:
            entered = {self._numbers.get(run.bundle.name, 0) for run in self.runs.values()}
        return (entered.pop(), "memory_limit") if len(entered) == 1 else None

    def _drop_tasks(self, run: Run) -> None:
        for task in (run.working or {}).values():
            task.cancel()

    def _next_id(self) -> int:
        self._ids = self._ids % 0xFFFF_FFFF + 1
        return self._ids


def limit_error(run: Run, code: str) -> ErrorInfo:
    """What a call ends with that has passed a limit."""
    limits = run.bundle.limits
    message = {
        "timeout": f"the call took longer than {run.timeout_ms} ms",
        "cpu_limit": f"the call used more than {limits.cpu_ms} ms of CPU time",
        "memory_limit": f"the function used more than {limits.memory_mb} MB of memory",
    }[code]
    return ErrorInfo(code, message)


def _parts(argument: bytes) -> tuple[bytes, bytes]:
    (length,) = TEXT_LENGTH.unpack_from(argument)
    end = TEXT_LENGTH.size + length
    return argument[TEXT_LENGTH.size : end], argument[end:]


def _refuse(run: Run, seq: int, error: Exception) -> None:
    name = error.name if isinstance(error, subtle.Refused) else "OperationError"
    run.answer(seq, ok=False, text=_json(HostFailure(name, str(error))))


def _plain(limits: Limits) -> dict[str, int]:
    return {"timeout_ms": limits.timeout_ms, "cpu_ms": limits.cpu_ms, "memory_mb": limits.memory_mb}
