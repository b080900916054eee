"""On-chain transactions before they are sent: signed bytes, the intents they carry, the room in their wallets.

Nodes refuse a transaction when the fees of all pooled ones of its sender and its own are more than the sender's
GAS (−511). What a wallet's live attempts may cost is kept in the database, and an attempt that does not fit beside
them is not stored. It counts the GAS that the calls move away, too: once a block carries them out, the rest must
still do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg.rows import TupleRow

from neolayer.chain.errors import ExecutionFaulted, RpcError
from neolayer.chain.rpc import RpcClient, invoke_result_from_json
from neolayer.chain.scripts import GAS
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.transactions.queue import Intent
from neolayer.wallets.service import Wallet

_SQL: Final = load_queries("neolayer.transactions")


@dataclass(frozen=True, slots=True)
class Share:
    """What one intent of an attempt bears of its fees; datoshi."""

    intent: Intent
    system_fee: int
    network_fee: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """Signed, not yet stored. Fees are in datoshi."""

    txid: bytes
    raw: bytes
    wallet: Wallet
    grouped: bool
    valid_until_block: int
    #: Of the chain when it was signed.
    height: int
    system_fee: int
    network_fee: int
    #: GAS that the calls move out of the wallet; datoshi.
    gas_out: int
    #: In the order of their calls in the script.
    shares: tuple[Share, ...]

    @property
    def cost(self) -> int:
        return self.system_fee + self.network_fee + self.gas_out


@dataclass(slots=True)
class Room:
    """What a wallet can still spend."""

    #: Datoshi, at `height` or later.
    balance: int
    height: int
    reserved: int
    #: Of the latest block that changed what is reserved. A balance from before it may hold what that block took.
    reserved_height: int

    @property
    def free(self) -> int:
        return self.balance - self.reserved if self.height >= self.reserved_height else 0


type Rooms = dict[UUID, Room]


class Attempts:
    """The store of attempts."""

    def __init__(self, database: Database, rpc: RpcClient, *, lease_s: float) -> None:
        self._database = database
        self._rpc = rpc
        self._lease_s = lease_s

    async def rooms(self, wallets: Sequence[Wallet], network: int) -> Rooms:
        """By id of the wallet.

        Reservations are read before balances: what a block released in between is then missing in both.

        Raises:
            NodeUnavailable: no node tells the balances.
        """
        rows = await self._database.fetch(_SQL["reservations"], _wallet_params(wallets, network))
        reserved = {wallet_id: (amount, height) for _, wallet_id, amount, height in rows}
        count, *replies = await self._rpc.batch([("getblockcount", []), *(_balance_call(one) for one in wallets)])
        if isinstance(count, RpcError):
            raise count
        rooms = {}
        for wallet, reply in zip(wallets, replies, strict=True):
            amount, height = reserved.get(wallet.id, (0, 0))
            rooms[wallet.id] = Room(_balance(reply), count - 1, amount, height)
        return rooms

    async def store(self, lease: UUID, attempts: Sequence[Attempt], rooms: Rooms, network: int) -> list[Attempt]:
        """Store attempts and make their intents ``signed``; returns those that are stored, and may be sent.

        The others do not fit into their wallets any more, because another worker was first, or an intent of theirs
        is no longer ours: its lease ended, it was cancelled, or its wallet or tenant was paused.
        """
        if not attempts:
            return []
        wallets = {attempt.wallet.id: attempt.wallet for attempt in attempts}
        async with self._database.transaction() as connection:
            cursor = await connection.execute(_SQL["lock_reservations"], _wallet_params(wallets.values(), network))
            for _, wallet_id, reserved, height in await cursor.fetchall():
                rooms[wallet_id].reserved, rooms[wallet_id].reserved_height = reserved, height
            fitting = [attempt for attempt in attempts if take(rooms[attempt.wallet.id], attempt.cost)]
            params = self._store_params(fitting) | {"lease": lease, "network": network, "lease_s": self._lease_s}
            rows = await (await connection.execute(_SQL["store"], params)).fetchall()
        stored = {bytes(txid) for (txid,) in rows}
        return [attempt for attempt in fitting if attempt.txid in stored]

    def _store_params(self, attempts: Sequence[Attempt]) -> dict[str, list[Any]]:
        carried = [
            (attempt.txid, position, share)
            for attempt in attempts
            for position, share in enumerate(attempt.shares)
        ]
        return {
            "txids": [attempt.txid for attempt in attempts],
            "tenants": [attempt.wallet.tenant_id for attempt in attempts],
            "wallets": [attempt.wallet.id for attempt in attempts],
            "raws": [attempt.raw for attempt in attempts],
            "grouped": [attempt.grouped for attempt in attempts],
            "until": [attempt.valid_until_block for attempt in attempts],
            "attempt_system_fees": [attempt.system_fee for attempt in attempts],
            "attempt_network_fees": [attempt.network_fee for attempt in attempts],
            "gas_out": [attempt.gas_out for attempt in attempts],
            "heights": [attempt.height for attempt in attempts],
            "sizes": [len(attempt.shares) for attempt in attempts],
            "of": [txid for txid, _, _ in carried],
            "positions": [position for _, position, _ in carried],
            "ids": [share.intent.id for _, _, share in carried],
            "system_fees": [share.system_fee for _, _, share in carried],
            "network_fees": [share.network_fee for _, _, share in carried],
        }

    async def wallets_wait(self, wallets: Iterable[Wallet], network: int, delay_s: float) -> None:
        """Lease nothing of wallets that lack GAS for a while, or until a block releases some of theirs."""
        await self._database.execute(_SQL["wallets_wait"], _wallet_params(wallets, network) | {"delay_s": delay_s})

    async def lease_signed(self, lease: UUID, limit: int) -> list[TupleRow]:
        """Attempts whose sender died or is to send them again: (tenant_id, txid, raw, network, tries,
        whether somebody may have sent them before)."""
        params = {"lease": lease, "lease_s": self._lease_s, "limit": limit}
        return await self._database.fetch(_SQL["lease_signed"], params)


def take(room: Room, cost: int) -> bool:
    """Count a cost into a wallet's reservation if there is room for it."""
    if cost > room.free:
        return False
    room.reserved += cost
    return True


def _wallet_params(wallets: Iterable[Wallet], network: int) -> dict[str, Any]:
    wallets = list(wallets)
    return {
        "tenants": [wallet.tenant_id for wallet in wallets],
        "wallets": [wallet.id for wallet in wallets],
        "network": network,
    }


def _balance_call(wallet: Wallet) -> tuple[str, list[Any]]:
    argument = {"type": "Hash160", "value": str(wallet.script_hash)}
    return "invokefunction", [str(GAS), "balanceOf", [argument]]


def _balance(reply: Any) -> int:
    if isinstance(reply, RpcError):
        raise reply
    result = invoke_result_from_json(reply)
    if not result.halted:
        raise ExecutionFaulted(result.exception)
    return int(result.stack[0]["value"])
