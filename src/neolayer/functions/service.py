"""Invoke: run what a name stands for, and record what became of it."""

import asyncio
import time
from typing import Annotated, Final
from uuid import UUID

import msgspec

from neolayer.core.errors import InvalidRequest
from neolayer.core.ids import uuid7
from neolayer.core.names import TARGET
from neolayer.core.types import Principal
from neolayer.enclave import Enclave, EnclaveRefused, Load, OutcomeUnknown, Result
from neolayer.functions.errors import DepthExceeded, TooManyCalls
from neolayer.functions.host import MAX_NESTED, HostCalls
from neolayer.functions.model import Budget, Bundle, Call
from neolayer.functions.outcome import count, error_of, failure, record_of
from neolayer.functions.records import ExecutionRecords
from neolayer.functions.resolver import Resolver

#: Of the execution that a function's call of a function's call … of a function is.
MAX_DEPTH: Final = 8


class NestedRequest(msgspec.Struct, frozen=True):
    """``ctx.invoke(name, input)``."""

    name: Annotated[str, msgspec.Meta(pattern=TARGET)]
    #: Missing where it is `undefined`.
    input: msgspec.Raw = msgspec.Raw(b"")


_decode_nested = msgspec.json.Decoder(NestedRequest).decode


class Functions:
    def __init__(self, enclave: Enclave, resolver: Resolver, host: HostCalls, records: ExecutionRecords) -> None:
        self._enclave = enclave
        self._host = host
        self._records = records
        self._bundles = resolver.bundles
        self._resolve = resolver.resolve

    async def invoke(self, principal: Principal, name: str, input: bytes) -> tuple[UUID, Result]:
        """Run what ``name`` stands for and record the execution, failed ones too.

        Raises:
            FunctionNotFound, VersionNotFound, AliasNotFound: the tenant has none like that.
            ExecutionFailed: the function failed; carries the execution's id.
            OutcomeUnknown: the enclave was lost while it ran.
            RecordsFull: the database takes no records.
        """
        tenant_id = principal.tenant_id
        bundle = self._bundles.get(tenant_id, name)
        if bundle is None:
            bundle = await self._resolve(tenant_id, name)
        if self._records.full:
            await self._records.reserve()
        call = Call(principal, uuid7(), deadline_of(bundle), alias=alias_of(name))
        result = await self.outcome(bundle, call, input)
        self._record(bundle, call, result, input)
        if result.error is not None:
            raise error_of(call.id, result.error)
        return call.id, result

    async def outcome(self, bundle: Bundle, call: Call, input: bytes) -> Result:
        """Run a bundle and record nothing. That the enclave was lost meanwhile is an outcome, too.

        Raises:
            ServiceError: it was not started.
        """
        try:
            result = await self._run(bundle, call, input)
        except OutcomeUnknown as error:
            result = failure(error.code, error.detail)
        count(result)
        return result

    async def _run(self, bundle: Bundle, call: Call, input: bytes) -> Result:
        host = self._host.of_call(call, self._nested)
        timeout_ms = bundle.limits.timeout_ms
        try:
            return await self._enclave.invoke(
                bundle.tenant, bundle.id, str(call.id), input, host, timeout_ms=timeout_ms
            )
        except EnclaveRefused as refusal:
            if refusal.code != "not_loaded":
                raise
        await self._load(bundle)
        return await self._enclave.invoke(
            bundle.tenant, bundle.id, str(call.id), input, host, timeout_ms=timeout_ms
        )

    async def _load(self, bundle: Bundle) -> None:
        await self._enclave.load(
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

    def _record(self, bundle: Bundle, call: Call, result: Result, input: bytes) -> None:
        self._records.add(record_of(bundle, call, result, input))

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
        started = time.monotonic()
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
            async with asyncio.timeout(call.deadline - started if call.deadline == caller.deadline else None):
                result = await self.outcome(bundle, call, input)
        except TimeoutError:
            wall_us = int((time.monotonic() - started) * 1e6)
            result = failure("timeout", "the time of the function that called it was over", wall_us=wall_us)
            count(result)
        self._record(bundle, call, result, input)
        if result.error is not None:
            raise error_of(call.id, result.error)
        return result.output


def deadline_of(bundle: Bundle) -> float:
    """When a call that begins now must be over, by `time.monotonic`."""
    return time.monotonic() + bundle.limits.timeout_ms / 1000


def alias_of(target: str) -> str | None:
    return target.partition("@")[2] or None
