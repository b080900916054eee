"""All cells: which tenant has one, which makes room when there are too many, and who waits for one.

A tenant that has no cell gets a blank spare, or a new process as long as there are fewer than ``most``, or the
place of the cell that was unused for longest. When all are busy it waits: tenants are served in the order in which
they came, and meanwhile the cells that were held for longest take no more calls, so that they come free also when
their tenants never pause. Those tenants line up again at the end.
"""

import asyncio
import logging
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from neolayer_enclave.bundle import Bundle
from neolayer_enclave.cell import CELL_RSS_BYTES, Cell, NoCapacity, TooManyCalls
from neolayer_enclave.egress import Egress
from neolayer_enclave.hardening import Hardening
from neolayer_enclave.loading import Loading
from neolayer_enclave.process import CellProcess
from neolayer_enclave.protocol import Failure
from neolayer_enclave.run import refuse

WATCH_S: Final = 0.02
#: How long a tenant waits for a cell before its calls are refused; less than the host waits beyond a call's limit.
WAIT_S: Final = 8.0
#: How long when there is room, and only too many processes are starting: then the end is in sight.
START_WAIT_S: Final = 30.0
#: Tenants that may wait at a time.
MAX_WAITING: Final = 256
#: A cell stays with its tenant for so long even when others wait: changing costs more than it gives.
TENURE_S: Final = 1.0
#: Processes that start at a time: each takes a processor for a while, so more at once only makes all of them late.
STARTS: Final = max(2, os.cpu_count() or 1)
#: No call goes on for so long, its wait for its turn included.
LEAVE_S: Final = 40.0
#: A spare is made this long after the last one was taken, out of the way of the call that took it.
REFILL_AFTER_S: Final = 0.25
SPARE_DIED_S: Final = 2.0
#: What a cell costs with a few isolates in it, mostly shared: a blank one shows 48 MB, of which 11 are its own.
CELL_BYTES: Final = 60 * 1024 * 1024
IDLE_S: Final = 300.0
#: How often at least is looked for unused cells.
REAP_S: Final = 5.0
SPARE: Final = 2
#: Of a tenant's cells that crashed in this time each doubles how long it waits for the next, from the second on.
CRASHES_S: Final = 10.0
CRASH_WAIT_S: Final = 0.1
MAX_CRASH_WAIT_S: Final = 2.0
#: Cells whose end is remembered for those who ask what became of their calls.
MAX_BURIED: Final = 256

_log = logging.getLogger(__name__)


