"""Invoke: run what a name stands for, and record what became of it."""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Coroutine
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Protocol
from uuid import UUID

import msgspec

from neolayer.core.errors import InvalidRequest, ServiceError
from neolayer.core.ids import uuid7
from neolayer.core.names import TARGET
from neolayer.core.types import Principal
from neolayer.enclave import (
    Enclave,
    EnclaveRefused,
    EnclaveUnavailable,
    HostFunction,
    Load,
    OutcomeUnknown,
    Result,
)
from neolayer.functions.errors import DepthExceeded, TooManyCalls
from neolayer.functions.host import MAX_NESTED, HostCalls
from neolayer.functions.metrics import observe
from neolayer.functions.model import Budget, Bundle, Call, ExecutionRecord
from neolayer.functions.outcome import error_of, failure, record_of
from neolayer.functions.records import ExecutionRecords, is_plain
from neolayer.functions.resolver import Resolver

_log: Final = logging.getLogger(__name__)
#: Of the execution that a function's call of a function's call … of a function is.
MAX_DEPTH: Final = 8
#: A called function that is not over this long after its caller's time is not waited for; seconds.
OVERDUE_S: Final = 0.5


class NestedRequest(msgspec.Struct, frozen=True):
    """``ctx.invoke(name, input)``."""

    name: Annotated[str, msgspec.Meta(pattern=TARGET)]
    #: Missing where it is `undefined`.
    input: msgspec.Raw = msgspec.Raw(b"")


_decode_nested = msgspec.json.Decoder(NestedRequest).decode


class Waiter(Protocol):
    """Who waits for a call; told of its end once, from the event loop."""

    def answered(self, execution: UUID, result: Result) -> None: ...

    def failed(self, error: ServiceError) -> None:
        """`ExecutionFailed`, or why it was not started, or `OutcomeUnknown`."""


