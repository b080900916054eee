"""Secrets of a tenant: written through the enclave, never read back."""

from datetime import datetime
from typing import Final, Literal
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
#: HPKE adds the encapsulated key and a tag.
MAX_UPLOAD_BYTES: Final = MAX_VALUE_BYTES + 32 + 16


class SecretNotFound(NotFound):
    """No such secret."""

    code = "secret_not_found"


class SecretOverwritten(Conflict):
    """A value of this or a newer version was set before."""

    code = "secret_overwritten"


class UploadNotBegun(Conflict):
    """This version was never given out: `POST /api/v1/secrets/{name}/uploads` gives one."""

    code = "upload_not_begun"


class Secret(msgspec.Struct, frozen=True):
    """Everything about a secret but its value."""

    name: str
    version: int
    #: ``sealed``: encrypted to the enclave by the client. ``plain``: the API saw it on its way.
    uploaded: Literal["sealed", "plain"]
    created_at: datetime
    updated_at: datetime


class Upload(msgspec.Struct, frozen=True):
    """What a client binds an encrypted value to. The version is good for one value."""

    tenant: UUID
    name: str
    version: int


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
        version = (await self.begin_upload(tenant_id, name)).version
        _, epoch = await self._epochs()
        ciphertext = await self._enclave.seal(str(tenant_id), name, version, plaintext, epoch)
        return await self._store(tenant_id, name, version, ciphertext, "plain", epoch)

    async def begin_upload(self, tenant_id: UUID, name: str) -> Upload:
        """Give out a version that nobody else gets."""
        row = await self._database.fetch_one(_SQL["reserve"], {"tenant_id": tenant_id, "name": name})
        assert row is not None
        return Upload(tenant_id, name, row[0])

    async def put_sealed(self, tenant_id: UUID, name: str, version: int, upload: bytes) -> Secret:
        """Store a value that the client encrypted to the enclave for exactly these names.

        Raises:
            InvalidRequest: the upload is larger than that of the largest value.
            UploadNotBegun: `begin_upload` did not give this version.
            SecretOverwritten: this or a newer version was stored before; an upload cannot be played again.
            EnclaveRefused: code ``upload_invalid``.
        """
        if len(upload) > MAX_UPLOAD_BYTES:
            raise InvalidRequest(f"a secret has at most {MAX_VALUE_BYTES} bytes")
        row = await self._database.fetch_one(_SQL["state"], {"tenant_id": tenant_id, "name": name})
        stored, issued = row or (0, 0)
        if version > issued:
            raise UploadNotBegun
        if version <= stored:
            raise _overwritten(name)
        _, epoch = await self._epochs()
        ciphertext = await self._enclave.seal_upload(str(tenant_id), name, version, upload, epoch)
        return await self._store(tenant_id, name, version, ciphertext, "sealed", epoch)

    async def _store(
        self, tenant_id: UUID, name: str, version: int, ciphertext: bytes, uploaded: str, epoch: int
    ) -> Secret:
        params = {"tenant_id": tenant_id, "name": name, "version": version}
        params |= {"ciphertext": ciphertext, "uploaded": uploaded, "epoch": epoch}
        async with self._database.transaction() as connection:
            cursor = await connection.execute(_SQL["store"], params)
            stored = await cursor.fetchone()
            if stored is None:
                raise _overwritten(name)
            await notify(connection, TOPIC, str(tenant_id))
        self._notices.dispatch(TOPIC, str(tenant_id))
        return Secret(*stored)

    async def _epochs(self) -> tuple[int, int]:
        row = await self._database.fetch_one(_SQL["epochs"])
        assert row is not None
        return row[0], row[1]

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


def _overwritten(name: str) -> SecretOverwritten:
    return SecretOverwritten(f"a value of {name!r} of this or a newer version was set before; set it again")
