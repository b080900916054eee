"""Intents: accepted, listed, shown. What happens to them afterwards is in ``pipeline.py`` and ``monitor.py``."""

import asyncio
import hashlib
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from psycopg.rows import TupleRow

from neolayer.chain.contracts import Contracts
from neolayer.chain.errors import NodeUnavailable
from neolayer.chain.scripts import build_script
from neolayer.core.errors import IdempotencyMismatch, InvalidRequest, MalformedJson
from neolayer.core.ids import uuid7
from neolayer.core.types import Hash256, Principal, gas_parse, gas_text
from neolayer.db.notices import Announcer
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.transactions.backpressure import QueueBound
from neolayer.transactions.errors import OtherNetwork, SimulationFaulted, TenantPaused, TransactionNotFound
from neolayer.transactions.limits import FeeLimits, Limits, bound
from neolayer.transactions.model import (
    HEAD_START_S,
    TOPIC,
    UNFINISHED,
    AttemptView,
    EventView,
    Priority,
    TransactionRequest,
    TransactionView,
)
from neolayer.transactions.pricing import Price, Pricing, gas_asked
from neolayer.wallets.service import Wallet, WalletPaused, Wallets

_SQL: Final = load_queries("neolayer.transactions")
_log = logging.getLogger(__name__)
#: Nodes that hang make one question wait for the other: after that an intent is stored untried. Less than clients
#: usually wait; seconds.
TRY_OUT_S: Final = 10.0
#: In every time zone the database can show such a time, and we can read it.
_YEARS: Final = range(1970, 9999)
#: Of the time, counting all history for metrics takes at most this part.
COUNTING_SHARE: Final = 1 / 200
_decode_request = msgspec.json.Decoder(TransactionRequest).decode
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode


