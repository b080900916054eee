"""``/api/v1/wallets``."""

import asyncio
from typing import Annotated

import msgspec
from litestar import Controller, get, post

from neolayer.api.paging import Cursor, Limit, Page, decode_cursor, page
from neolayer.core.names import NAME
from neolayer.core.types import Principal
from neolayer.wallets.service import Wallets, WalletView

Name = Annotated[str, msgspec.Meta(pattern=NAME)]


class CreateWallet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Name


class PauseWallet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Shown to whoever wonders why nothing moves.
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class WalletsController(Controller):
    path = "/api/v1/wallets"
    tags = ("wallets",)

    @post(summary="Make a wallet; its key is born in the enclave and stays there")
    async def create(self, data: CreateWallet, principal: Principal, wallets: Wallets) -> WalletView:
        return await wallets.view(await wallets.create(principal.tenant_id, data.name))

    @get(summary="List wallets with their GAS")
    async def index(
        self, principal: Principal, wallets: Wallets, limit: Limit = 20, cursor: Cursor = None
    ) -> Page[WalletView]:
        found = await wallets.recent(principal.tenant_id, decode_cursor(cursor), limit + 1)
        return page(list(await asyncio.gather(*(wallets.view(wallet) for wallet in found))), limit)

    @get("/{wallet:str}", summary="One wallet, by name or id")
    async def show(self, wallet: str, principal: Principal, wallets: Wallets) -> WalletView:
        return await wallets.view(await wallets.find(principal.tenant_id, wallet))

    @post("/{wallet:str}/pause", status_code=200, summary="Sign nothing with a wallet until it is resumed")
    async def pause(self, wallet: str, data: PauseWallet, principal: Principal, wallets: Wallets) -> WalletView:
        return await wallets.view(await wallets.pause(principal.tenant_id, wallet, data.reason))

    @post("/{wallet:str}/resume", status_code=200, summary="End a wallet's pause")
    async def resume(self, wallet: str, principal: Principal, wallets: Wallets) -> WalletView:
        return await wallets.view(await wallets.resume(principal.tenant_id, wallet))
