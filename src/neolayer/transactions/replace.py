"""Cancelling and speeding up what is signed: another on-chain transaction that takes its place.

What was signed cannot be called back, any node may have it. The replacement names every live attempt in Conflicts
and pays more than all of them together by our own record, whatever pools show: a dearer one that comes late would
displace it. So at most one of them is ever in the chain, and only the chain tells which. Like any attempt the
replacement is stored before it is sent, and the workers send it.

Intents that shared the attempt go along: the replacement carries out all of them but the one that is cancelled,
and that one pays for it. All live attempts of an intent therefore carry the same intents.
"""

import secrets
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

import msgspec

from neolayer.chain.errors import WrongNetwork
from neolayer.chain.market import Speed
from neolayer.chain.payload import (
    MAX_SIGNERS_AND_ATTRIBUTES,
    Conflicts,
    Signer,
    UnsignedTransaction,
    signature_witness,
    verification_script,
)
from neolayer.chain.rpc import InvokeResult, RpcClient
from neolayer.core.types import Hash256, gas_text
from neolayer.db.notices import notify
from neolayer.db.pool import Connection, Database
from neolayer.db.sql import load_queries
from neolayer.enclave import Enclave
from neolayer.transactions.errors import (
    FeeAboveCap,
    SimulationFaulted,
    TooLate,
    TooManyAttempts,
    TransactionBusy,
    TransactionNotFound,
)
from neolayer.transactions.grouping import joined, shares
from neolayer.transactions.limits import FeeLimits
from neolayer.transactions.model import TOPIC, UNFINISHED
from neolayer.transactions.pricing import Pricing, gas_moved_away
from neolayer.wallets.service import Wallet, Wallets

_SQL: Final = load_queries("neolayer.transactions")
#: Does nothing: the script of a replacement that carries out nothing.
_NOTHING: Final = b"\x40"  # RET
#: Times that a replacement is made anew because the attempts changed meanwhile.
TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Live:
    """An attempt that a block may take; fees in datoshi."""

    txid: Hash256
    grouped: bool
    network: int
    valid_until_block: int
    system_fee: int
    network_fee: int


@dataclass(frozen=True, slots=True)
class Carried:
    """An intent of the live attempts, and its share of the dearest one's fees; datoshi."""

    id: UUID
    script: bytes
    cancel: bool
    system_fee: int
    network_fee: int
    valid_for_blocks: int
    max_fee: int | None
    #: Already in its day's sum, see `limits`.
    counted_fee: int
    #: Paid already, for a group that failed.
    paid: int


@dataclass(frozen=True, slots=True)
class Family:
    """An intent with all that must be replaced together."""

    state: str
    txid: Hash256 | None
    wallet_id: UUID
    speed: Speed
    cancelling: bool
    attempts: tuple[Live, ...] = ()
    #: Those that are carried out first, in the order of their calls.
    carried: tuple[Carried, ...] = ()

    @property
    def cancelled(self) -> bool:
        return self.state == "cancelled"

    def too_late(self) -> TooLate:
        txid = None if self.txid is None else str(self.txid)
        return TooLate(f"it is {self.state} already", state=self.state, txid=txid)


@dataclass(frozen=True, slots=True)
class Replacement:
    """Signed, not yet stored."""

    wallet: Wallet
    unsigned: UnsignedTransaction
    raw: bytes
    network: int
    grouped: bool
    gas_out: int
    #: With the shares of its own fees.
    carried: tuple[Carried, ...]


