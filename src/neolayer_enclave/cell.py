"""A cell: the Node process in which one tenant's functions run. See ``runner/cell.mjs`` for the other end.

A cell is expected to enforce every limit itself. What it cannot do, because V8 aborts, parks or eats the machine,
is done from here: such a cell is killed, its running calls fail, and the next call of the tenant gets a new one.
"""

import asyncio
import contextlib
import logging
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from neolayer_enclave import egress
from neolayer_enclave.bundle import Bundle, plain
from neolayer_enclave.frames import FramePeer
from neolayer_enclave.loading import FORM_CHECKED, Loading
from neolayer_enclave.process import BlackBox, CellProcess
from neolayer_enclave.protocol import (
    DIRECT_BIT,
    DIRECT_CONNECTIONS,
    DIRECT_IDS,
    MAX_FRAME_BYTES,
    QUEUE_BYTES,
    ErrorInfo,
    Failure,
    Limits,
    encode_failed,
)
from neolayer_enclave.run import TIMEOUT_AT, Caller, Run, refuse
from neolayer_enclave.services import Services, drop_work

LOAD, UNLOAD, INVOKE, DELIVER, CANCEL, CHECK = range(1, 7)
RESULT, CALL, CHECKED = range(16, 19)
#: How functions become isolates, see `loading`.
OPTIONS, WARM, SHRINK = range(32, 35)
CODE, LOADED, FIRST, WARMED, UP = range(48, 53)
#: Of calls that the host sends to the cell directly.
LEAVE = 36
BUSY, USED, BEGAN, ENDED, CLOSED = range(64, 69)
#: Of a RESULT, where the count of the cell's isolates is; the rest of it is `protocol.RESULT_HEAD` without the
#: queue's time, which the cell does not know.
ISOLATES: Final = struct.Struct("<3xH")
U32: Final = struct.Struct("<I")
CALL_HEAD: Final = struct.Struct("<IB")
DELIVER_HEAD: Final = struct.Struct("<IBI")
#: Bundle, ms since it came, ms until its deadline.
BEGAN_BODY: Final = struct.Struct("<III")
#: Bundle, calls.
USED_PART: Final = struct.Struct("<II")
WARM_FAILED, WARM_MADE, WARM_WAS_THERE = range(3)

#: How long after its deadline a call may stay unanswered before the cell counts as hung. With the time to notice
#: and to kill it is below the 0.5 s that callers are promised.
GRACE_S: Final = 0.4
#: A busy cell that is in no function and says nothing for so long counts as hung.
SILENT_S: Final = 10.0
#: An entry on a cell's main thread that runs for so long is looked at more closely.
LONG_S: Final = 0.05
#: What a cell may hold beside its functions, whose own limits come on top.
CELL_RSS_BYTES: Final = 512 * 1024 * 1024
#: Calls of a tenant that run at a time, and that wait for their turn. As in `runner/direct.mjs`.
MAX_RUNNING: Final = 64
MAX_WAITING: Final = 256
#: The longest that one waits.
WAIT_S: Final = 5.0
#: Calls made by running functions never wait, or those that wait for them would wait for ever.
MAX_NESTED: Final = 512
#: Of the inputs of calls that wait.
MAX_WAITING_BYTES: Final = 32 * 1024 * 1024
#: What a cell sends grows a little on its way to the host; a frame too long would end the connection of all.
MAX_BODY_BYTES: Final = MAX_FRAME_BYTES - 65_536
CHECK_LIMITS: Final = Limits(timeout_ms=5_000, cpu_ms=1_000, memory_mb=128)
#: Longer than any call of an unloaded bundle goes on.
UNLOADED_S: Final = 40.0
#: Direct connections of a cell at a time: one for each process of the host. A cell may have 64 descriptors.
MAX_CONNECTIONS: Final = 24
#: That a cell ended is known here so much later than at the other ends of its connections, at most.
LOST_S: Final = 1.0
#: For a new process to come up on a busy machine.
STARTING_S: Final = 10.0

_log = logging.getLogger(__name__)


#: Of calls that are not to blame for the end of their cell.
CRASHED: Final = ErrorInfo("cell_crashed", "the process of the function ended", retryable=True)


class CheckReply(msgspec.Struct, frozen=True):
    code: str
    message: str
    line: int | None = None
    column: int | None = None