class Transactions:
    def __init__(
        self,
        database: Database,
        wallets: Wallets,
        pricing: Pricing,
        contracts: Contracts,
        limits: FeeLimits,
        queue_bound: QueueBound,
        announcer: Announcer,
    ) -> None:
        self._database = database
        self._announcer = announcer
        self._bound = queue_bound
        self._wallets = wallets
        self._pricing = pricing
        self._contracts = contracts
        self._limits = limits
        self._final: dict[str, int] = {}
        self._final_good_until = 0.0

    async def submit_json(
        self, principal: Principal, request: bytes, *, idempotency_key: str, execution_id: UUID
    ) -> TransactionView:
        """`submit` for a running function."""
        try:
            decoded = _decode_request(request)
        except msgspec.ValidationError as error:
            raise InvalidRequest(str(error)) from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise MalformedJson(str(error)) from None
        view, _ = await self.submit(
            principal.tenant_id, decoded, idempotency_key=idempotency_key, execution_id=execution_id
        )
        return view

    async def submit(
        self,
        tenant_id: UUID,
        request: TransactionRequest,
        *,
        idempotency_key: str | None = None,
        execution_id: UUID | None = None,
    ) -> tuple[TransactionView, bool]:
        """Accept an intent; returns it and whether it is new.

        It is tried out first: what would FAULT, cost more than allowed or than the wallet has is refused and
        nothing is stored. While no node answers, or not within `TRY_OUT_S`, it is stored unseen, and tried out by
        the worker.

        Raises:
            WalletNotFound, BadCall: the request names something that does not exist, is malformed or does not fit
                the manifest of its contract.
            OtherNetwork: it is meant for another network.
            SimulationFaulted, FeeAboveCap, InsufficientGas: it would not succeed.
            IdempotencyMismatch: the key was used with another request.
            WalletPaused, TenantPaused: nothing is signed for it just now.
            QueueFull: too many are waiting.
        """
        wallet = await self._wallets.named(tenant_id, request.wallet)
        if request.not_before is not None and request.not_before.year not in _YEARS:
            raise InvalidRequest(f"not_before: a year from {_YEARS[0]} to {_YEARS[-1]}")
        script = build_script(request.calls)
        max_fee = None if request.max_fee is None else gas_parse(request.max_fee, "max_fee")
        request_hash = hashlib.sha256(_encode_sorted(request)).digest()
        id = uuid7()
        # Keys of clients and of executions never meet.
        key = str(id)
        if idempotency_key is not None:
            key = idempotency_key if execution_id else f"client:{idempotency_key}"
        terms = await self._terms(wallet, key)
        if terms.found is not None:
            return await self._same(tenant_id, terms.found, request_hash), False
        terms.check_pauses(wallet)
        await self._bound.admit(tenant_id)
        network = request.network
        try:
            async with asyncio.timeout(TRY_OUT_S):
                network = await self._pricing.network()
                price = await self._try_out(wallet, request, script, max_fee, network)
        except NodeUnavailable as error:
            price = None
            untried = error
        except TimeoutError:
            price = None
            untried = NodeUnavailable(f"the nodes did not answer within {TRY_OUT_S:g} s")
        max_fee = bound(wallet, terms.limits, max_fee, None if price is None else price.total)
        if price is None:
            if terms.limits.max_fee_per_day is not None and max_fee is None:
                raise untried  # what it may cost is not known, so it cannot be counted
            _log.warning("transaction %s queued untried: %s", id, untried.detail)
        priority = Priority[request.priority.upper()]
        params = {
            "tenant_id": tenant_id,
            "id": id,
            "wallet_id": wallet.id,
            "idempotency_key": key,
            "request_hash": request_hash,
            "calls": msgspec.json.encode(request.calls).decode(),
            "script": script,
            "call_count": len(request.calls),
            "priority": priority,
            "head_start_s": HEAD_START_S[priority],
            "valid_for_blocks": request.valid_for_blocks,
            "max_fee": max_fee,
            "grouping": request.group,
            "fifo_key": request.fifo_key,
            "not_before": request.not_before,
            "not_before_block": request.not_before_block,
            "on_expiry": request.on_expiry,
            "speed": request.speed,
            "execution_id": execution_id,
            "network": network,
        }
        counted = max_fee if terms.limits.max_fee_per_day is not None else None
        times = await self._insert(wallet, params, counted)
        if times is None:
            found = (await self._terms(wallet, key)).found
            assert found is not None
            return await self._same(tenant_id, found, request_hash), False
        return _queued(wallet, request, id, max_fee, execution_id, *times), True

    async def _terms(self, wallet: Wallet, key: str) -> "_Terms":
        params = {"tenant_id": wallet.tenant_id, "wallet_id": wallet.id, "idempotency_key": key}
        row = await self._database.fetch_one(_SQL["terms"], params)
        assert row is not None
        wallet_pause, tenant_pause, per_transaction, per_day, id, request_hash = row
        found = None if id is None else (id, bytes(request_hash))
        return _Terms(wallet_pause, tenant_pause, Limits(per_transaction, per_day), found)

    async def _insert(
        self, wallet: Wallet, params: dict[str, Any], counted: int | None
    ) -> tuple[datetime, datetime] | None:
        """When it was stored; None when its key has one already.

        Args:
            counted: datoshi for its day's sum, where the wallet has a daily limit.
        """
        if counted is None:
            row = await self._database.fetch_one(_SQL["insert"], params)
        else:
            async with self._database.transaction() as connection:
                row = await (await connection.execute(_SQL["insert"], params)).fetchone()
                if row is not None:
                    await self._limits.count(connection, wallet, params["id"], counted)
        if row is None:
            return None
        self._announcer.announce(TOPIC)
        return row[0], row[1]

    async def _try_out(
        self, wallet: Wallet, request: TransactionRequest, script: bytes, max_fee: int | None, network: int
    ) -> Price:
        if request.network not in (None, network):
            raise OtherNetwork(f"it is meant for network {request.network}; this service is on {network}")
        await self._contracts.check(request.calls)
        try:
            return await self._pricing.preflight(
                wallet,
                script,
                max_fee,
                request.speed,
                gas_asked=gas_asked(request.calls, wallet.script_hash),
            )
        except SimulationFaulted:
            # A manifest that was replaced says more than the virtual machine does.
            await self._contracts.check(request.calls, anew=True)
            raise

    async def _same(self, tenant_id: UUID, found: tuple[UUID, bytes], request_hash: bytes) -> TransactionView:
        id, hash_of_first = found
        if hash_of_first != request_hash:
            raise IdempotencyMismatch
        return await self.show(tenant_id, id)

    async def show(self, tenant_id: UUID, id: UUID) -> TransactionView:
        """
        Raises:
            TransactionNotFound: the tenant has none with this id.
        """
        row = await self._database.fetch_one(_SQL["by_id"], {"tenant_id": tenant_id, "id": id})
        if row is None:
            raise TransactionNotFound(f"no transaction {id}")
        return await self._view(tenant_id, row)

    async def recent(self, tenant_id: UUID, state: str | None, before: UUID, limit: int) -> list[TransactionView]:
        params = {"tenant_id": tenant_id, "state": state, "before": before, "limit": limit}
        rows = await self._database.fetch(_SQL["list"], params)
        return [await self._view(tenant_id, row) for row in rows]

    async def events(self, tenant_id: UUID, id: UUID) -> list[EventView]:
        """Every change of state, oldest first.

        Raises:
            TransactionNotFound: the tenant has none with this id.
        """
        rows = await self._database.fetch(_SQL["events"], {"tenant_id": tenant_id, "id": id})
        if not rows:
            raise TransactionNotFound(f"no transaction {id}")
        return [EventView(*row) for row in rows]

    async def attempts(self, tenant_id: UUID, id: UUID) -> list[AttemptView]:
        """On-chain transactions that were signed for it, oldest first.

        Raises:
            TransactionNotFound: the tenant has none with this id.
        """
        await self.show(tenant_id, id)
        rows = await self._database.fetch(_SQL["attempts_of"], {"tenant_id": tenant_id, "id": id})
        return [_attempt(row) for row in rows]

    async def count_by_state(self) -> dict[str, int]:
        """Of all tenants; 0 where a state is missing.

        What is final is counted over all history, so its figures may be as old as 200 times what counting took.
        """
        if time.monotonic() >= self._final_good_until:
            begun = time.monotonic()
            self._final = dict(await self._database.fetch(_SQL["count_final"]))
            ended = time.monotonic()
            self._final_good_until = ended + (ended - begun) / COUNTING_SHARE
        return self._final | dict(await self._database.fetch(_SQL["count_unfinished"]))

    async def _view(self, tenant_id: UUID, row: TupleRow) -> TransactionView:
        (
            id,
            wallet_id,
            state,
            cause,
            calls,
            priority,
            valid_for_blocks,
            max_fee,
            grouping,
            fifo_key,
            not_before,
            not_before_block,
            on_expiry,
            execution_id,
            txid,
            group_size,
            valid_until_block,
            system_fee,
            network_fee,
            block_index,
            block_time,
            result,
            share,
            created_at,
            updated_at,
            speed,
            cancelling,
            event,
        ) = row
        wallet = await self._wallets.get(tenant_id, wallet_id)
        return TransactionView(
            id=id,
            wallet=wallet.name,
            state=state,
            cause=cause,
            calls=calls,
            priority=Priority(priority).name.lower(),
            valid_for_blocks=valid_for_blocks,
            max_fee=_gas(max_fee),
            group=grouping,
            fifo_key=fifo_key,
            not_before=not_before,
            not_before_block=not_before_block,
            on_expiry=on_expiry,
            execution=execution_id,
            txid=None if txid is None else str(Hash256(bytes(txid))),
            group_size=group_size or None,
            valid_until_block=valid_until_block,
            system_fee=_gas(system_fee),
            network_fee=_gas(network_fee),
            block=block_index,
            block_time=block_time,
            result=_result(result, share),
            created_at=created_at,
            updated_at=updated_at,
            speed=speed,
            cancelling=cancelling and state in UNFINISHED,
            event=event,
        )


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a transaction is accepted on."""

    wallet_pause: str | None
    tenant_pause: str | None
    limits: Limits
    #: The transaction that has its idempotency key, with the hash of its request.
    found: tuple[UUID, bytes] | None

    def check_pauses(self, wallet: Wallet) -> None:
        """
        Raises:
            WalletPaused, TenantPaused: nothing is signed for it just now.
        """
        if self.wallet_pause is not None:
            raise WalletPaused(f"wallet {wallet.name!r} is paused: {self.wallet_pause}")
        if self.tenant_pause is not None:
            raise TenantPaused(f"this tenant is paused: {self.tenant_pause}")


def _queued(
    wallet: Wallet,
    request: TransactionRequest,
    id: UUID,
    max_fee: int | None,
    execution_id: UUID | None,
    created_at: datetime,
    updated_at: datetime,
) -> TransactionView:
    """As `Transactions.show` shows it until a worker takes it."""
    return TransactionView(
        id=id,
        wallet=wallet.name,
        state="queued",
        cause=None,
        calls=request.calls,
        priority=request.priority,
        valid_for_blocks=request.valid_for_blocks,
        max_fee=_gas(max_fee),
        group=request.group,
        fifo_key=request.fifo_key,
        not_before=None if request.not_before is None else request.not_before.astimezone(UTC),
        not_before_block=request.not_before_block,
        on_expiry=request.on_expiry,
        execution=execution_id,
        txid=None,
        group_size=None,
        valid_until_block=None,
        system_fee=None,
        network_fee=None,
        block=None,
        block_time=None,
        result=None,
        created_at=created_at,
        updated_at=updated_at,
        speed=request.speed,
        cancelling=False,
        event=1,
    )


def _attempt(row: TupleRow) -> AttemptView:
    txid, kind, state, role, conflicts, system_fee, network_fee, until, block, signed_at = row
    return AttemptView(
        txid=str(Hash256(bytes(txid))),
        kind=kind,
        state=state,
        executes=role == "execute",
        conflicts=[str(Hash256(bytes(named))) for named in conflicts],
        system_fee=gas_text(system_fee),
        network_fee=gas_text(network_fee),
        valid_until_block=until,
        block=block,
        signed_at=signed_at,
    )


def _gas(datoshi: int | None) -> str | None:
    return None if datoshi is None else gas_text(datoshi)


def _result(result: dict[str, Any] | None, share: int) -> dict[str, Any] | None:
    """``share``: of the system fee; datoshi. All that is paid is burned, whether consumed or not."""
    return None if result is None else result | {"gas_consumed": gas_text(share)}