class Replacements:
    def __init__(
        self,
        database: Database,
        rpc: RpcClient,
        enclave: Enclave,
        wallets: Wallets,
        pricing: Pricing,
        limits: FeeLimits,
    ) -> None:
        self._database = database
        self._rpc = rpc
        self._enclave = enclave
        self._wallets = wallets
        self._pricing = pricing
        self._limits = limits

    async def cancel(self, tenant_id: UUID, id: UUID, max_fee: int | None) -> None:
        """End what is queued; for what is signed, store a replacement that leaves it out.

        Doing it again changes nothing.

        Args:
            max_fee: most that cancelling may cost, the fees of the intent included; datoshi.

        Raises:
            TransactionNotFound: the tenant has none with this id.
            TooLate: its state is final, and another one.
            FeeAboveCap, DailyCapReached: it would cost too much.
            TooManyAttempts: no more fit into one transaction's Conflicts.
            NodeUnavailable: no node answers; the intent goes on.
        """
        for _ in range(TRIES):
            family = await self._family(tenant_id, id)
            if family.cancelled or any(one.id == id and one.cancel for one in family.carried):
                return
            if family.state == "queued":
                if await self._end_queued(tenant_id, id):
                    return
            elif family.attempts:
                replacement = await self._build(family, tenant_id, id, speed=family.speed, cancel=True)
                self._hold_to_cap(replacement, id, max_fee)
                if await self._store(family, replacement, id, kind="cancel", speed=None, max_fee=None):
                    return
        raise TransactionBusy

    async def speed_up(self, tenant_id: UUID, id: UUID, speed: Speed, max_fee: int | None) -> None:
        """Pay more for what is signed, or for cancelling it; what is queued is signed with the new tier.

        Args:
            max_fee: replaces the intent's own; datoshi.

        Raises:
            SimulationFaulted: it would FAULT by now; the intent goes on.
            Others: as `cancel`.
        """
        for _ in range(TRIES):
            family = await self._family(tenant_id, id)
            if family.cancelled:
                raise family.too_late()
            if family.state == "queued":
                if await self._speed_up_queued(family, tenant_id, id, speed, max_fee):
                    return
            elif family.attempts:
                replacement = await self._build(family, tenant_id, id, speed=speed, cancel=False)
                mine = next(one for one in replacement.carried if one.id == id)
                cap = max_fee if max_fee is not None or family.cancelling else mine.max_fee
                self._hold_to_cap(replacement, id, cap)
                if await self._store(family, replacement, id, kind="speed_up", speed=speed, max_fee=max_fee):
                    return
        raise TransactionBusy

    # --- what there is ------------------------------------------------------------------------------------------

    async def _family(self, tenant_id: UUID, id: UUID) -> Family:
        params = {"tenant_id": tenant_id, "id": id}
        row = await self._database.fetch_one(_SQL["replaceable"], params)
        if row is None:
            raise TransactionNotFound(f"no transaction {id}")
        state, txid, wallet_id, speed, cancelling = row
        hash_ = None if txid is None else Hash256(bytes(txid))
        family = Family(state, hash_, wallet_id, speed, cancelling)
        if state not in UNFINISHED:
            if family.cancelled:
                return family
            raise family.too_late()
        attempts = [Live(Hash256(bytes(row[0])), *row[1:]) for row in await self._attempts(params)]
        carried: list[Carried] = []
        if attempts:
            dearest = max(attempts, key=lambda one: one.network_fee)
            rows = await self._database.fetch(_SQL["carried"], {"tenant_id": tenant_id, "txid": dearest.txid.data})
            carried = [Carried(id, bytes(script), *rest) for id, script, *rest in rows]
        return replace(family, attempts=tuple(attempts), carried=tuple(carried))

    async def _attempts(self, params: dict[str, Any], connection: Connection | None = None) -> list[Any]:
        if connection is None:
            return await self._database.fetch(_SQL["live_of"], params)
        return await (await connection.execute(_SQL["live_of"], params)).fetchall()

    async def _end_queued(self, tenant_id: UUID, id: UUID) -> bool:
        return await self._database.execute(_SQL["cancel_queued"], {"tenant_id": tenant_id, "id": id}) == 1

    async def _speed_up_queued(
        self, family: Family, tenant_id: UUID, id: UUID, speed: Speed, max_fee: int | None
    ) -> bool:
        """False when it is not queued any more. A higher `max_fee` is held to the wallet's limits, as that of a
        new transaction is."""
        wallet = await self._wallets.get(tenant_id, family.wallet_id)
        cap = (await self._limits.of(wallet)).max_fee_per_transaction
        if max_fee is not None and cap is not None:
            max_fee = min(max_fee, cap)
        params = {"tenant_id": tenant_id, "id": id, "speed": speed, "max_fee": max_fee}
        async with self._database.transaction() as connection:
            row = await (await connection.execute(_SQL["speed_up_queued"], params)).fetchone()
            if row is not None and max_fee is not None and max_fee > row[0]:
                await self._limits.count(connection, wallet, id, max_fee - row[0])
        return row is not None

    # --- the replacement ----------------------------------------------------------------------------------------

    async def _build(
        self, family: Family, tenant_id: UUID, id: UUID, *, speed: Speed, cancel: bool
    ) -> Replacement:
        version, policy = await self._rpc.version(), await self._pricing.policy()
        network = family.attempts[0].network
        if network != version.network:
            raise WrongNetwork(f"signed for network {network}, the node is of {version.network}")
        if 1 + len(family.attempts) > MAX_SIGNERS_AND_ATTRIBUTES:
            raise TooManyAttempts
        wallet = await self._wallets.get(tenant_id, family.wallet_id)
        marked = [replace(one, cancel=one.cancel or (cancel and one.id == id)) for one in family.carried]
        executed = [one for one in marked if not one.cancel]
        grouped = family.attempts[0].grouped and bool(executed)
        script = _script(executed, grouped=grouped)
        result = await self._rpc.invoke_script(script, [Signer(wallet.script_hash)])
        longest = max(one.valid_until_block for one in family.attempts)
        # As long as what it replaces, or that might still come.
        asking = next(one for one in marked if one.id == id)
        until = max(longest, policy.height + asking.valid_for_blocks)
        draft = UnsignedTransaction(
            nonce=secrets.randbits(32),
            system_fee=_system_fee(result, family, cancel=cancel),
            network_fee=0,
            valid_until_block=min(until, policy.height + version.max_valid_until_block_increment),
            signers=(Signer(wallet.script_hash),),
            script=script,
            attributes=tuple(Conflicts(one.txid) for one in family.attempts),
        )
        rate = await self._pricing.rate(speed, policy.height)
        needed = policy.network_fee(draft, [verification_script(wallet.public_key)], rate=rate)
        above_all = sum(one.network_fee for one in family.attempts) + 1
        unsigned = replace(draft, network_fee=max(needed, above_all))
        signature = await self._enclave.sign_transaction(
            str(tenant_id), str(wallet.id), wallet.sealed_key, network, unsigned.data
        )
        return Replacement(
            wallet=wallet,
            unsigned=unsigned,
            raw=unsigned.with_witnesses([signature_witness(signature.signature, wallet.public_key)]),
            network=network,
            grouped=grouped,
            gas_out=gas_moved_away(result.notifications, wallet.script_hash) if result.halted else 0,
            carried=_divided(executed, [one for one in marked if one.cancel], unsigned, id),
        )

    def _hold_to_cap(self, replacement: Replacement, id: UUID, cap: int | None) -> None:
        """
        Args:
            cap: of the intent that asked; the others keep their own.
        """
        for one in replacement.carried:
            fee, most = one.system_fee + one.network_fee, cap if one.id == id else one.max_fee
            if not one.cancel:
                fee += one.paid
            if most is not None and not (one.cancel and one.id != id) and fee > most:
                raise FeeAboveCap(
                    f"transaction {one.id} would then cost {gas_text(fee)} GAS, "
                    f"{gas_text(most)} is the most that it may",
                    fee=gas_text(fee),
                    max_fee=gas_text(most),
                )

    async def _store(
        self,
        family: Family,
        replacement: Replacement,
        id: UUID,
        *,
        kind: str,
        speed: Speed | None,
        max_fee: int | None,
    ) -> bool:
        """Store it for the workers to send; False when the attempts it replaces are no longer those."""
        wallet, unsigned = replacement.wallet, replacement.unsigned
        key = {"tenant_id": wallet.tenant_id, "id": id}
        mine = next(one for one in replacement.carried if one.id == id)
        fee = mine.paid + mine.system_fee + mine.network_fee
        limits = await self._limits.of(wallet)
        if limits.max_fee_per_transaction is not None:
            self._hold_to_cap(replacement, id, limits.max_fee_per_transaction)
        if max_fee is not None and limits.max_fee_per_transaction is not None:
            max_fee = min(max_fee, limits.max_fee_per_transaction)
        if max_fee is not None and limits.max_fee_per_day is not None:
            # Should it be signed anew, then for no more than is counted now.
            max_fee = min(max_fee, max(fee, mine.counted_fee))
        cause = {
            "code": "cancelling" if mine.cancel else "speeding_up",
            "message": f"{unsigned.hash} is to take its place",
        }
        async with self._database.transaction() as connection:
            # In one order everywhere; and looked at again afterwards, as whoever held them may have added one.
            await connection.execute(_SQL["lock_live"], key)
            found = {bytes(row[0]) for row in await self._attempts(key, connection)}
            if found != {one.txid.data for one in family.attempts}:
                return False
            await connection.execute(_SQL["store_replacement"], _params(replacement, kind))
            await connection.execute(
                _SQL["ask_replacement"],
                key
                | {
                    "cancel": mine.cancel,
                    "speed": speed,
                    "max_fee": max_fee,
                    "cause": msgspec.json.encode(cause).decode(),
                },
            )
            if fee > mine.counted_fee:
                await self._limits.count(connection, wallet, id, fee - mine.counted_fee)
            await notify(connection, TOPIC)
        return True


