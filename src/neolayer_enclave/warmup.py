"""Isolates made shortly before they are needed: functions that are called at a steady pace are expected again.

A function that is called often never loses its isolate, and nothing has to be done for it. One that is called
every ten minutes loses it to others, or its whole cell with it. What is learned here is only when to look: whether
the isolate is still there is for its cell to say.
"""

import asyncio
import heapq
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from neolayer_enclave.bundle import Bundle
from neolayer_enclave.cell import CannotWarm, NoCapacity
from neolayer_enclave.cells import Cells

type Key = tuple[str, str]

#: Weight of the newest gap in the running means.
GAP_WEIGHT: Final = 0.3
#: So many steady gaps make a pace.
LEAST_GAPS: Final = 3
#: Shorter ones do not outlast an isolate's stay; longer ones are not worth remembering; seconds.
GAPS_S: Final = (1.0, 26 * 3600.0)
#: A pace is steady when gaps differ from their mean by no more than this part of it.
STEADY: Final = 0.25
#: How long before the expected call an isolate is made: to start a process, on a busy machine; seconds.
LEAD_S: Final = 0.5
FUNCTIONS: Final = 10_000
MEMORY_S: Final = 2.0
#: Shares of memory still available: below the first isolates at rest must shrink, below the second they must go.
LOW, VERY_LOW = 0.10, 0.05
SHRUNK_BYTES: Final = 32 * 1024 * 1024

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Pace:
    """Running means of one function's gaps; seconds."""

    last: float
    gap: float = 0.0
    deviation: float = 0.0
    gaps: int = 0

    def note(self, now: float) -> None:
        gap = now - self.last
        self.last = now
        if gap < GAPS_S[0]:
            return  # calls at once are one arrival
        self.gaps += 1
        if self.gaps == 1:
            self.gap, self.deviation = gap, 0.0
        else:
            self.deviation += GAP_WEIGHT * (abs(gap - self.gap) - self.deviation)
            self.gap += GAP_WEIGHT * (gap - self.gap)

    @property
    def steady(self) -> bool:
        low, high = GAPS_S
        return self.gaps >= LEAST_GAPS and low <= self.gap <= high and self.deviation <= STEADY * self.gap

    @property
    def margin(self) -> float:
        """By how much the next call may miss its time."""
        return 2 * self.deviation + LEAD_S


class Forecast:
    """When functions are expected; knows nothing of isolates."""

    def __init__(self) -> None:
        self._paces: OrderedDict[Key, Pace] = OrderedDict()

    def note(self, key: Key, now: float) -> float | None:
        """A call came. Returns when to be ready for the next one, if that can be said."""
        pace = self._paces.get(key)
        if pace is None:
            pace = self._paces[key] = Pace(now)
            if len(self._paces) > FUNCTIONS:
                self._paces.popitem(last=False)
        else:
            pace.note(now)
            self._paces.move_to_end(key)
        return max(now, now + pace.gap - pace.margin) if pace.steady else None

    def latest(self, key: Key) -> float:
        """When a call that has not come was not going to."""
        pace = self._paces.get(key)
        return pace.last + pace.gap + pace.margin if pace else 0.0

    def forget(self, key: Key) -> None:
        """The pace has been lost: it must be found anew."""
        self._paces.pop(key, None)


class Bundles(Protocol):
    def known(self, tenant: str, name: str) -> Bundle | None: ...


class WarmUp:
    """Watches calls and memory; makes isolates ahead and lets those at rest go."""

    def __init__(self, bundles: Bundles, cells: Cells, memory: Callable[[], float]) -> None:
        self._bundles = bundles
        self._cells = cells
        self._memory = memory
        self._forecast = Forecast()
        #: When to look after a function, by time; one entry a function, which may have been put off meanwhile.
        self._due: list[tuple[float, Key]] = []
        #: When that really is.
        self._wanted: dict[Key, float] = {}
        #: Made for an expected call: until when it is waited for.
        self._expected: dict[Key, float] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._low = False
        self.right = 0
        self.wasted = 0

    def called(self, bundle: Bundle) -> None:
        """A function is called now."""
        key = bundle.tenant, bundle.name
        if self._expected.pop(key, None) is not None:
            self.right += 1
        due = self._forecast.note(key, time.monotonic())
        if due is None:
            self._wanted.pop(key, None)
            return
        before = self._wanted.get(key, math.inf)
        self._wanted[key] = due
        if due < before:
            heapq.heappush(self._due, (due, key))
            self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_memory())
                group.create_task(self._meet_calls())
        finally:
            for task in self._work:
                task.cancel()

    async def _meet_calls(self) -> None:
        while True:
            now = time.monotonic()
            for key in [key for key, latest in self._expected.items() if now > latest]:
                del self._expected[key]
                self._forecast.forget(key)
                self.wasted += 1
            while self._due and self._due[0][0] <= now:
                _, key = heapq.heappop(self._due)
                due = self._wanted.get(key, math.inf)
                if due <= now:
                    del self._wanted[key]
                    task = asyncio.get_running_loop().create_task(self._meet(key))
                    self._work.add(task)
                    task.add_done_callback(self._work.discard)
                elif due < math.inf:
                    heapq.heappush(self._due, (due, key))
            times = [*self._expected.values(), *(due for due, _ in self._due[:1])]
            self._changed.clear()
            try:
                async with asyncio.timeout(max(0.01, min(times) - now) if times else None):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _meet(self, key: Key) -> None:
        bundle = self._bundles.known(*key)
        # Nobody else's cell makes room for a guess.
        if bundle is None or self._low or not self._cells.has_room_for(bundle.tenant):
            return
        try:
            was_warm = await self._cells.of(bundle.tenant).warm(bundle)
        except (CannotWarm, NoCapacity):
            return
        latest = self._forecast.latest(key)
        # A call may have come meanwhile: then it was met, if not yet quite.
        if not was_warm and time.monotonic() < latest and key not in self._wanted:
            self._expected[key] = latest
            self._changed.set()

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(MEMORY_S)
            share = self._memory()
            if share < LOW:
                if not self._low:
                    _log.warning("%.0f %% of memory is left: isolates at rest are ended", 100 * share)
                self._cells.shrink(0 if share < VERY_LOW else SHRUNK_BYTES)
            self._low = share < LOW


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Share of memory that can still be had: the machine's or the container's, whichever is less."""
    share = 1.0
    try:
        values = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.read_text().splitlines()}
        share = values["MemAvailable"] / values["MemTotal"]
        most, current = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if most != "max":
            # The page cache in it can be had back.
            stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            used = int(current) - int(stat["inactive_file"])
            share = min(share, 1 - used / int(most))
    except (OSError, KeyError, ValueError):
        pass  # a system without the one or the other
    return share