class Functions:
    def __init__(
        self,
        enclave: Enclave,
        resolver: Resolver,
        host: HostCalls,
        records: ExecutionRecords,
        *,
        warm_up: bool = True,
    ) -> None:
        """``warm_up``: `warm` does something."""
        self.enclave = enclave
        self._warm_up = warm_up
        self._host = host
        self._records = records
        self._bundles = resolver.bundles
        self._resolve = resolver.resolve
        self._tasks: set[asyncio.Task[None]] = set()
        #: Bundles on their way to the enclave.
        self._loading: dict[str, asyncio.Future[None]] = {}

    def ready(self, tenant_id: UUID, name: str) -> Bundle | None:
        """What a name stands for, if a call of it can `start` at once."""
        return None if self._records.full else self._bundles.get(tenant_id, name)

    def start(
        self, principal: Principal, bundle: Bundle, input: bytes, waiter: Waiter, *, alias: str | None = None
    ) -> None:
        """Send a call off; ``waiter`` is told of its end. Every call that ran is recorded, failed ones too."""
        Invocation(self, principal, bundle, input, waiter, alias).start()

    async def invoke(self, principal: Principal, name: str, input: bytes) -> tuple[UUID, Result]:
        """Run what ``name`` stands for and record the execution, failed ones too.

        Raises:
            FunctionNotFound, VersionNotFound, AliasNotFound: the tenant has none like that.
            ExecutionFailed: the function failed; carries the execution's id.
            OutcomeUnknown: the enclave was lost while it ran.
            RecordsFull: the database takes no records.
            EnclaveRefused: ``too_many_calls``, ``no_capacity``: it was not started.
        """
        tenant_id = principal.tenant_id
        bundle = self._bundles.get(tenant_id, name) or await self._resolve(tenant_id, name)
        if self._records.full:
            await self._records.reserve()
        waiter = _Awaited()
        self.start(principal, bundle, input, waiter, alias=alias_of(name))
        return await waiter.answer

    def warm(self, tenant_id: UUID, target: str) -> None:
        """Have what ``target`` stands for ready before it is called. Where that fails a call will say why."""
        if self._warm_up:
            self.later(self._warm(tenant_id, target))

    async def _warm(self, tenant_id: UUID, target: str) -> None:
        try:
            bundle = await self._resolve(tenant_id, target)
            await self.load(bundle)
            await self.enclave.warm(bundle.id)
        except ServiceError as error:
            _log.info("%s is not warmed up: %s", target, error.detail)

    async def outcome(self, bundle: Bundle, call: Call, input: bytes) -> Result:
        """Run a bundle and record nothing. That the enclave was lost meanwhile is an outcome, too.

        Raises:
            ServiceError: it was not started.
        """
        host = self.host_of(call)

        def invoked() -> Awaitable[Result]:
            limits = {"timeout_ms": _time_of(bundle, call), "depth": call.depth}
            return self.enclave.invoke(bundle.id, call.id, input, host, **limits)

        try:
            try:
                result = await invoked()
            except EnclaveRefused as refusal:
                if refusal.code != "not_loaded":
                    raise
                await self.load(bundle)
                result = await invoked()
        except OutcomeUnknown as error:
            result = failure(error.code, error.detail)
        count(result)
        return result

    def host_of(self, call: Call) -> HostFunction:
        """What serves the function's own calls."""
        return self._host.of_call(call, self._nested)

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
                isolation=bundle.isolation,
            )
        )

    def record(self, bundle: Bundle, call: Call, result: Result, input: bytes, created: datetime) -> None:
        record = record_of(bundle, call, result, len(input), created=created)
        self._records.add(record, _text_bytes(result))

    def record_later(self, call: "Invocation", result: Result) -> None:
        self._records.add(call, _text_bytes(result))

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what a call cannot wait for where it is started."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- ctx.invoke -------------------------------------------------------------------------------------

    async def _nested(self, caller: Call, request: bytes, effects: str, budget: Budget) -> bytes:
        """Run a function for a function of the same tenant; returns its output.

        It counts against the tenant's running calls but waits in no queue: its caller, which waits for it, holds a
        place already, and a chain that waited for itself would never end.

        Raises:
            DepthExceeded, TooManyCalls: it is one too many.
            FunctionNotFound, VersionNotFound, AliasNotFound: the tenant has none like that.
            ExecutionFailed: the called function failed, code ``timeout`` too when the caller's time is over.
        """
        try:
            asked = _decode_nested(request)
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"ctx.invoke takes a function's name and an input: {error}") from None
        if caller.depth >= MAX_DEPTH:
            raise DepthExceeded(f"functions call each other at most {MAX_DEPTH} deep")
        if budget.left <= 0:
            raise TooManyCalls(f"one execution causes at most {MAX_NESTED} calls of functions")
        budget.left -= 1
        principal, input = caller.principal, bytes(asked.input)
        bundle = self._bundles.get(principal.tenant_id, asked.name)
        if bundle is None:
            bundle = await self._resolve(principal.tenant_id, asked.name)
        if self._records.full:
            await self._records.reserve()
        created, started = datetime.now(UTC), time.monotonic()
        call = Call(
            principal,
            uuid7(),
            min(deadline_of(bundle), caller.deadline),
            kind="invoke",
            alias=alias_of(asked.name),
            depth=caller.depth + 1,
            parent_id=caller.id,
            effects=effects,
            budget=budget,
        )
        try:
            # The cell ends it; this is for one that waits for a cell.
            shared = call.deadline == caller.deadline
            async with asyncio.timeout(call.deadline - started + OVERDUE_S if shared else None):
                result = await self.outcome(bundle, call, input)
        except TimeoutError:
            wall_us = int((time.monotonic() - started) * 1e6)
            result = failure("timeout", "the time of the function that called it was over", wall_us=wall_us)
            count(result)
        self.record(bundle, call, result, input, created)
        if result.error is not None:
            raise error_of(call.id, result.error)
        return result.output


#: A succeeded synchronous warm call with no logs, in the columns of `ExecutionRecord`.
_LINE: Final = (
    b"%b\t%b\t%b\tsucceeded\t%b\t\\N\t\\N\tf\t%d\t%d\t%d\t%d\t%b\tsync\t\\N\t1\t\\N\t%d\t%d\t%d\t%d\t\\N\n"
)


@functools.lru_cache(maxsize=1024)
def _constant_columns(tenant_id: UUID, function_id: UUID, function: str, version: int) -> tuple[bytes, bytes]:
    return str(tenant_id).encode(), f"{function_id}\t{function}\t{version}".encode()


