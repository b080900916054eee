"""Invoke once for an ``Idempotency-Key``, whichever API process the calls of it come to.

The key's row is there before anything runs. A call that finds it running is refused; one that finds it done gets
the first result. If the first call's process dies, the key is free again once the call must be over, and is run
anew under the same execution id, so that the transactions it sends are the same. Nothing is kept of failures
without an effect that say themselves that they may be repeated.
"""

import hashlib
from typing import Final
from uuid import UUID, uuid4

import msgspec

from neolayer.core.errors import ServiceError
from neolayer.core.ids import uuid7
from neolayer.core.types import Principal
from neolayer.db.pool import Connection, Database
from neolayer.db.sql import load_queries
from neolayer.enclave import ErrorInfo, Result
from neolayer.functions.errors import IdempotencyInProgress, IdempotencyKeyReused
from neolayer.functions.model import Bundle, Call
from neolayer.functions.outcome import error_of, record_of
from neolayer.functions.resolver import Resolver
from neolayer.functions.service import Functions, alias_of, deadline_of

_SQL: Final = load_queries("neolayer.functions")
#: Beyond a call's own limit: waiting for a place, the start of a cell, writing the result; seconds.
SLACK_S: Final = 20.0


def request_hash(kind: str, target: str, input: bytes) -> bytes:
    """Of what a key stands for."""
    return hashlib.sha256(b"\0".join((kind.encode(), target.encode(), input))).digest()


class InvokeKeys:
    """The table of keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, connection: Connection, tenant_id: UUID, key: str, hash: bytes, id: UUID) -> UUID:
        """Give the key to execution ``id``, done at once; or return the execution that it belongs to.

        Raises:
            IdempotencyKeyReused: the key belongs to another request.
        """
        first, _ = await self._claim(connection, tenant_id, key, hash, id, uuid4(), done=True, lease_s=0)
        return first

    async def claim(
        self, tenant_id: UUID, key: str, hash: bytes, id: UUID, lease: UUID, lease_s: float
    ) -> tuple[UUID, bool]:
        """The execution that the key belongs to, and whether it is ours to run: under that id.

        Raises:
            IdempotencyKeyReused: the key belongs to another request.
            IdempotencyInProgress: somebody runs it.
        """
        async with self._database.connection() as connection:
            return await self._claim(connection, tenant_id, key, hash, id, lease, done=False, lease_s=lease_s)

    async def _claim(
        self,
        connection: Connection,
        tenant_id: UUID,
        key: str,
        hash: bytes,
        id: UUID,
        lease: UUID,
        *,
        done: bool,
        lease_s: float,
    ) -> tuple[UUID, bool]:
        params = {
            "tenant_id": tenant_id,
            "key": key,
            "request_hash": hash,
            "id": id,
            "done": done,
            "lease": lease,
            "lease_s": lease_s,
        }
        while True:
            claimed = await (await connection.execute(_SQL["claim_key"], params)).fetchone()
            if claimed:
                return claimed[0], True
            row = await (await connection.execute(_SQL["key"], params)).fetchone()
            if row is None:
                # Released in between.
                continue
            known_hash, first, settled = row
            if bytes(known_hash) != hash:
                raise IdempotencyKeyReused
            if not settled:
                raise IdempotencyInProgress(execution=first)
            return first, False


class Outcome(msgspec.Struct, frozen=True):
    """Of the one run that a key stands for."""

    id: UUID
    #: JSON text; empty when it failed.
    output: bytes
    error: ServiceError | None
    cold: bool
    #: It had run before this call.
    replayed: bool


class IdempotentInvocations:
    def __init__(self, database: Database, resolver: Resolver, functions: Functions, keys: InvokeKeys) -> None:
        self._database = database
        self._resolver = resolver
        self._functions = functions
        self._keys = keys

    async def invoke(self, principal: Principal, target: str, input: bytes, key: str) -> Outcome:
        """
        Raises:
            FunctionNotFound, VersionNotFound, AliasNotFound: the tenant has none like that.
            IdempotencyKeyReused, IdempotencyInProgress: see `InvokeKeys`.
            ServiceError: it was not started; the key is free.
        """
        tenant_id = principal.tenant_id
        bundle = await self._resolver.bundle(tenant_id, target)
        lease = uuid4()
        lease_s = bundle.limits.timeout_ms / 1000 + SLACK_S
        hash = request_hash("sync", target, input)
        id, ours = await self._keys.claim(tenant_id, key, hash, uuid7(), lease, lease_s)
        if not ours:
            return await self._first(tenant_id, id)
        call = Call(principal, id, deadline_of(bundle), alias=alias_of(target))
        owned = {"tenant_id": tenant_id, "key": key, "lease": lease}
        try:
            result = await self._functions.outcome(bundle, call, input)
        except Exception:
            await self._database.execute(_SQL["release_key"], owned)
            raise
        await self._settle(owned, bundle, call, result, input)
        error = None if result.error is None else error_of(id, result.error)
        return Outcome(id, result.output, error, result.cold, replayed=False)

    async def _settle(
        self, owned: dict[str, object], bundle: Bundle, call: Call, result: Result, input: bytes
    ) -> None:
        record = record_of(bundle, call, result, len(input))
        again = result.error is not None and result.error.retryable
        async with self._database.transaction() as connection:
            cursor = await connection.execute(_SQL["release_key" if again else "settle_key"], owned)
            if cursor.rowcount == 0:
                raise IdempotencyInProgress("this call took so long that another one with its key runs by now")
            await connection.execute(_SQL["insert_execution"], msgspec.structs.asdict(record))

    async def _first(self, tenant_id: UUID, id: UUID) -> Outcome:
        row = await self._database.fetch_one(_SQL["first_result"], {"tenant_id": tenant_id, "id": id})
        assert row
        status, output, error, cold = row
        if status == "succeeded":
            return Outcome(id, output.encode(), None, cold, replayed=True)
        info = ErrorInfo(error["code"], error["message"], error["stack"])
        return Outcome(id, b"", error_of(id, info), cold, replayed=True)
