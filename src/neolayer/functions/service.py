"""Deploy, resolve, invoke."""

import asyncio
import hashlib
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, Final, Protocol
from uuid import UUID

import msgspec

from neolayer.core.errors import BodyTooLarge, ServiceError
from neolayer.core.ids import uuid7
from neolayer.core.text import storable
from neolayer.core.types import Principal
from neolayer.db.notices import NoticeListener, notify
from neolayer.db.pool import Connection, Database
from neolayer.db.sql import load_queries
from neolayer.enclave import (
    Enclave,
    EnclaveUnavailable,
    ErrorInfo,
    HostFunction,
    Limits,
    Load,
    OutcomeUnknown,
    Result,
)
from neolayer.functions.cache import BundleCache
from neolayer.functions.errors import (
    ExecutionFailed,
    ExecutionNotFound,
    FunctionExists,
    FunctionNotFound,
    UnknownSecret,
)
from neolayer.functions.host import HostCalls
from neolayer.functions.metrics import observe
from neolayer.functions.model import (
    MAX_SOURCE_BYTES,
    Bundle,
    ExecutionRecord,
    ExecutionView,
    FunctionSpec,
    FunctionView,
    LogLine,
)
from neolayer.functions.records import ExecutionRecords, error_json
from neolayer.secrets.service import TOPIC as SECRETS_TOPIC
from neolayer.secrets.service import Secrets

_SQL: Final = load_queries("neolayer.functions")
#: Notices of this topic carry the tenant's id.
TOPIC: Final = "functions"
#: A record is written well within this time; seconds.
YOUNG_S: Final = 0.25


class Waiter(Protocol):
    """Who waits for a call; told of its end once, from the event loop."""

    def answered(self, execution: UUID, result: Result) -> None: ...

    def failed(self, error: ServiceError) -> None:
        """`ExecutionFailed`, or why it was not started, or `OutcomeUnknown`."""