class Invocation:
    """One call of a function, from its start to its record; a `Call` of the enclave's client."""

    __slots__ = (
        "_alias",
        "_bundle",
        "_bytes_in",
        "_created",
        "_execution",
        "_functions",
        "_host",
        "_input",
        "_principal",
        "_reloaded",
        "_result",
        "_waiter",
    )

    def __init__(
        self,
        functions: Functions,
        principal: Principal,
        bundle: Bundle,
        input: bytes,
        waiter: Waiter,
        alias: str | None,
    ) -> None:
        self._bundle = bundle
        self._principal = principal
        self._alias = alias
        self._execution = uuid7()
        #: Unix time.
        self._created = time.time()
        self._functions = functions
        self._input = input
        self._waiter = waiter
        self._host: HostFunction | None = None
        self._reloaded = False

    def start(self) -> None:
        if not self._send():
            self._functions.later(self._load_and_start())

    def _send(self) -> bool:
        bundle = self._bundle
        return self._functions.enclave.start(
            bundle.id, self._execution, self._input, self, timeout_ms=bundle.limits.timeout_ms
        )

    async def _load_and_start(self) -> None:
        try:
            await self._functions.load(self._bundle)
        except ServiceError as error:
            self._waiter.failed(error)
        except BaseException:
            self._waiter.failed(ServiceError())
            raise
        else:
            if not self._send():
                self._waiter.failed(EnclaveUnavailable("the connection to the enclave was lost"))

    def finished(self, result: Result) -> None:
        # The answer leaves when this turn of the event loop is over, so what can wait is done later.
        try:
            if result.error is None:
                self._waiter.answered(self._execution, result)
            else:
                self._waiter.failed(error_of(self._execution, result.error))
        finally:
            self._record(result)

    def failed(self, error: ServiceError) -> None:
        if error.code == "not_loaded" and not self._reloaded:
            self._reloaded = True
            self._functions.later(self._load_and_start())
            return
        if isinstance(error, OutcomeUnknown):
            error.extra["execution"] = self._execution
            self._record(failure(error.code, error.detail))
        self._waiter.failed(error)

    def _record(self, result: Result) -> None:
        self._result = result
        self._bytes_in = len(self._input)
        self._input = b""
        self._functions.record_later(self, result)
        count(result)

    def make_line(self) -> bytes | None:
        result, bundle = self._result, self._bundle
        output = result.output
        if result.error or result.cold or result.logs or self._alias or not is_plain(output):
            return None
        tenant, version = _constant_columns(
            self._principal.tenant_id, bundle.function_id, bundle.function, bundle.version
        )
        return _LINE % (
            tenant,
            str(self._execution).encode(),
            version,
            output,
            result.wall_us,
            result.cpu_us,
            result.heap_bytes,
            result.fetches,
            datetime.fromtimestamp(self._created, UTC).isoformat().encode(),
            result.queue_us,
            result.peak_bytes,
            self._bytes_in,
            len(output),
        )

    def make_record(self) -> ExecutionRecord:
        created = datetime.fromtimestamp(self._created, UTC)
        call = Call(self._principal, self._execution, 0.0, alias=self._alias)
        return record_of(self._bundle, call, self._result, self._bytes_in, created=created)

    def _call(self) -> Call:
        deadline = time.monotonic() + self._created + self._bundle.limits.timeout_ms / 1000 - time.time()
        return Call(self._principal, self._execution, deadline, alias=self._alias)

    async def serve(self, name: str, argument: bytes) -> bytes:
        if self._host is None:
            self._host = self._functions.host_of(self._call())
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


def _text_bytes(result: Result) -> int:
    return len(result.output) + len(result.logs) + (len(result.error.message) if result.error else 0)


def count(result: Result) -> None:
    """Into the metrics."""
    observe(result.error.code if result.error else "succeeded", result)


def deadline_of(bundle: Bundle) -> float:
    """When a call that begins now must be over, by `time.monotonic`."""
    return time.monotonic() + bundle.limits.timeout_ms / 1000


def _time_of(bundle: Bundle, call: Call) -> int:
    """What a call may take, in ms: never more than is left to the function that made it."""
    if not call.depth:
        return bundle.limits.timeout_ms
    return max(1, min(bundle.limits.timeout_ms, int((call.deadline - time.monotonic()) * 1000)))


def alias_of(target: str) -> str | None:
    return target.partition("@")[2] or None
