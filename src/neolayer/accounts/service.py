"""API keys: made, shown once, checked on every request, revoked.

A key is ``nsl_`` and 256 random bits; the database holds its SHA-256 only. A plain hash is enough: there is
nothing to guess in 256 bits.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from psycopg.rows import TupleRow

from neolayer.accounts.throttle import FailureThrottle
from neolayer.core.errors import NotFound, ServiceError, Unauthenticated
from neolayer.core.ids import uuid7
from neolayer.core.types import Principal
from neolayer.db.notices import NoticeListener, notify
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries

_SQL: Final = load_queries("neolayer.accounts")
_log = logging.getLogger(__name__)
PREFIX: Final = "nsl_"
#: Longest time that a revoked key may still work in a process that missed the notice; seconds.
CACHE_S: Final = 5.0
CACHE_KEYS: Final = 10_000
#: `last_used_at` is written this often at most; seconds.
TOUCH_EVERY_S: Final = 10.0


class KeyNotFound(NotFound):
    """No such API key."""

    code = "key_not_found"


class TenantNotFound(NotFound):
    """No such tenant."""

    code = "tenant_not_found"


class ApiKey(msgspec.Struct, frozen=True):
    """What is known of a key; the key itself is not."""

    id: UUID
    name: str
    #: The key's first characters.
    prefix: str
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


class NewApiKey(msgspec.Struct, frozen=True):
    """A key just made. ``key`` is shown here and never again."""

    id: UUID
    name: str
    key: str
    created_at: datetime


@dataclass(slots=True)
class _Known:
    principal: Principal
    until: float


class Accounts:
    """Implements the API's `Authenticator`."""

    def __init__(self, database: Database, throttle: FailureThrottle, notices: NoticeListener) -> None:
        self._database = database
        self._throttle = throttle
        self._known: dict[bytes, _Known] = {}
        self._used: set[UUID] = set()
        self._generation = 0
        notices.on("keys", self._forget)

    async def create_key(self, tenant_id: UUID, name: str) -> NewApiKey:
        return await create_key(self._database, tenant_id, name)

    async def recent_keys(self, tenant_id: UUID, before: UUID, limit: int) -> list[ApiKey]:
        rows = await self._database.fetch(
            _SQL["list_keys"], {"tenant_id": tenant_id, "before": before, "limit": limit}
        )
        return [ApiKey(*row) for row in rows]

    async def revoke_key(self, tenant_id: UUID, key_id: UUID) -> ApiKey:
        """From the moment this returns the key works no more here, and elsewhere within `CACHE_S`.

        Raises:
            KeyNotFound: no such key of this tenant.
        """
        async with self._database.transaction() as connection:
            cursor = await connection.execute(_SQL["revoke_key"], {"tenant_id": tenant_id, "id": key_id})
            row = await cursor.fetchone()
            if row is None:
                raise KeyNotFound(f"no API key {key_id}")
            await notify(connection, "keys")
        self._forget()
        return ApiKey(*row)

    def known(self, key: bytes) -> Principal | None:
        known = self._known.get(_hash(key))
        if known is None or known.until <= time.monotonic():
            return None
        self._used.add(known.principal.key_id)
        return known.principal

    async def authenticate(self, key: bytes, client: str) -> Principal:
        if (principal := self.known(key)) is not None:
            return principal
        digest = _hash(key)
        if digest not in self._known:
            # A key that was good before is looked up whatever strangers at the same address do.
            await self._throttle.check(client)
        generation = self._generation
        row = None
        if key.startswith(PREFIX.encode()):
            row = await self._database.fetch_one(_SQL["key_by_hash"], {"hash": digest})
        if row is None:
            self._known.pop(digest, None)
            await self._throttle.record_failure(client)
            raise Unauthenticated("this API key is unknown or was revoked")
        principal = Principal(tenant_id=row[0], key_id=row[1])
        if generation == self._generation:
            # Otherwise a key was revoked while we looked; it may have been this one.
            if len(self._known) >= CACHE_KEYS:
                self._known.clear()
            self._known[digest] = _Known(principal, time.monotonic() + CACHE_S)
        self._used.add(principal.key_id)
        return principal

    def _forget(self, _: str = "") -> None:
        """Have every key looked up anew."""
        self._generation += 1
        now = time.monotonic()
        for known in self._known.values():
            known.until = min(known.until, now)

    async def record_use(self) -> None:
        """Write `last_used_at` of keys used since the last time, until cancelled."""
        try:
            while True:
                await asyncio.sleep(TOUCH_EVERY_S)
                await self._flush_use()
        finally:
            await self._flush_use()

    async def _flush_use(self) -> None:
        if not self._used:
            return
        ids, self._used = list(self._used), set()
        try:
            await self._database.execute(_SQL["touch_keys"], {"ids": ids})
        except ServiceError as error:
            _log.warning("last use of %d keys not recorded: %s", len(ids), error.detail)


async def create_tenant(database: Database, name: str) -> tuple[UUID, NewApiKey]:
    """A tenant of that name, made if there is none, and a new key of it."""
    tenant_id = await ensure_tenant(database, name)
    return tenant_id, await create_key(database, tenant_id, "first")


async def ensure_tenant(database: Database, name: str) -> UUID:
    """The tenant of that name, made if there is none."""
    row = await database.fetch_one(_SQL["insert_tenant"], {"id": uuid7(), "name": name})
    row = row or await database.fetch_one(_SQL["tenant_by_name"], {"name": name})
    assert row is not None
    return UUID(str(row[0]))


async def pause_tenant(database: Database, name: str, reason: str) -> UUID:
    """Sign no transactions for it, and accept none, until `resume_tenant`.

    Raises:
        TenantNotFound: there is none of that name.
    """
    return _found(name, await database.fetch_one(_SQL["pause_tenant"], {"name": name, "reason": reason}))


async def resume_tenant(database: Database, name: str) -> UUID:
    """
    Raises:
        TenantNotFound: there is none of that name.
    """
    return _found(name, await database.fetch_one(_SQL["resume_tenant"], {"name": name}))


def _found(name: str, row: TupleRow | None) -> UUID:
    if row is None:
        raise TenantNotFound(f"no tenant {name!r}")
    return UUID(str(row[0]))


async def create_key(database: Database, tenant_id: UUID, name: str) -> NewApiKey:
    key = PREFIX + secrets.token_urlsafe(32)
    row = await database.fetch_one(
        _SQL["insert_key"],
        {"tenant_id": tenant_id, "id": uuid7(), "name": name, "hash": _hash(key.encode()), "prefix": key[:8]},
    )
    assert row is not None
    return NewApiKey(id=row[0], name=row[1], key=key, created_at=row[3])


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
