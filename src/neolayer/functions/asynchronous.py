"""Asynchronous executions as clients see them: accepted, cancelled, replayed. `worker.py` runs them."""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import msgspec

from neolayer.core.ids import uuid7
from neolayer.core.types import Principal
from neolayer.db.notices import Announcer, NoticeListener, notify
from neolayer.db.pool import Connection, Database
from neolayer.db.sql import load_queries
from neolayer.functions.errors import NotCancellable, NotReplayable, QueueFull
from neolayer.functions.history import History
from neolayer.functions.idempotency import InvokeKeys, request_hash
from neolayer.functions.model import Accepted, Bundle, ExecutionRecord
from neolayer.functions.resolver import Resolver
from neolayer.functions.service import alias_of

_SQL: Final = load_queries("neolayer.functions")
#: Wakes the workers.
TOPIC: Final = "executions"
#: A full queue is worth another look after this time; seconds.
RETRY_AFTER_S: Final = 5


class AsyncExecutions:
    def __init__(
        self,
        database: Database,
        resolver: Resolver,
        history: History,
        keys: InvokeKeys,
        notices: NoticeListener,
        announcer: Announcer,
        *,
        queue_max: int,
    ) -> None:
        self._database = database
        self._resolver = resolver
        self._history = history
        self._keys = keys
        self._notices = notices
        self._announcer = announcer
        self._queue_max = queue_max

    async def accept(
        self, principal: Principal, target: str, input: bytes, idempotency_key: str | None
    ) -> tuple[Accepted, bool]:
        """Store an execution that a worker will run; returns it, and whether the key had one already.

        Its version is chosen now, also where an alias has several: a run that is repeated repeats the same code.

        Raises:
            FunctionNotFound, VersionNotFound, AliasNotFound: the tenant has none like that.
            IdempotencyKeyReused: the key belongs to another request.
            QueueFull: the tenant has too many waiting.
        """
        tenant_id = principal.tenant_id
        bundle = await self._resolver.bundle(tenant_id, target)
        id, replayed = uuid7(), False
        async with self._database.transaction() as connection:
            if idempotency_key is not None:
                hash = request_hash("async", target, input)
                first = await self._keys.take(connection, tenant_id, idempotency_key, hash, id)
                id, replayed = first, first != id
            if not replayed:
                await self._enqueue(connection, principal, bundle, target, input, id)
        if replayed:
            view = await self._history.execution(tenant_id, id)
            return Accepted(id, view.status), True
        self._announcer.announce(TOPIC)
        self._notices.dispatch(TOPIC, "")
        return Accepted(id, "queued"), False

    async def _enqueue(
        self, connection: Connection, principal: Principal, bundle: Bundle, target: str, input: bytes, id: UUID
    ) -> None:
        tenant_id = principal.tenant_id
        params = {"tenant_id": tenant_id, "most": self._queue_max}
        if await (await connection.execute(_SQL["queue_full"], params)).fetchone():
            raise QueueFull(
                f"{self._queue_max} asynchronous executions of this tenant are waiting already",
                retry_after_s=RETRY_AFTER_S,
            )
        record = ExecutionRecord(
            tenant_id=tenant_id,
            id=id,
            function_id=bundle.function_id,
            function=bundle.function,
            version=bundle.version,
            status="queued",
            output=None,
            error=None,
            logs=None,
            cold=False,
            wall_us=0,
            cpu_us=0,
            heap_bytes=0,
            fetches=0,
            created_at=datetime.now(UTC),
            kind="async",
            attempt=0,
            alias=alias_of(target),
            bytes_in=len(input),
        )
        await connection.execute(_SQL["insert_execution"], msgspec.structs.asdict(record))
        await connection.execute(
            _SQL["enqueue"],
            {
                "tenant_id": tenant_id,
                "id": id,
                "function_id": bundle.function_id,
                "key_id": principal.key_id,
                "target": target,
                "input": input,
                "max_attempts": bundle.max_attempts,
            },
        )

    async def count_by_state(self) -> dict[str, int]:
        """Of all tenants: ``queued``, ``running``, ``dead``."""
        return dict(await self._database.fetch(_SQL["count_queue"]))

    async def cancel(self, tenant_id: UUID, id: UUID) -> Accepted:
        """Take an execution that waits, for its first run or another, out of the queue.

        Raises:
            ExecutionNotFound: the tenant has none with this id.
            NotCancellable: it runs, or is over.
        """
        params = {"tenant_id": tenant_id, "id": id}
        async with self._database.transaction() as connection:
            if (await connection.execute(_SQL["cancel"], params)).rowcount:
                await connection.execute(_SQL["write_status"], params | {"status": "cancelled", "error": None})
                return Accepted(id, "cancelled")
        view = await self._history.execution(tenant_id, id)
        raise NotCancellable(f"the execution is {view.status}: only one that waits can be cancelled")

    async def replay(self, tenant_id: UUID, id: UUID) -> Accepted:
        """Let a dead execution run again, under the same id, so that transactions which it sent stay the same.

        What was called is looked up anew: usually a mended version is live by now.

        Raises:
            ExecutionNotFound: the tenant has none with this id.
            NotReplayable: it is not dead.
            FunctionNotFound, VersionNotFound, AliasNotFound: what it called is gone.
        """
        params = {"tenant_id": tenant_id, "id": id}
        async with self._database.transaction() as connection:
            row = await (await connection.execute(_SQL["dead"], params)).fetchone()
            if row is not None:
                bundle = await self._resolver.bundle(tenant_id, row[1])
                values = {
                    "function_id": bundle.function_id,
                    "version": bundle.version,
                    "max_attempts": bundle.max_attempts,
                }
                await connection.execute(_SQL["replay"], params | values)
                await connection.execute(_SQL["write_replay"], params | values)
                await notify(connection, TOPIC)
        if row is None:
            view = await self._history.execution(tenant_id, id)
            raise NotReplayable(f"the execution is {view.status}: only a dead one can be replayed")
        self._notices.dispatch(TOPIC, "")
        return Accepted(id, "queued")
