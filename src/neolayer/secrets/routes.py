"""``/api/v1/secrets``."""

from typing import Annotated

import msgspec
from litestar import Controller, delete, get, put
from litestar.params import Parameter

from neolayer.core.types import Principal
from neolayer.secrets.service import Secret, Secrets

#: Names as environment variables have them, so that `ctx.secrets.NAME` is plain JavaScript.
Name = Annotated[str, Parameter(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}(?!\n)$")]


class PutSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: str


class SecretList(msgspec.Struct, frozen=True):
    items: list[Secret]


class SecretsController(Controller):
    path = "/api/v1/secrets"
    tags = ("secrets",)

    @put("/{name:str}", summary="Set a secret; its value can never be read back")
    async def write(self, name: Name, data: PutSecret, principal: Principal, secrets: Secrets) -> Secret:
        return await secrets.put(principal.tenant_id, name, data.value)

    @get(summary="List secrets, without values")
    async def index(self, principal: Principal, secrets: Secrets) -> SecretList:
        return SecretList(await secrets.all(principal.tenant_id))

    @delete("/{name:str}", summary="Delete a secret")
    async def remove(self, name: Name, principal: Principal, secrets: Secrets) -> None:
        await secrets.delete(principal.tenant_id, name)
