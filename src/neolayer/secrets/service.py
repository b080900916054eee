"""Secrets of a tenant: written through the enclave, never read back."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from neolayer.core.errors import Conflict, InvalidRequest, NotFound
from neolayer.db.notices import NoticeListener, notify
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.enclave import Enclave, SealedSecret

_SQL: Final = load_queries("neolayer.secrets")
#: Notices of this topic carry the tenant's id.
TOPIC: Final = "secrets"
MAX_VALUE_BYTES: Final = 64 * 1024


class SecretNotFound(NotFound):
    """No such secret."""

    code = "secret_not_found"


class SecretOverwritten(Conflict):
    """Another value was set at the same time."""

    code = "secret_overwritten"


class Secret(msgspec.Struct, frozen=True):
    """Everything about a secret but its value."""

    name: str
    version: int
    created_at: datetime
    updated_at: datetime


class Secrets:
    def __init__(self, database: Database, enclave: Enclave, notices: NoticeListener) -> None:
        self._database = database
        self._enclave = enclave
        self._notices = notices

    async def put(self, tenant_id: UUID, name: str, value: str) -> Secret:
        """Store a new version; functions see it from their next call on.

        Raises:
            InvalidRequest: value too large.
            SecretOverwritten: a newer version was stored meanwhile.
        """
        plaintext = value.encode()
        if len(plaintext) > MAX_VALUE_BYTES:
            raise InvalidRequest(f"a secret has at most {MAX_VALUE_BYTES} bytes, this one has {len(plaintext)}")
        key: dict[str, Any] = {"tenant_id": tenant_id, "name": name}
        row = await self._database.fetch_one(_SQL["next_version"], key)
        assert row is not None
        version = row[0]
        ciphertext = await self._enclave.seal(str(tenant_id), name, version, plaintext)
        async with self._database.transaction() as connection:
            cursor = await connection.execute(_SQL["store"], key | {"version": version, "ciphertext": ciphertext})
            stored = await cursor.fetchone()
            if stored is None:
                raise SecretOverwritten(f"another value of {name!r} was set at the same time and is the newer one")
            await notify(connection, TOPIC, str(tenant_id))
        self._notices.dispatch(TOPIC, str(tenant_id))
        return Secret(*stored)

    async def all(self, tenant_id: UUID) -> list[Secret]:
        return [Secret(*row) for row in await self._database.fetch(_SQL["list"], {"tenant_id": tenant_id})]

    async def delete(self, tenant_id: UUID, name: str) -> None:
        """
        Raises:
            SecretNotFound: the tenant has none of this name.
        """
        async with self._database.transaction() as connection:
            cursor = await connection.execute(_SQL["delete"], {"tenant_id": tenant_id, "name": name})
            if cursor.rowcount == 0:
                raise SecretNotFound(f"no secret {name!r}")
            await notify(connection, TOPIC, str(tenant_id))
        self._notices.dispatch(TOPIC, str(tenant_id))

    async def sealed(self, tenant_id: UUID, names: list[str]) -> list[SealedSecret]:
        """Those of ``names`` that exist, by name, as the enclave takes them."""
        if not names:
            return []
        rows = await self._database.fetch(_SQL["sealed"], {"tenant_id": tenant_id, "names": names})
        return [SealedSecret(name, version, bytes(ciphertext)) for name, version, ciphertext in rows]
