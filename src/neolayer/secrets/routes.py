"""``/api/v1/secrets``."""

from typing import Annotated

import msgspec
from litestar import Controller, delete, get, put
from litestar.params import Parameter

from neolayer.core.names import SECRET_NAME
from neolayer.core.types import Principal
from neolayer.secrets.service import Secret, Secrets

Name = Annotated[str, Parameter(pattern=SECRET_NAME)]


class PutSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: Annotated[str, msgspec.Meta(min_length=1)]


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
