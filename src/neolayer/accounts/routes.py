"""``/api/v1/keys``."""

from typing import Annotated

import msgspec
from litestar import Controller, delete, get, post

from neolayer.accounts.service import Accounts, ApiKey, KeyNotFound, NewApiKey
from neolayer.api.paging import Cursor, Limit, Page, decode_cursor, page
from neolayer.core.ids import parse_id
from neolayer.core.types import Principal


class CreateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class KeysController(Controller):
    path = "/api/v1/keys"
    tags = ("keys",)

    @post(summary="Make an API key; it is shown in this answer only")
    async def create(self, data: CreateKey, principal: Principal, accounts: Accounts) -> NewApiKey:
        return await accounts.create_key(principal.tenant_id, data.name)

    @get(summary="List API keys")
    async def index(
        self, principal: Principal, accounts: Accounts, limit: Limit = 20, cursor: Cursor = None
    ) -> Page[ApiKey]:
        return page(await accounts.recent_keys(principal.tenant_id, decode_cursor(cursor), limit + 1), limit)

    @delete("/{key_id:str}", status_code=200, summary="Revoke an API key")
    async def revoke(self, key_id: str, principal: Principal, accounts: Accounts) -> ApiKey:
        return await accounts.revoke_key(principal.tenant_id, parse_id(key_id, KeyNotFound, "API key"))
