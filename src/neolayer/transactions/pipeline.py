"""From intent to sent: the pool of workers.

A crash at any point leaves rows that another worker takes up when their lease ends:

* a ``queued`` intent: nothing was stored, so nothing was sent. It is prepared anew.
* a ``signed`` attempt: bytes are stored and may or may not have been sent. The same bytes are sent again, which a
  node answers with "already there" (−501, −503) if it has them.

Bytes are stored by the holder of the lease only, so two workers never make two transactions of one intent.
"""

import asyncio
import contextlib
import logging
import time
from typing import Final
from uuid import UUID

from neolayer.chain.rpc import RpcClient
from neolayer.core.errors import ServiceError
from neolayer.core.ids import uuid7
from neolayer.db.notices import NoticeListener
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.transactions.attempts import Attempt, Attempts
from neolayer.transactions.grouping import Traffic
from neolayer.transactions.model import POOL_TOPIC, TOPIC
from neolayer.transactions.prepare import Preparer
from neolayer.transactions.pricing import Pricing
from neolayer.transactions.queue import UNBOUNDED, WINDOW_BLOCKS, Batch, Queue, Window
from neolayer.transactions.sending import Sender, Signed, delay_s

_SQL: Final = load_queries("neolayer.transactions")
_log = logging.getLogger(__name__)
#: What is due is looked for this often when nothing wakes the workers; seconds.
IDLE_S: Final = 1.0
#: Pause of a worker that cannot even lease; seconds.
PAUSE_S: Final = 2.0
#: On-chain transactions, and intents, of one batch at most.
BATCH_ATTEMPTS: Final = 128
BATCH_INTENTS: Final = 512
#: Traffic is looked at this often at most; seconds.
TRAFFIC_S: Final = 0.2