_decode_check = msgspec.json.Decoder(CheckReply | None).decode
_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Culprit:
    """Whose fault the end of a cell is."""

    #: Of the error that its calls get.
    code: str
    #: The id of a call, or the number of a bundle, all of whose calls it concerns.
    call: int = 0
    bundle: int = 0


class Owner(Protocol):
    """Who has the cell."""

    def gone(self, cell: "Cell", *, crashed: bool) -> None:
        """It takes no more calls; its process may take a moment longer."""

    def touched(self, cell: "Cell", bundle: Bundle | None) -> None:
        """Calls come to it directly, of this bundle if one is named."""


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


class NotUp(Exception):
    """The cell cannot be spoken to directly just now."""


class TooManyCalls(Exception):
    """The tenant has as many calls running and waiting as it may."""


class Cell(FramePeer):
    """One Node process and what runs in it. Frames sent before it has one, or is up, wait."""

    def __init__(
        self, number: int, tenant: str, web: egress.Egress, loading: Loading, rss_bytes: int, owner: Owner
    ) -> None:
        super().__init__()
        self.number = number
        self.tenant = tenant
        self.process: CellProcess | None = None
        #: `time.monotonic` of the last time it was asked for, and of when it got its process.
        self.used = time.monotonic()
        self.bound = 0.0
        #: And of when it was told to take no further calls.
        self.left = 0.0
        self.runs: dict[int, Run] = {}
        #: Calls that wait for their turn.
        self.waiting: deque[Run] = deque()
        self.isolates = 0
        self.ended = asyncio.Event()
        self.burial: asyncio.Task[None]
        self._services = Services(web)
        self._loading = loading
        self._rss_bytes = rss_bytes
        self._owner = owner
        #: Calls that came directly are running, or were a moment ago.
        self._busy = False
        self._heard = 0.0
        #: Numbers of its direct connections, and the last one given.
        self._connections: set[int] = set()
        self._connection = 0
        #: Why direct calls failed that it had told of; kept for `fate`.
        self._told: dict[int, ErrorInfo] = {}
        self._checks: dict[int, asyncio.Future[CheckReply | None]] = {}
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
        self._culprit: Culprit | None = None
        self._crashed = False
        self._over = asyncio.Event()

    @property
    def idle(self) -> bool:
        return not (self._busy or self.runs or self.waiting or self._checks or self._warms)

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
        run.id = self._next_id()
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
            content = _json({"file": "function.js", "source": source, "limits": plain(CHECK_LIMITS)})
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
            # Calls that came directly may still need it.
            asyncio.get_running_loop().call_later(UNLOADED_S, self._loaded.pop, number, None)
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

    # --- direct calls -------------------------------------------------------------------------------------

    def hand_over(self, descriptor: int) -> int:
        """Give the cell a connection of the host; returns the least id of the calls that may come on it.

        Raises:
            NotUp: there is no process, or not yet, or no longer; or it has as many connections as it may.
        """
        if self._over.is_set() or self.process is None or not self.process.up:
            raise NotUp
        if len(self._connections) >= MAX_CONNECTIONS:
            raise NotUp
        number = (self._connection + 1) % DIRECT_CONNECTIONS
        while number in self._connections:
            number = (number + 1) % DIRECT_CONNECTIONS
        first = DIRECT_BIT | number * DIRECT_IDS
        try:
            self.process.hand_over(descriptor, first)
        except OSError as error:
            raise NotUp from error
        self._connection = number
        self._connections.add(number)
        return first

    def leave(self) -> None:
        """Have it refuse further calls that come directly."""
        self.left = time.monotonic()
        self._tell(LEAVE, 0)

    async def fate(self, calls: list[tuple[int, bytes]]) -> list[ErrorInfo | None]:
        """What became of direct calls after the cell's end; see `protocol.Fate`.

        If it lives on, they were cancelled with their connection, whoever closed that.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOST_S):
                await self._over.wait()
            # The connection is gone before the process is.
            async with asyncio.timeout(STARTING_S):
                await self.ended.wait()
        numbers = {bundle.handle: number for number, bundle in self._loaded.items()}
        return [self._fate(id, numbers.get(handle, 0)) for id, handle in calls]

    def _fate(self, id: int, number: int) -> ErrorInfo | None:
        # Without a number it is another tenant's, or its bundle was unloaded long ago.
        if number and (told := self._told.get(id)):
            return told
        if self._over.is_set() and not self._crashed:
            return None
        bundle = self._loaded.get(number)
        if bundle and self._is_guilty(id, number):
            assert self._culprit
            return limit_error(bundle.limits, bundle.limits.timeout_ms, self._culprit.code)
        # The enclave was not told of it, so that nothing came of it, and another one's limit ended the cell.
        return None if self._culprit else CRASHED

    def _began(self, id: int, body: bytes) -> None:
        """A direct call asks for something, or does not end at once."""
        number, age_ms, left_ms = BEGAN_BODY.unpack(body)
        if id in self.runs or not id & DIRECT_BIT or len(self.runs) > 2 * (MAX_RUNNING + MAX_NESTED):
            raise ValueError("a cell tells of a call that cannot be")
        now = time.monotonic()
        # A bundle may have been unloaded since.
        if bundle := self._loaded.get(number):
            started = now - age_ms / 1000
            left_ms = min(left_ms, bundle.limits.timeout_ms)
            content = bytes(TIMEOUT_AT) + U32.pack(min(age_ms + left_ms, bundle.limits.timeout_ms))
            self.runs[id] = Run(None, id, bundle, content, self, started, id, started, now + left_ms / 1000)

    def _used(self, isolates: int, body: bytes) -> None:
        self.isolates = isolates
        if len(body) > USED_PART.size * self._bundles:
            raise ValueError("a cell uses more bundles than it has")
        for number, calls in USED_PART.iter_unpack(body):
            if bundle := self._loaded.get(number):
                self._loading.called(bundle, calls)
                self._touch(bundle)

    def _touch(self, bundle: Bundle | None = None) -> None:
        self.used = time.monotonic()
        self._owner.touched(self, bundle)

    # --- calls that run -----------------------------------------------------------------------------------

    def deliver(self, run: Run, seq: int, *, ok: bool, text: bytes, body: bytes) -> None:
        if self.runs.get(run.id) is run:
            self._tell(DELIVER, run.id, DELIVER_HEAD.pack(seq, ok, len(text)), text, body)

    def cancel(self, run: Run) -> None:
        """End a call whose result nobody waits for."""
        if self.runs.pop(run.id, None):
            drop_work(run)
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
            refuse(run, Failure("too_many_calls", message, retryable=True))
        if self.process is None or self._over.is_set():
            return
        now = time.monotonic()
        box = self.process.black_box()
        if self._up_since is None and box.since:
            self._up_since = now
        if self._limits_on_main(box):
            if now - box.since > LONG_S:
                self._watch_main(box, now)
        elif late := next((run for run in self.runs.values() if now > self._latest(run)), None):
            self._culprit = Culprit("timeout", call=late.id)
            self.kill("a call was not ended at its deadline")
            return
        elif self._busy and now > self._heard + SILENT_S:
            self.kill("it says nothing")
            return
        if self._over.is_set():
            return
        bundles = {run.bundle for run in self.runs.values()}
        bundles.update(self._loaded[each] for each in (box.bundle, *box.others) if each in self._loaded)
        ceiling = self._rss_bytes + sum(bundle.limits.memory_mb for bundle in bundles) * 1024 * 1024
        self.process.limit(ceiling)
        if self.process.over(ceiling):
            self._culprit = self._in_memory_trouble()
            self.kill(f"it holds more than {ceiling >> 20} MB")

    def _limits_on_main(self, box: BlackBox) -> Limits | None:
        """Of the call that is being run on the cell's main thread."""
        if run := self.runs.get(box.call):
            return run.bundle.limits
        # It came just before, or the cell would have told of it.
        bundle = self._loaded.get(box.bundle) if box.call & DIRECT_BIT else None
        return bundle.limits if bundle else None

    def _watch_main(self, box: BlackBox, now: float) -> None:
        """See that an entry on the main thread ends, and that others do not suffer as long as it does not.

        The cell itself ends it by wall time, see `#entryMsHere` there. What V8 does not interrupt is ended here,
        once its CPU time is used up: the machine may be busy.
        """
        limits, run = self._limits_on_main(box), self.runs.get(box.call)
        assert limits
        assert self.process
        if box.since != self._main_since:
            # What it did before it was seen counts in full.
            self._main_since = box.since
            self._main_cpu_s = self.process.main_cpu_s() - (now - box.since)
        cpu_s = limits.cpu_ms / 1000
        late = now > (self._latest(run) if run else box.since + limits.timeout_ms / 1000 + GRACE_S)
        used_up = now > box.since + cpu_s + GRACE_S and self.process.main_cpu_s() - self._main_cpu_s > cpu_s
        if late or used_up:
            self._culprit = Culprit("timeout" if late else "cpu_limit", call=box.call)
            self.kill("a call does not end")
            return
        for other in [other for other in self.runs.values() if other is not run and now > self._latest(other)]:
            # The cell cannot notice that it is due; nor can it be asked to answer one that came directly.
            if other.caller:
                self.cancel(other)
                self._fail(other, limit_error(other.bundle.limits, other.timeout_ms, "timeout"))

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
        self._heard = time.monotonic()
        if kind == RESULT:
            run = self.runs.pop(id, None)
            if run:
                self._finished(run, body)
        elif kind == CALL:
            run = self.runs.get(id)
            if run:
                seq, function = CALL_HEAD.unpack_from(body)
                self._services.serve(run, seq, function, body[CALL_HEAD.size :])
        elif kind == USED:
            self._used(id, body)
        elif kind == BEGAN:
            self._began(id, body)
        elif kind == ENDED:
            if run := self.runs.pop(id, None):
                drop_work(run)
                self._begin_next()
        elif kind == BUSY:
            self._busy = id != 0
            self._touch()
        elif kind == CLOSED:
            self._connections.discard(id)
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
        if run.caller is None:
            raise ValueError("a cell answers a call that is not ours")
        (self.isolates,) = ISOLATES.unpack_from(body)
        if run.working:
            drop_work(run)
        if self.waiting:
            self._begin_next()
        run.caller.finished(run.request, U32.pack(run.queue_us), body)

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
            refuse(self.waiting.popleft(), failure)
        self._stop(crashed=False)

    async def _connect(self, process: CellProcess) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=process.socket)

    def _stop(self, *, crashed: bool) -> None:
        if self._over.is_set():
            return
        self._over.set()
        self._crashed = crashed
        self._unsent = []
        self.burial = asyncio.get_running_loop().create_task(self._bury())
        self._owner.gone(self, crashed=crashed)

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
        self._services.close()
        self._fail_all()
        self.isolates = 0
        # It is kept for a while for those who ask, its functions need not be.
        self._loaded = {number: bundle.name_only() for number, bundle in self._loaded.items()}
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
        if self._culprit and self._culprit.bundle == self._numbers.get(bundle.name):
            return CANNOT_LOAD
        return Failure("cell_crashed", "the process of the function ended", retryable=True)

    def _failed(self, run: Run) -> None:
        drop_work(run)
        if self._refusal:
            refuse(run, self._refusal)
            return
        if self._is_guilty(run.id, self._numbers.get(run.bundle.name, 0)):
            assert self._culprit
            self._fail(run, limit_error(run.bundle.limits, run.timeout_ms, self._culprit.code))
        else:
            self._fail(run, msgspec.structs.replace(CRASHED, retryable=not run.sent))

    def _fail(self, run: Run, error: ErrorInfo) -> None:
        if run.caller is None:
            self._told[run.id] = error
            return
        wall_us = min(int((time.monotonic() - run.started) * 1e6), 0xFFFF_FFFF)
        result = encode_failed(error, queue_us=run.queue_us, wall_us=wall_us, fetches=run.fetches)
        run.caller.finished(run.request, result[:QUEUE_BYTES], result[QUEUE_BYTES:])

    def _is_guilty(self, call: int, number: int) -> bool:
        """Whether a call, or its bundle of that number, is to blame for the end of the cell."""
        culprit = self._culprit
        return culprit is not None and (culprit.call == call or (number > 0 and culprit.bundle == number))

    def _in_memory_trouble(self) -> Culprit | None:
        """The one bundle that was being run when the memory ran out, if it was one."""
        assert self.process
        box = self.process.black_box()
        entered = {number for number in (box.bundle, *box.others) if number}
        if not entered:
            entered = {self._numbers.get(run.bundle.name, 0) for run in self.runs.values()}
        return Culprit("memory_limit", bundle=entered.pop()) if len(entered) == 1 else None

    def _next_id(self) -> int:
        self._ids = self._ids % (DIRECT_BIT - 1) + 1
        return self._ids


def limit_error(limits: Limits, timeout_ms: int, code: str) -> ErrorInfo:
    """What a call ends with that has passed a limit."""
    message = {
        "timeout": f"the call took longer than {timeout_ms} ms",
        "cpu_limit": f"the call used more than {limits.cpu_ms} ms of CPU time",
        "memory_limit": f"the function used more than {limits.memory_mb} MB of memory",
    }[code]
    return ErrorInfo(code, message)
