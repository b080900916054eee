"""``/api/v1/chain/watches``."""

from typing import Annotated

import msgspec
from litestar import Controller, delete, get, post

from neolayer.api.paging import Cursor, Limit, Page, decode_cursor, page
from neolayer.core.types import Principal
from neolayer.watches.service import Watches, WatchView


class CreateWatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: ``0x…`` or the name of a native contract like ``GasToken``.
    contract: Annotated[str, msgspec.Meta(max_length=100)]
    #: As the contract names it; left out: all of them. Neo allows 32 bytes.
    event: Annotated[str, msgspec.Meta(min_length=1, max_length=32, pattern="^[^\\x00]*$")] | None = None


class WatchesController(Controller):
    path = "/api/v1/chain/watches"
    tags = ("chain",)

    @post(
        summary="Be told of what a contract notifies of",
        description="From now on each notification is an event `notification` of `GET /api/v1/events`.",
    )
    async def create(self, data: CreateWatch, principal: Principal, watches: Watches) -> WatchView:
        return await watches.create(principal.tenant_id, data.contract, data.event)

    @get(summary="List watches, newest first")
    async def index(
        self, principal: Principal, watches: Watches, limit: Limit = 20, cursor: Cursor = None
    ) -> Page[WatchView]:
        return page(await watches.recent(principal.tenant_id, decode_cursor(cursor), limit + 1), limit)

    @get("/{id:str}", summary="One watch")
    async def show(self, id: str, principal: Principal, watches: Watches) -> WatchView:
        return await watches.show(principal.tenant_id, id)

    @delete("/{id:str}", summary="End a watch; its events stay")
    async def remove(self, id: str, principal: Principal, watches: Watches) -> None:
        await watches.delete(principal.tenant_id, id)