class Functions:
    def __init__(
        self,
        database: Database,
        enclave: Enclave,
        secrets: Secrets,
        host: HostCalls,
        records: ExecutionRecords,
        notices: NoticeListener,
    ) -> None:
        self._database = database
        self.enclave = enclave
        self._secrets = secrets
        self.host = host
        self._records = records
        self._bundles = BundleCache()
        notices.on(TOPIC, self._bundles.drop)
        notices.on(SECRETS_TOPIC, self._bundles.drop)
        self._tasks: set[asyncio.Task[None]] = set()
        #: Bundles on their way to the enclave.
        self._loading: dict[str, asyncio.Future[None]] = {}

    # --- deploy ---------------------------------------------------------------------------------------

    async def create(self, tenant_id: UUID, name: str, spec: FunctionSpec) -> FunctionView:
        """
        Raises:
            FunctionExists: the tenant has one of this name.
            EnclaveRefused: code ``syntax_error`` (with line and column), ``no_entry_point``, …; nothing is stored.
            UnknownSecret: a secret it asks for does not exist.
        """
        code_hash = await self._check(tenant_id, spec)
        async with self._database.transaction() as connection:
            cursor = await connection.execute(
                _SQL["insert_function"], {"tenant_id": tenant_id, "id": uuid7(), "name": name}
            )
            row = await cursor.fetchone()
            if row is None:
                raise FunctionExists(f"a function named {name!r} exists; PUT deploys a new version of it")
            await self._insert_version(connection, tenant_id, row[0], row[1], spec, code_hash)
        self._bundles.drop(str(tenant_id))
        return await self.show(tenant_id, name)

    async def deploy(self, tenant_id: UUID, name: str, spec: FunctionSpec) -> FunctionView:
        """Make a new version the current one; makes the function if there is none. Errors as `create`."""
        code_hash = await self._check(tenant_id, spec)
        async with self._database.transaction() as connection:
            params = {"tenant_id": tenant_id, "id": uuid7(), "name": name}
            row = await (await connection.execute(_SQL["insert_function"], params)).fetchone()
            row = row or await (await connection.execute(_SQL["next_version"], params)).fetchone()
            if row is None:
                raise FunctionNotFound(f"function {name!r} was deleted meanwhile; deploy again")
            await self._insert_version(connection, tenant_id, row[0], row[1], spec, code_hash)
        self._bundles.drop(str(tenant_id))
        return await self.show(tenant_id, name)

    async def _check(self, tenant_id: UUID, spec: FunctionSpec) -> bytes:
        if len(spec.source.encode()) > MAX_SOURCE_BYTES:
            raise BodyTooLarge(f"a source has at most {MAX_SOURCE_BYTES} bytes")
        known = {secret.name for secret in await self._secrets.all(tenant_id)} if spec.secrets else set()
        if missing := sorted(set(spec.secrets) - known):
            raise UnknownSecret(
                f"no secret {', '.join(missing)}; `neolayer secrets set {missing[0]}` makes it", secrets=missing
            )
        return await self.enclave.check(str(tenant_id), spec.source)

    async def _insert_version(
        self,
        connection: Connection,
        tenant_id: UUID,
        function_id: UUID,
        number: int,
        spec: FunctionSpec,
        code_hash: bytes,
    ) -> None:
        await connection.execute(
            _SQL["insert_version"],
            {
                "tenant_id": tenant_id,
                "function_id": function_id,
                "number": number,
                "source": spec.source,
                "code_hash": code_hash,
                "timeout_ms": spec.timeout_ms,
                "cpu_ms": spec.cpu_ms,
                "memory_mb": spec.memory_mb,
                "secrets": sorted(set(spec.secrets)),
                "egress": sorted(set(spec.egress)),
            },
        )
        await notify(connection, TOPIC, str(tenant_id))

    async def show(self, tenant_id: UUID, name: str) -> FunctionView:
        """
        Raises:
            FunctionNotFound: the tenant has none of this name.
        """
        row = await self._database.fetch_one(_SQL["by_name"], {"tenant_id": tenant_id, "name": name})
        if row is None:
            raise FunctionNotFound(f"no function {name!r}")
        return _view(row, with_source=True)

    async def recent(self, tenant_id: UUID, before: UUID, limit: int) -> list[FunctionView]:
        rows = await self._database.fetch(_SQL["list"], {"tenant_id": tenant_id, "before": before, "limit": limit})
        return [_view(row, with_source=False) for row in rows]

    async def delete(self, tenant_id: UUID, name: str) -> None:
        """Executions and versions stay; the name is free again.

        Raises:
            FunctionNotFound: the tenant has none of this name.
        """
        async with self._database.transaction() as connection:
            cursor = await connection.execute(_SQL["delete"], {"tenant_id": tenant_id, "name": name})
            if cursor.rowcount == 0:
                raise FunctionNotFound(f"no function {name!r}")
            await notify(connection, TOPIC, str(tenant_id))
        self._bundles.drop(str(tenant_id))

    # --- invoke ---------------------------------------------------------------------------------------

    def ready(self, tenant_id: UUID, name: str) -> Bundle | None:
        """What a name stands for, if a call of it can `start` at once."""
        return None if self._records.full else self._bundles.get(tenant_id, name)

    def start(self, principal: Principal, bundle: Bundle, input: bytes, waiter: Waiter, *, depth: int = 0) -> None:
        """Send a call off; ``waiter`` is told of its end. Every call that ran is recorded, failed ones too."""
        Invocation(self, principal, bundle, input, waiter, depth).start()

    async def invoke(
        self, principal: Principal, name: str, input: bytes, *, depth: int = 0
    ) -> tuple[UUID, Result]:
        """Run the current version and record the execution, failed ones too.

        Raises:
            FunctionNotFound: the tenant has none of this name.
            ExecutionFailed: the function failed; carries the execution's id.
            RecordsFull: the database takes no records.
            EnclaveRefused: ``too_many_calls``, ``no_capacity``: it was not started.
        """
        tenant_id = principal.tenant_id
        bundle = self._bundles.get(tenant_id, name) or await self._resolve(tenant_id, name)
        if self._records.full:
            await self._records.reserve()
        waiter = _Awaited()
        self.start(principal, bundle, input, waiter, depth=depth)
        return await waiter.answer

    async def _resolve(self, tenant_id: UUID, name: str) -> Bundle:
        generation = self._bundles.generation
        row = await self._database.fetch_one(_SQL["by_name"], {"tenant_id": tenant_id, "name": name})
        if row is None:
            raise FunctionNotFound(f"no function {name!r}")
        id, name, version, source, _, timeout_ms, cpu_ms, memory_mb, secrets, egress, *_ = row
        sealed = await self._secrets.sealed(tenant_id, secrets)
        content = [str(id), str(version), *(f"{secret.name}:{secret.version}" for secret in sealed)]
        bundle = Bundle(
            id=hashlib.sha256("\n".join(content).encode()).hexdigest()[:32],
            tenant=str(tenant_id),
            function_id=id,
            function=name,
            version=version,
            source=source,
            limits=Limits(timeout_ms, cpu_ms, memory_mb),
            secrets=sealed,
            egress=egress,
        )
        self._bundles.put(tenant_id, name, bundle, generation)
        return bundle

    async def load(self, bundle: Bundle) -> None:
        """Make a bundle known to the enclave; calls that need the same one at the same time share the request."""
        loading = self._loading.get(bundle.id)
        if loading is None:
            loading = self._loading[bundle.id] = asyncio.ensure_future(self._load(bundle))
            loading.add_done_callback(lambda _: self._loading.pop(bundle.id))
        await asyncio.shield(loading)

    async def _load(self, bundle: Bundle) -> None:
        await self.enclave.load(
            Load(
                tenant=bundle.tenant,
                bundle=bundle.id,
                name=bundle.function,
                source=bundle.source,
                limits=bundle.limits,
                secrets=bundle.secrets,
                egress=bundle.egress,
            )
        )

    def record(self, call: "Invocation", result: Result) -> None:
        bundle, failed = call.bundle, result.error
        self._records.add(
            ExecutionRecord(
                tenant_id=call.principal.tenant_id,
                id=call.execution,
                function_id=bundle.function_id,
                function=bundle.function,
                version=bundle.version,
                status="failed" if failed else "succeeded",
                output=None if failed else result.output.decode(),
                error=error_json(failed.code, failed.message, failed.stack) if failed else None,
                logs=result.logs.decode() if result.logs else None,
                cold=result.cold,
                wall_us=result.wall_us,
                cpu_us=result.cpu_us,
                heap_bytes=result.heap_bytes,
                fetches=result.fetches,
                created_at=datetime.fromtimestamp(call.created, UTC),
            )
        )
        observe(failed.code if failed else "succeeded", result)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what a call cannot wait for where it is started."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- executions -----------------------------------------------------------------------------------

    async def execution(self, tenant_id: UUID, id: UUID) -> ExecutionView:
        """
        Raises:
            ExecutionNotFound: the tenant has none with this id.
        """
        row = await self._find(_SQL["execution"], tenant_id, id)
        return _execution(row)

    async def logs(self, tenant_id: UUID, id: UUID) -> list[LogLine]:
        """
        Raises:
            ExecutionNotFound: the tenant has none with this id.
        """
        (logs,) = await self._find(_SQL["execution_logs"], tenant_id, id)
        return [LogLine(at_ms, level, storable(text)) for at_ms, level, text in logs or ()]

    async def _find(self, query: bytes, tenant_id: UUID, id: UUID) -> tuple[Any, ...]:
        params = {"tenant_id": tenant_id, "id": id}
        row = await self._database.fetch_one(query, params)
        if row is None:
            await self._records.settled()
            if _age_s(id) < YOUNG_S:
                # Another API process may have it in its buffer yet.
                await asyncio.sleep(YOUNG_S)
            row = await self._database.fetch_one(query, params)
        if row is None:
            raise ExecutionNotFound(f"no execution {id}")
        return row

    async def recent_executions(
        self, tenant_id: UUID, function: str | None, before: UUID, limit: int
    ) -> list[ExecutionView]:
        await self._records.settled()
        query = _SQL["list_executions_of"] if function else _SQL["list_executions"]
        params = {"tenant_id": tenant_id, "function": function, "before": before, "limit": limit}
        return [_execution(row) for row in await self._database.fetch(query, params)]