class Pipeline:
    """Works on several batches at a time. Any number of processes may run one each."""

    def __init__(
        self,
        database: Database,
        queue: Queue,
        attempts: Attempts,
        preparer: Preparer,
        sender: Sender,
        rpc: RpcClient,
        pricing: Pricing,
        notices: NoticeListener,
        *,
        workers: int,
        lease_s: float,
    ) -> None:
        """
        Args:
            workers: batches at a time, unless the deployment's pool is scaled, see `WorkerPool`.
        """
        self._database = database
        self._queue = queue
        self._attempts = attempts
        self._preparer = preparer
        self._sender = sender
        self._rpc = rpc
        self._pricing = pricing
        self._workers = workers
        self._lease_s = lease_s
        self._size = workers
        #: Leases that are worked on.
        self._leases: set[UUID] = set()
        self._leasing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._resize = asyncio.Event()
        #: Whether the last batch was of stored bytes: then new intents come first, so that what nodes put off
        #: again and again holds up nobody.
        self._resent = False
        self._traffic: Traffic | None = None
        self._traffic_at = 0.0
        notices.on(TOPIC, lambda _: self._wake.set())
        notices.on(POOL_TOPIC, lambda _: self._resize.set())

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew())
            tasks.create_task(self._tick())
            tasks.create_task(self._scale(tasks))

    # --- the pool -------------------------------------------------------------------------------------------

    async def _scale(self, tasks: asyncio.TaskGroup) -> None:
        """Keep as many workers as are wanted. One too many ends with its batch."""
        running: dict[int, asyncio.Task[None]] = {}
        while True:
            self._resize.clear()
            with contextlib.suppress(ServiceError):
                row = await self._database.fetch_one(_SQL["pool_size"])
                self._size = self._workers if row is None else row[0]
            for number in range(self._size):
                if number not in running or running[number].done():
                    running[number] = tasks.create_task(self._work(number))
            self._wake.set()
            await self._resize.wait()

    async def _work(self, number: int) -> None:
        while number < self._size:
            self._wake.clear()
            try:
                busy = await self._step()
            except ServiceError as error:
                _log.warning("no lease: %s", error.detail)
                await asyncio.sleep(PAUSE_S)
                continue
            if not busy:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_S):
                        await self._wake.wait()

    async def _renew(self) -> None:
        """The heartbeat: a long step keeps what it works on, a dead worker does not."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            if self._leases:
                try:
                    await self._queue.renew(self._leases)
                except ServiceError as error:
                    _log.warning("leases are not renewed: %s", error.detail)

    async def _tick(self) -> None:
        while True:
            height = None
            with contextlib.suppress(ServiceError):
                height = (await self._pricing.policy()).height
            try:
                await self._queue.wake(height)
            except ServiceError as error:
                _log.warning("the queue is not looked through: %s", error.detail)
            self._wake.set()
            await asyncio.sleep(IDLE_S)

    # --- one batch ------------------------------------------------------------------------------------------

    async def _step(self) -> bool:
        """Whether there was anything to do."""
        async with self._leasing:
            lease = uuid7()
            batch, wanted = await self._new() if self._resent else (Batch(lease, []), 1)
            signed = [] if batch.intents else await self._attempts.lease_signed(lease, BATCH_ATTEMPTS)
            if not signed and not self._resent:
                batch, wanted = await self._new()
            self._resent = bool(signed)
        if not signed and not batch.intents:
            return False
        lease = lease if signed else batch.lease
        self._leases.add(lease)
        try:
            if signed:
                network = (await self._rpc.version()).network
                rows = [row for row in signed if row[3] == network]
                await self._sender.send(
                    lease,
                    [
                        Signed(bytes(txid), bytes(raw), tries, maybe_sent)
                        for _, txid, raw, _, tries, maybe_sent in rows
                    ],
                )
            else:
                await self._advance(batch, wanted)
        except ServiceError as error:
            _log.warning("a batch is left to its lease: %s", error.detail)
        except Exception:
            _log.exception("a batch is left to its lease")
        finally:
            self._leases.discard(lease)
        return True

    async def _new(self) -> tuple[Batch, int]:
        """Intents to be signed, and how many calls one on-chain transaction should carry."""
        limit, wanted, window = await self._limits()
        return (await self._queue.lease(limit, window) if limit else Batch(uuid7(), [])), wanted

    async def _limits(self) -> tuple[int, int, Window]:
        """How many intents to lease now, how many calls to an on-chain transaction, and what a tenant may have on
        its way. Together they may have as much of what was signed lately: see docs, the queue."""
        now = time.monotonic()
        try:
            version = await self._rpc.version()
            if self._traffic is None or now > self._traffic_at + TRAFFIC_S:
                self._traffic = await self._queue.traffic(
                    version.network,
                    block_capacity=version.max_transactions_per_block,
                    pooled=await self._rpc.mempool_size(),
                )
                self._traffic_at = now
        except ServiceError:
            # Leased all the same, so that what waits shows why.
            return BATCH_ATTEMPTS, 1, UNBOUNDED
        traffic = self._traffic
        most = WINDOW_BLOCKS * traffic.block_capacity
        room = min(most - traffic.in_flight, BATCH_ATTEMPTS)
        wanted = traffic.calls_wanted(WINDOW_BLOCKS) if self._preparer.grouping else 1
        window = Window(version.network, most, wanted)
        return max(min(room * wanted, BATCH_INTENTS), 0), wanted, window

    async def _advance(self, batch: Batch, wanted: int) -> None:
        """Bring it as far as it goes now: what fails is postponed, rejected or left to the lease."""
        try:
            stored = await self._preparer.prepare(batch, wanted)
        except ServiceError as error:
            tries = min(intent.tries for intent in batch.intents)
            await self._preparer.postpone(batch, error, delay_s(tries))
            return
        except Exception:
            if len(batch.intents) == 1:
                raise
            # One that breaks us must not hold up the others.
            _log.exception("a batch of %d is taken apart", len(batch.intents))
            middle = len(batch.intents) // 2
            for half in (batch.intents[:middle], batch.intents[middle:]):
                await self._advance(Batch(batch.lease, half), wanted)
            return
        self._count(stored)
        await self._sender.send(
            batch.lease, [Signed(attempt.txid, attempt.raw, 0, maybe_sent=False) for attempt in stored]
        )

    def _count(self, stored: list[Attempt]) -> None:
        """Until traffic is looked at again, what was stored since counts as on its way."""
        if self._traffic is not None:
            self._traffic = self._traffic.with_more(len(stored))
