"""Wallets: created in the enclave, listed here, found by name or id."""

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from psycopg.rows import TupleRow

from neolayer.chain.payload import account_of, address_of, verification_script
from neolayer.chain.rpc import RpcClient
from neolayer.chain.scripts import GAS
from neolayer.core.errors import Conflict, NotFound, ServiceError
from neolayer.core.ids import uuid7
from neolayer.core.types import Hash160, gas_text
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.enclave import Enclave

_SQL: Final = load_queries("neolayer.wallets")
_CACHED_WALLETS: Final = 10_000


class WalletExists(Conflict):
    """A wallet of this name exists."""

    code = "wallet_exists"


class WalletPaused(Conflict):
    """The wallet is paused: nothing is signed with it."""

    code = "wallet_paused"


class WalletNotFound(NotFound):
    """No such wallet."""

    code = "wallet_not_found"


@dataclass(frozen=True, slots=True)
class Wallet:
    tenant_id: UUID
    id: UUID
    name: str
    #: secp256r1, compressed, 33 bytes.
    public_key: bytes
    script_hash: Hash160
    #: The private key as only the enclave can open it.
    sealed_key: bytes
    created_at: datetime
    #: When this was read; null: not paused.
    pause_reason: str | None
    paused_at: datetime | None

    @property
    def address(self) -> str:
        return address_of(self.script_hash)


class Pause(msgspec.Struct, frozen=True):
    reason: str
    since: datetime


class WalletView(msgspec.Struct, frozen=True):
    """What the API shows. ``gas`` is null while no node answers."""

    id: UUID
    name: str
    address: str
    script_hash: str
    public_key: str
    gas: str | None
    created_at: datetime
    #: {reason, since}; null: not paused.
    paused: Pause | None


class Wallets:
    def __init__(self, database: Database, enclave: Enclave, rpc: RpcClient) -> None:
        self._database = database
        self._enclave = enclave
        self._rpc = rpc
        #: Of what `get` and `named` give only the pause ever changes, so rows are kept as long as there is room.
        self._by_id: dict[tuple[UUID, UUID], Wallet] = {}
        self._by_name: dict[tuple[UUID, str], Wallet] = {}

    async def create(self, tenant_id: UUID, name: str) -> Wallet:
        """Make a key in the enclave and remember it.

        Raises:
            WalletExists: the tenant has one of this name.
        """
        id = uuid7()
        key = await self._enclave.create_key(str(tenant_id), str(id))
        row = await self._database.fetch_one(
            _SQL["insert"],
            {
                "tenant_id": tenant_id,
                "id": id,
                "name": name,
                "public_key": key.public_key,
                "script_hash": account_of(verification_script(key.public_key)).data,
                "sealed_key": key.sealed,
            },
        )
        if row is None:
            raise WalletExists(f"a wallet named {name!r} exists")
        return _wallet(row)

    async def recent(self, tenant_id: UUID, before: UUID, limit: int) -> list[Wallet]:
        rows = await self._database.fetch(_SQL["list"], {"tenant_id": tenant_id, "before": before, "limit": limit})
        return [_wallet(row) for row in rows]

    async def find(self, tenant_id: UUID, name_or_id: str) -> Wallet:
        """
        Raises:
            WalletNotFound: the tenant has no such wallet.
        """
        row = None
        with contextlib.suppress(ValueError):
            row = await self._database.fetch_one(_SQL["by_id"], {"tenant_id": tenant_id, "id": UUID(name_or_id)})
        if row is None:
            # A name may look like an id.
            row = await self._database.fetch_one(_SQL["by_name"], {"tenant_id": tenant_id, "name": name_or_id})
        if row is None:
            raise WalletNotFound(f"no wallet {name_or_id!r}; `neolayer wallets create` makes one")
        return _wallet(row)

    async def named(self, tenant_id: UUID, name_or_id: str) -> Wallet:
        """`find`, but it asks the database once only, so that its pause may be out of date.

        Raises:
            WalletNotFound: the tenant has no such wallet.
        """
        wallet = self._by_name.get((tenant_id, name_or_id))
        if wallet is None:
            wallet = await self.find(tenant_id, name_or_id)
            if len(self._by_name) >= _CACHED_WALLETS:
                self._by_name.clear()
            self._by_name[tenant_id, name_or_id] = wallet
        return wallet

    async def pause(self, tenant_id: UUID, name_or_id: str, reason: str) -> Wallet:
        """Sign nothing with it until `resume`. What is queued waits; what was sent goes its way.

        Raises:
            WalletNotFound: the tenant has no such wallet.
        """
        wallet = await self.find(tenant_id, name_or_id)
        row = await self._database.fetch_one(
            _SQL["pause"], {"tenant_id": tenant_id, "id": wallet.id, "reason": reason}
        )
        return wallet if row is None else _wallet(row)

    async def resume(self, tenant_id: UUID, name_or_id: str) -> Wallet:
        """
        Raises:
            WalletNotFound: the tenant has no such wallet.
        """
        wallet = await self.find(tenant_id, name_or_id)
        row = await self._database.fetch_one(_SQL["resume"], {"tenant_id": tenant_id, "id": wallet.id})
        return wallet if row is None else _wallet(row)

    async def get(self, tenant_id: UUID, id: UUID) -> Wallet:
        """By id; asks the database once only, so its pause may be out of date.

        Raises:
            WalletNotFound: the tenant has no such wallet.
        """
        wallet = self._by_id.get((tenant_id, id))
        if wallet is None:
            if len(self._by_id) >= _CACHED_WALLETS:
                self._by_id.clear()
            wallet = self._by_id[tenant_id, id] = await self.find(tenant_id, str(id))
        return wallet

    async def view(self, wallet: Wallet) -> WalletView:
        """With the balance that a node reports now."""
        try:
            async with asyncio.timeout(2):
                gas = gas_text(await self._rpc.balance_of(GAS, wallet.script_hash))
        except (ServiceError, TimeoutError):
            gas = None
        return WalletView(
            id=wallet.id,
            name=wallet.name,
            address=wallet.address,
            script_hash=str(wallet.script_hash),
            public_key=wallet.public_key.hex(),
            gas=gas,
            created_at=wallet.created_at,
            paused=None
            if wallet.pause_reason is None or wallet.paused_at is None
            else Pause(wallet.pause_reason, wallet.paused_at),
        )


def _wallet(row: TupleRow) -> Wallet:
    tenant_id, id, name, public_key, script_hash, sealed_key, created_at, pause_reason, paused_at = row
    return Wallet(
        tenant_id,
        id,
        name,
        bytes(public_key),
        Hash160(bytes(script_hash)),
        bytes(sealed_key),
        created_at,
        pause_reason,
        paused_at,
    )