class Invocation:
    """One call of a function, from its start to its record; a `Call` of the enclave's client."""

    __slots__ = (
        "_depth",
        "_functions",
        "_host",
        "_input",
        "_reloaded",
        "_waiter",
        "bundle",
        "created",
        "execution",
        "principal",
    )

    def __init__(
        self, functions: Functions, principal: Principal, bundle: Bundle, input: bytes, waiter: Waiter, depth: int
    ) -> None:
        self.bundle = bundle
        self.principal = principal
        self.execution = uuid7()
        #: Unix time.
        self.created = time.time()
        self._functions = functions
        self._input = input
        self._waiter = waiter
        self._depth = depth
        self._host: HostFunction | None = None
        self._reloaded = False

    def start(self) -> None:
        if not self._send():
            self._functions.later(self._load_and_start())

    def _send(self) -> bool:
        bundle = self.bundle
        return self._functions.enclave.start(
            bundle.id, self.execution, self._input, self, timeout_ms=bundle.limits.timeout_ms, depth=self._depth
        )

    async def _load_and_start(self) -> None:
        try:
            await self._functions.load(self.bundle)
        except ServiceError as error:
            self._waiter.failed(error)
        else:
            if not self._send():
                self._waiter.failed(EnclaveUnavailable("the connection to the enclave was lost"))

    def finished(self, result: Result) -> None:
        self._functions.record(self, result)
        if result.error is None:
            self._waiter.answered(self.execution, result)
            return
        code, message, stack, retryable = msgspec.structs.astuple(result.error)
        self._waiter.failed(
            ExecutionFailed(code, message, retryable=retryable, stack=stack, execution=self.execution)
        )

    def failed(self, error: ServiceError) -> None:
        if error.code == "not_loaded" and not self._reloaded:
            self._reloaded = True
            self._functions.later(self._load_and_start())
            return
        if isinstance(error, OutcomeUnknown):
            error.extra["execution"] = self.execution
            info = ErrorInfo(error.code, error.detail)
            self._functions.record(self, Result(b"", info, b"", 0, 0, 0, 0, 0, cold=False, fetches=0))
        self._waiter.failed(error)

    async def serve(self, name: str, argument: bytes) -> bytes:
        if self._host is None:
            self._host = self._functions.host.of_execution(self.principal, self.execution)
        return await self._host(name, argument)


