"""``/api/v1/secrets``."""

from typing import Annotated

import msgspec
from litestar import Controller, delete, get, post, put
from litestar.params import Parameter

from neolayer.core.errors import InvalidRequest
from neolayer.core.names import SECRET_NAME
from neolayer.core.types import Principal
from neolayer.secrets.service import Secret, Secrets, Upload

Name = Annotated[str, Parameter(pattern=SECRET_NAME)]


class SealedValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value encrypted to the enclave's attested key, see docs/secrets.md."""

    #: As given by ``POST /api/v1/secrets/{name}/uploads``.
    version: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    #: Base64.
    ciphertext: bytes


class PutSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Either of the two."""

    value: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    sealed: SealedValue | None = None


class SecretList(msgspec.Struct, frozen=True):
    items: list[Secret]


class SecretsController(Controller):
    path = "/api/v1/secrets"
    tags = ("secrets",)

    @put("/{name:str}", summary="Set a secret; its value can never be read back")
    async def write(self, name: Name, data: PutSecret, principal: Principal, secrets: Secrets) -> Secret:
        if data.sealed is not None and data.value is None:
            sealed = data.sealed
            return await secrets.put_sealed(principal.tenant_id, name, sealed.version, sealed.ciphertext)
        if data.value is not None and data.sealed is None:
            return await secrets.put(principal.tenant_id, name, data.value)
        raise InvalidRequest("a secret is set by either `sealed` or `value`")

    @post("/{name:str}/uploads", summary="Begin an encrypted upload: what its ciphertext must be bound to")
    async def begin(self, name: Name, principal: Principal, secrets: Secrets) -> Upload:
        return await secrets.begin_upload(principal.tenant_id, name)

    @get(summary="List secrets, without values")
    async def index(self, principal: Principal, secrets: Secrets) -> SecretList:
        return SecretList(await secrets.all(principal.tenant_id))

    @delete("/{name:str}", summary="Delete a secret")
    async def remove(self, name: Name, principal: Principal, secrets: Secrets) -> None:
        await secrets.delete(principal.tenant_id, name)
