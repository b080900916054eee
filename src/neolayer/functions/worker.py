"""Runs asynchronous executions: lease, run, write what became of it, or let it run again later.

Any number of processes may do this. A lease is renewed while its execution runs; when a process dies its
executions are leased by another as soon as their leases end, and run again under the same id: at least once, with
transactions that are sent once. Whoever lost a lease writes nothing.
"""

import asyncio
import contextlib
import logging
import random
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import msgspec

from neolayer.core.errors import ServiceError
from neolayer.core.types import Principal
from neolayer.db.notices import NoticeListener
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.enclave import Result
from neolayer.functions.asynchronous import TOPIC
from neolayer.functions.errors import FunctionNotFound
from neolayer.functions.model import Bundle, Call, Status
from neolayer.functions.outcome import failure, record_of
from neolayer.functions.records import error_json
from neolayer.functions.resolver import Resolver
from neolayer.functions.service import Functions, deadline_of
from neolayer.functions.versions import FUNCTION_DELETED

_SQL: Final = load_queries("neolayer.functions")
_log = logging.getLogger(__name__)
#: What is due is looked for this often when nothing wakes us; seconds.
IDLE_S: Final = 1.0
#: Longest pause between two runs; seconds.
RETRY_MAX_S: Final = 900.0
#: Of one tenant's executions at a time, all workers together: its synchronous calls need places, too.
PER_TENANT: Final = 16
#: The same version fails in the same way again.
HOPELESS: Final = frozenset({"invalid_function", "invalid_input"})
#: An execution whose process dies this often in a row is taken for the cause.
MAX_LEASES: Final = 5
WORKER_LOST: Final = "worker_lost"
TIDY_S: Final = 600.0
#: A dead execution keeps its input, and can be replayed, for so long.
DEAD_DAYS: Final = 14


@dataclass(frozen=True, slots=True, eq=False)
class _Leased:
    tenant_id: UUID
    id: UUID
    function_id: UUID
    key_id: UUID
    input: bytes
    #: Runs that failed, since it was queued or replayed.
    failures: int
    max_attempts: int
    #: Leases since the last run that ended.
    leases: int
    lease: UUID
    version: int
    alias: str | None
    #: Number of this run.
    attempt: int


class AsyncWorker:
    def __init__(
        self,
        database: Database,
        resolver: Resolver,
        functions: Functions,
        notices: NoticeListener,
        *,
        slots: int,
        lease_s: float,
        retry_s: float,
    ) -> None:
        """
        Args:
            slots: executions at a time.
            retry_s: pause after the first failed run, doubled for each further one.
        """
        self._database = database
        self._resolver = resolver
        self._functions = functions
        self._slots = slots
        self._lease_s = lease_s
        self._retry_s = retry_s
        self._running: set[_Leased] = set()
        self._wake = asyncio.Event()
        notices.on(TOPIC, lambda _: self._wake.set())

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew())
            tasks.create_task(self._tidy())
            while True:
                self._wake.clear()
                free = self._slots - len(self._running)
                leased = await self._lease(free) if free else []
                for execution in leased:
                    self._running.add(execution)
                    tasks.create_task(self._advance(execution))
                if not leased:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(IDLE_S):
                            await self._wake.wait()

    async def _lease(self, free: int) -> list[_Leased]:
        params = {"limit": free, "per_tenant": PER_TENANT, "lease_s": self._lease_s}
        try:
            return [_Leased(*row) for row in await self._database.fetch(_SQL["lease_executions"], params)]
        except ServiceError as error:
            _log.warning("no lease: %s", error.detail)
            return []

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            if not self._running:
                continue
            mine = list(self._running)
            params = {
                "tenants": [execution.tenant_id for execution in mine],
                "ids": [execution.id for execution in mine],
                "leases": [execution.lease for execution in mine],
                "lease_s": self._lease_s,
            }
            try:
                await self._database.execute(_SQL["renew_leases"], params)
            except ServiceError as error:
                _log.warning("leases are not renewed: %s", error.detail)

    async def _tidy(self) -> None:
        while True:
            try:
                await self._database.execute(_SQL["forget_keys"])
                await self._database.execute(_SQL["forget_dead"], {"days": DEAD_DAYS})
            except ServiceError as error:
                _log.warning("old keys and dead executions stay for now: %s", error.detail)
            await asyncio.sleep(TIDY_S)

    async def _advance(self, execution: _Leased) -> None:
        """Run it once. Never raises: what cannot be written is left to the lease."""
        try:
            await self._attempt(execution)
        except ServiceError as error:
            _log.warning("execution %s is left to its lease: %s", execution.id, error.detail)
        except Exception:
            _log.exception("execution %s is left to its lease", execution.id)
        finally:
            self._running.discard(execution)
            self._wake.set()

    async def _attempt(self, execution: _Leased) -> None:
        if execution.leases > MAX_LEASES:
            message = f"the process that ran it died {MAX_LEASES} times in a row"
            await self._move("bury", execution, "dead", error_json(WORKER_LOST, message, ""))
            return
        try:
            bundle = await self._resolver.version(execution.tenant_id, execution.function_id, execution.version)
        except FunctionNotFound:
            error = error_json(FUNCTION_DELETED, "the function was deleted before this ran", "")
            await self._move("leave_queue", execution, "failed", error)
            return
        call = Call(
            Principal(execution.tenant_id, execution.key_id),
            execution.id,
            deadline_of(bundle),
            kind="async",
            alias=execution.alias,
            attempt=execution.attempt,
        )
        try:
            result = await self._functions.outcome(bundle, call, execution.input)
        except ServiceError as error:
            if error.retryable:
                await self._postpone(execution)
                return
            result = failure(error.code, error.detail)
        await self._write(execution, bundle, call, result)

    async def _write(self, execution: _Leased, bundle: Bundle, call: Call, result: Result) -> None:
        status: Status = "succeeded"
        step = "leave_queue"
        if result.error is not None:
            last = execution.failures + 1 >= execution.max_attempts or result.error.code in HOPELESS
            step, status = ("bury", "dead") if last else ("retry", "queued")
        record = record_of(bundle, call, result, len(execution.input), status=status)
        async with self._database.transaction() as connection:
            if (await connection.execute(_SQL[step], self._params(execution, failed=1))).rowcount:
                await connection.execute(_SQL["write_attempt"], msgspec.structs.asdict(record))

    async def _move(self, step: str, execution: _Leased, status: Status, error: str) -> None:
        """End it where nothing ran."""
        async with self._database.transaction() as connection:
            params = self._params(execution, failed=1)
            if (await connection.execute(_SQL[step], params)).rowcount:
                await connection.execute(_SQL["write_status"], params | {"status": status, "error": error})

    async def _postpone(self, execution: _Leased) -> None:
        """It could not be started: that is no run."""
        async with self._database.transaction() as connection:
            params = self._params(execution, failed=0)
            if (await connection.execute(_SQL["retry"], params)).rowcount:
                await connection.execute(_SQL["write_not_started"], params)

    def _params(self, execution: _Leased, *, failed: int) -> dict[str, Any]:
        delay_s = min(RETRY_MAX_S, self._retry_s * 2**execution.failures)
        return {
            "tenant_id": execution.tenant_id,
            "id": execution.id,
            "lease": execution.lease,
            "failed": failed,
            # Jitter, so that what failed together does not come back together.
            "delay_s": delay_s * random.uniform(0.5, 1),  # noqa: S311 - jitter
        }