class _Awaited:
    """Waits for one call."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[UUID, Result]] = asyncio.get_running_loop().create_future()

    def answered(self, execution: UUID, result: Result) -> None:
        if not self.answer.done():
            self.answer.set_result((execution, result))

    def failed(self, error: ServiceError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


def _age_s(id: UUID) -> float:
    """Since the time that a UUIDv7 begins with; negative or huge for ids that are none of ours."""
    return abs(time.time() - (id.int >> 80) / 1000)


def _view(row: tuple[Any, ...], *, with_source: bool) -> FunctionView:
    id, name, version, source, code_hash, timeout_ms, cpu_ms, memory_mb, secrets, egress, created, updated = row
    return FunctionView(
        id=id,
        name=name,
        version=version,
        code_hash=bytes(code_hash).hex(),
        timeout_ms=timeout_ms,
        cpu_ms=cpu_ms,
        memory_mb=memory_mb,
        secrets=secrets,
        egress=egress,
        created_at=created,
        updated_at=updated,
        source=source if with_source else None,
    )


def _execution(row: tuple[Any, ...]) -> ExecutionView:
    id, function, version, status, output, error, cold, wall_us, cpu_us, heap_bytes, fetches, created_at = row
    return ExecutionView(
        id=id,
        function=function,
        version=version,
        status=status,
        output=msgspec.Raw(output.encode() if output else b"null"),
        error=error,
        cold=cold,
        wall_ms=wall_us / 1000,
        cpu_ms=cpu_us / 1000,
        heap_bytes=heap_bytes,
        fetches=fetches,
        created_at=created_at,
    )
