"""All cells: which tenant has one, and which makes room when there are too many."""

import asyncio
import logging
from collections import deque
from pathlib import Path
from typing import Final

from neolayer_enclave.cell import CELL_RSS_BYTES, Bundle, Cell, NoCapacity
from neolayer_enclave.egress import Egress
from neolayer_enclave.loading import Loading
from neolayer_enclave.protocol import Failure

WATCH_S: Final = 0.02

_log = logging.getLogger(__name__)


class Cells:
    """All cells, at most ``most`` at a time; the one unused for longest makes room."""

    def __init__(
        self, node: Path, web: Egress, loading: Loading, *, most: int, rss_bytes: int = CELL_RSS_BYTES
    ) -> None:
        self._node = node
        self._egress = web
        self.loading = loading
        self._most = most
        self._rss_bytes = rss_bytes
        #: By tenant, the most recently used last.
        self._cells: dict[str, Cell] = {}
        self._ending: set[Cell] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._closing = False
        self.started = 0
        self.crashed = 0

    @property
    def egress_allow_private(self) -> bool:
        return self._egress.allow_private

    @property
    def count(self) -> int:
        return len(self._cells)

    @property
    def isolates(self) -> int:
        return sum(cell.isolates for cell in self._cells.values())

    @property
    def running(self) -> int:
        return sum(len(cell.runs) for cell in self._cells.values())

    def of(self, tenant: str) -> "Cell":
        """The tenant's cell, started if need be.

        Raises:
            NoCapacity: all cells are busy.
        """
        cell = self._cells.pop(tenant, None)
        if cell is None:
            if len(self._cells) >= self._most:
                self._make_room()
            cell = Cell(tenant, self._node, self._egress, self.loading, self._rss_bytes, self._gone)
            self.started += 1
        self._cells[tenant] = cell
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return cell

    def has_room_for(self, tenant: str) -> bool:
        """Whether the tenant has a cell, or can get one without another's end."""
        return tenant in self._cells or len(self._cells) < self._most

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
        for cell in list(self._cells.values()):
            cell.end("the enclave is stopping")
        await asyncio.gather(*(cell.ended.wait() for cell in list(self._ending)))

    def _make_room(self) -> None:
        idle = next((cell for cell in self._cells.values() if cell.idle), None)
        if idle is None:
            raise NoCapacity("all cells are busy")
        idle.end("room is needed")

    def _gone(self, cell: "Cell", *, crashed: bool) -> None:
        # Called when a cell takes no more calls; its process may take a moment longer.
        if self._cells.get(cell.tenant) is cell:
            del self._cells[cell.tenant]
        self._ending.add(cell)
        cell.burial.add_done_callback(lambda _: self._ending.discard(cell))
        self.crashed += crashed
        waiting, cell.waiting = cell.waiting, deque()
        for run in waiting:
            try:
                if self._closing:
                    raise NoCapacity("the enclave is stopping")
                self.of(cell.tenant).take(run)
            except NoCapacity as error:
                run.caller.refused(run.request, Failure("no_capacity", str(error), retryable=True))

    async def _watch(self) -> None:
        try:
            while any(not cell.idle for cell in self._cells.values()):
                await asyncio.sleep(WATCH_S)
                for cell in list(self._cells.values()):
                    if not cell.idle:
                        cell.watch()
        except OSError:
            _log.exception("the cells are not watched until the next call")
        finally:
            self._watcher = None