def most_cells() -> int:
    """Cells that fit into half of the machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(max(memory // 2 // CELL_BYTES, 8), 512)


class Cells:
    """All cells, at most ``most`` at a time, and ``spare`` blank processes on top."""

    def __init__(
        self,
        hardening: Hardening,
        web: Egress,
        loading: Loading,
        *,
        most: int,
        spare: int = 0,
        idle_s: float = IDLE_S,
        wait_s: float = WAIT_S,
        rss_bytes: int = CELL_RSS_BYTES,
    ) -> None:
        self.hardening = hardening
        self._egress = web
        self.loading = loading
        self._most = most
        self._spare = spare
        self._idle_s = idle_s
        self._wait_s = wait_s
        self._rss_bytes = rss_bytes
        #: By tenant, those that wait for a process too; the most recently used last.
        self._cells: dict[str, Cell] = {}
        #: Which of them wait, and since when; in the order in which they are served.
        self._waiting: dict[Cell, float] = {}
        #: Cells that take no more calls and end with their last one.
        self._leaving: set[Cell] = set()
        self._ending: set[Cell] = set()
        self._blank: deque[CellProcess] = deque()
        self._starting: set[CellProcess] = set()
        self._processes: set[CellProcess] = set()
        #: When the cells of a tenant crashed; `time.monotonic`.
        self._crashes: dict[str, list[float]] = {}
        #: By number.
        self._buried: OrderedDict[int, Cell] = OrderedDict()
        #: The last one given to a cell; those of another process of the enclave are others.
        self._numbers = int.from_bytes(os.urandom(4)) << 24
        #: Told of the bundles of calls that come to the cells directly.
        self.used: Callable[[Bundle], None] = lambda _: None
        self._taken = 0.0
        self._watcher: asyncio.Task[None] | None = None
        self._reaper: asyncio.TimerHandle | None = None
        self._closing = False
        self.started = 0
        self.crashed = 0

    @property
    def egress_allow_private(self) -> bool:
        return self._egress.allow_private

    @property
    def count(self) -> int:
        """Cells that have a process."""
        return len(self._cells) - len(self._waiting) + len(self._leaving)

    @property
    def isolates(self) -> int:
        return sum(cell.isolates for cell in self._cells.values())

    @property
    def running(self) -> int:
        return sum(len(cell.runs) for cell in (*self._cells.values(), *self._leaving))

    @property
    def spares(self) -> int:
        """Blank processes that are up."""
        return sum(process.up for process in self._blank)

    @property
    def waiting(self) -> int:
        """Tenants that wait for a cell."""
        return len(self._waiting)

    async def open(self, blank: CellProcess | None) -> None:
        """Begin to keep spares; ``blank`` is one that runs already."""
        if blank and self._spare:
            self._processes.add(blank)
            blank.ended.add_done_callback(lambda _: self._ended(blank))
            self._blank.append(blank)
        elif blank:
            await blank.discard()
        self._tend()
        self._reap()

    def of(self, tenant: str, *, nested: bool = False) -> Cell:
        """The tenant's cell; a new one may wait for a process.

        Args:
            nested: for a call made by a running function. If that can only run in a cell that is leaving, this is
                the one: another would wait for its place, and it for the call.

        Raises:
            NoCapacity: all cells are busy and too many tenants wait.
        """
        if nested and self._leaving and (leaving := self._left_by(tenant)):
            return leaving
        cell = self._cells.pop(tenant, None)
        if cell is None:
            if len(self._waiting) >= MAX_WAITING:
                raise NoCapacity("all cells are busy")
            self._numbers += 1
            cell = Cell(self._numbers, tenant, self._egress, self.loading, self._rss_bytes, self)
            self._waiting[cell] = time.monotonic() + self._penance(tenant)
            self._cells[tenant] = cell
            self._serve()
        else:
            cell.used = time.monotonic()
            self._cells[tenant] = cell
        if self._watcher is None:
            self._tend()
        return cell

    def at_hand(self, tenant: str) -> Cell | None:
        """The tenant's cell, if there is one already."""
        return self._cells.get(tenant)

    def by_number(self, number: int) -> Cell | None:
        """A cell, also one that ended not long ago."""
        living = (*self._cells.values(), *self._leaving)
        return self._buried.get(number) or next((cell for cell in living if cell.number == number), None)

    def _left_by(self, tenant: str) -> Cell | None:
        """The cell that a tenant is leaving and that has no successor yet."""
        successor = self._cells.get(tenant)
        if successor is not None and successor not in self._waiting:
            return None
        return next((cell for cell in self._leaving if cell.tenant == tenant), None)

    def has_room_for(self, tenant: str) -> bool:
        """Whether the tenant has a cell, or can get one without another's end."""
        return tenant in self._cells or self.count + len(self._waiting) < self._most

    def shrink(self, most_bytes: int) -> None:
        """End isolates at rest until those of each cell hold no more than that."""
        for cell in self._cells.values():
            cell.shrink(most_bytes)

    def unload(self, bundle: Bundle) -> None:
        if cell := self._cells.get(bundle.tenant):
            cell.unload(bundle)

    async def close(self) -> None:
        self._closing = True
        if self._watcher:
            self._watcher.cancel()
        if self._reaper:
            self._reaper.cancel()
        for cell in [*self._cells.values(), *self._leaving]:
            cell.end("the enclave is stopping")
        for process in self._processes:
            process.kill()
        await asyncio.gather(
            *(cell.ended.wait() for cell in list(self._ending)), *(each.ended for each in list(self._processes))
        )

    # --- processes for those that wait -----------------------------------------------------------------------

    def _serve(self) -> None:
        """Give processes to as many waiting cells as can have one now."""
        now = time.monotonic()
        for cell, due in list(self._waiting.items()):
            if due > now:
                continue
            if self.count >= self._most and not self._make_room():
                break
            # Spares are for those whose cells last.
            crashes = bool(self._crashes.get(cell.tenant))
            spare = bool(self._blank) and not crashes
            if not spare and len(self._starting) >= STARTS:
                break
            try:
                process = self._blank.popleft() if spare else self._start(behind=crashes)
            except OSError as error:
                _log.error("a cell cannot be started: %s: %s", error.filename, error.strerror)
                cell.refuse(Failure("no_capacity", "a cell cannot be started", retryable=True))
                continue
            del self._waiting[cell]
            self.started += 1
            self._taken = now
            if process.behind and not crashes:
                process.promote()
            cell.bind(process)

    def _start(self, *, behind: bool) -> CellProcess:
        process = self.hardening.start(self._ended, behind=behind)
        self._processes.add(process)
        self._starting.add(process)
        return process

    def _ended(self, process: CellProcess) -> None:
        self._processes.discard(process)
        self._starting.discard(process)
        if process in self._blank:
            self._blank.remove(process)
            process.socket.close()
            if self._closing:
                return
            _log.warning("a spare cell ended with %s: %s", process.ended.result(), process.last_words())
            # Not at once again: what ends one may end the next.
            self._taken = time.monotonic() + SPARE_DIED_S

    def _refill(self, now: float) -> None:
        """Make one spare at a time, when nobody needs the processors more."""
        if self._starting or self._waiting or len(self._blank) >= self._spare:
            return
        if now < self._taken + REFILL_AFTER_S:
            return
        try:
            self._blank.append(self._start(behind=True))
        except OSError as error:
            _log.error("a spare cell cannot be started: %s: %s", error.filename, error.strerror)
            self._taken = now + self._wait_s

    def _make_room(self) -> bool:
        """End the cell that was unused for longest; if all are busy, see that some will not be for ever."""
        now = time.monotonic()
        for cell in self._cells.values():
            if cell.idle and cell not in self._waiting:
                cell.end("room is needed")
                return True
        bound = [cell for cell in self._cells.values() if cell not in self._waiting]
        for cell in sorted(bound, key=lambda cell: cell.bound)[: max(0, len(self._waiting) - len(self._leaving))]:
            if now - cell.bound > TENURE_S:
                del self._cells[cell.tenant]
                self._leaving.add(cell)
                cell.leave()
        return False

    def _penance(self, tenant: str) -> float:
        """How long a tenant waits whose cells crash again and again: starting them takes from the others."""
        crashes = self._crashes.get(tenant, [])
        crashes[:] = [at for at in crashes if time.monotonic() - at < CRASHES_S]
        if not crashes:
            self._crashes.pop(tenant, None)
        return min(CRASH_WAIT_S * 2 ** (len(crashes) - 2), MAX_CRASH_WAIT_S) if len(crashes) > 1 else 0.0

    # --- Owner of the cells ---------------------------------------------------------------------------------

    def touched(self, cell: Cell, bundle: Bundle | None) -> None:
        if self._cells.get(cell.tenant) is cell:
            self._cells[cell.tenant] = self._cells.pop(cell.tenant)
        if bundle:
            self.used(bundle)
        if self._watcher is None:
            self._tend()

    def gone(self, cell: Cell, *, crashed: bool) -> None:
        self._buried[cell.number] = cell
        if len(self._buried) > MAX_BURIED:
            self._buried.popitem(last=False)
        if self._cells.get(cell.tenant) is cell:
            del self._cells[cell.tenant]
        self._waiting.pop(cell, None)
        self._leaving.discard(cell)
        self._ending.add(cell)
        cell.burial.add_done_callback(lambda _: self._ending.discard(cell))
        self.crashed += crashed
        if crashed:
            self._crashes.setdefault(cell.tenant, []).append(time.monotonic())
        waiting, cell.waiting = cell.waiting, deque()
        for run in waiting:
            try:
                if self._closing:
                    raise NoCapacity("the enclave is stopping")
                self.of(cell.tenant).take(run)
            except NoCapacity as error:
                refuse(run, Failure("no_capacity", str(error), retryable=True))
            except TooManyCalls as error:
                refuse(run, Failure("too_many_calls", str(error), retryable=True))

    # --- watching ---------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        if self._watcher is None and not self._closing:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        try:
            while self._busy():
                await asyncio.sleep(WATCH_S)
                self._look()
        except OSError:
            _log.exception("the cells are not watched until the next call")
        finally:
            self._watcher = None

    def _busy(self) -> bool:
        if self._starting or self._waiting or self._leaving or len(self._blank) < self._spare:
            return True
        return any(not cell.idle for cell in self._cells.values())

    def _look(self) -> None:
        now = time.monotonic()
        for cell in (*self._cells.values(), *self._leaving):
            if not cell.idle:
                cell.watch()
        for cell in list(self._leaving):
            if cell.idle:
                cell.end("its tenant had it for long and others wait")
            elif now > cell.left + LEAVE_S:
                cell.kill("it does not come to rest")
        self._starting = {process for process in self._starting if not process.up}
        full = self.count >= self._most
        for cell, since in list(self._waiting.items()):
            if cell.idle:
                cell.end("nobody waits for it any more")
            elif now > since + (self._wait_s if full else START_WAIT_S):
                cell.refuse(Failure("no_capacity", "all cells are busy", retryable=True))
        self._serve()
        self._refill(now)

    def _reap(self) -> None:
        """End cells that nobody has used for long, and forgive those whose cells have lasted."""
        now = time.monotonic()
        self._crashes = {tenant: at for tenant, at in self._crashes.items() if now - at[-1] < CRASHES_S}
        for cell in list(self._cells.values()):
            if cell.process and cell.process.behind and cell.tenant not in self._crashes:
                cell.process.promote()
            if cell.idle and now - cell.used > self._idle_s and cell not in self._waiting:
                cell.end("it was unused")
        self._reaper = asyncio.get_running_loop().call_later(min(max(self._idle_s / 10, 0.05), REAP_S), self._reap)