def _script(executed: list[Carried], *, grouped: bool) -> bytes:
    if not executed:
        return _NOTHING
    return joined([one.script for one in executed]) if grouped else executed[0].script


def _system_fee(result: InvokeResult, family: Family, *, cancel: bool) -> int:
    """Datoshi. When others of a group fail by now, cancelling goes on: they end in FAULT and go on alone."""
    if result.halted:
        return result.gas_consumed
    if not cancel and not family.cancelling:
        raise SimulationFaulted(
            f"the calls would FAULT by now: {result.exception}", exception=result.exception, vmstate=result.state
        )
    return max(one.system_fee for one in family.attempts)


def _divided(
    executed: list[Carried], cancelled: list[Carried], unsigned: UnsignedTransaction, asking: UUID
) -> tuple[Carried, ...]:
    """Who bears the fees: others the network fee that they bore before, the one that asks all that is more."""
    system = shares(unsigned.system_fee, [one.system_fee for one in executed or cancelled])
    carried = [replace(one, system_fee=fee) for one, fee in zip(executed or cancelled, system, strict=True)]
    if executed:
        carried += [replace(one, system_fee=0) for one in cancelled]
    others = sum(one.network_fee for one in carried if one.id != asking)
    return tuple(
        replace(one, network_fee=unsigned.network_fee - others) if one.id == asking else one for one in carried
    )


def _params(replacement: Replacement, kind: str) -> dict[str, Any]:
    unsigned, carried = replacement.unsigned, replacement.carried
    return {
        "tenant_id": replacement.wallet.tenant_id,
        "wallet_id": replacement.wallet.id,
        "txid": unsigned.hash.data,
        "network": replacement.network,
        "raw": replacement.raw,
        "kind": kind,
        "conflicts_with": [
            attribute.hash.data for attribute in unsigned.attributes if isinstance(attribute, Conflicts)
        ],
        "gas_out": replacement.gas_out,
        "grouped": replacement.grouped,
        "valid_until_block": unsigned.valid_until_block,
        "system_fee": unsigned.system_fee,
        "network_fee": unsigned.network_fee,
        "ids": [one.id for one in carried],
        "roles": ["cancel" if one.cancel else "execute" for one in carried],
        "system_fees": [one.system_fee for one in carried],
        "network_fees": [one.network_fee for one in carried],
    }
