"""What a wallet may spend on fees: for each transaction, and for each day (UTC).

A transaction of a wallet with a daily limit is counted when it is stored, at the most it can cost: its `max_fee`,
which is set for it if it has none. As nothing is signed above that, the day's sum is never less than what the
wallet pays, whatever happens in between. What a transaction did not use is given back once it has ended.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from uuid import UUID

import msgspec

from neolayer.core.types import gas_parse, gas_text
from neolayer.db.pool import Connection, Database
from neolayer.db.sql import load_queries
from neolayer.transactions.errors import DailyCapReached, FeeAboveCap
from neolayer.wallets.service import Wallet

_SQL: Final = load_queries("neolayer.transactions")
#: Between trying out and signing prices may rise by this share of the fee without the transaction being refused.
HEADROOM: Final = 0.25


@dataclass(frozen=True, slots=True)
class Limits:
    """Datoshi; None is no limit."""

    max_fee_per_transaction: int | None = None
    max_fee_per_day: int | None = None


class LimitsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GAS as decimal strings; null or left out: no limit."""

    max_fee_per_transaction: str | None = None
    max_fee_per_day: str | None = None


class LimitsView(msgspec.Struct, frozen=True, kw_only=True):
    max_fee_per_transaction: str | None
    max_fee_per_day: str | None
    #: The UTC day that counts now.
    day: date
    #: Of this day: what was paid, and the most that what is under way may cost. Counted while there is a daily
    #: limit.
    counted: str
    #: When the next day begins.
    resets_at: datetime


class FeeLimits:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, wallet: Wallet) -> Limits:
        row = await self._database.fetch_one(_SQL["limits"], _key(wallet.tenant_id, wallet.id))
        return Limits(*row) if row else Limits()

    async def set(self, wallet: Wallet, request: LimitsRequest) -> LimitsView:
        """Takes effect for what is accepted from now on.

        Raises:
            InvalidRequest: an amount is none.
        """
        params = _key(wallet.tenant_id, wallet.id) | {
            "max_fee_per_transaction": _datoshi(request.max_fee_per_transaction, "max_fee_per_transaction"),
            "max_fee_per_day": _datoshi(request.max_fee_per_day, "max_fee_per_day"),
        }
        await self._database.execute(_SQL["set_limits"], params)
        return await self.view(wallet)

    async def view(self, wallet: Wallet) -> LimitsView:
        limits = await self.of(wallet)
        day = _today()
        async with self._database.transaction() as connection:
            await self._settle(connection, wallet)
            counted = await self._counted(connection, wallet, day)
        return LimitsView(
            max_fee_per_transaction=_gas(limits.max_fee_per_transaction),
            max_fee_per_day=_gas(limits.max_fee_per_day),
            day=day,
            counted=gas_text(counted),
            resets_at=_end(day),
        )

    async def count(self, connection: Connection, wallet: Wallet, id: UUID, datoshi: int) -> None:
        """Count what a transaction may cost at most, in the database transaction that stores it.

        Does nothing for a wallet without a daily limit.

        Args:
            datoshi: to be added to what was counted for this transaction before.

        Raises:
            DailyCapReached: the day's sum would be above the limit.
        """
        key = _key(wallet.tenant_id, wallet.id)
        # Whoever counts for this wallet at the same time waits here.
        row = await (await connection.execute(_SQL["lock_daily_limit"], key)).fetchone()
        if row is None:
            return
        await self._settle(connection, wallet)
        cap, day = row[0], _today()
        counted = await self._counted(connection, wallet, day)
        if counted + datoshi > cap:
            raise DailyCapReached(
                f"it may cost {gas_text(datoshi)} GAS; wallet {wallet.name!r} may pay {gas_text(cap)} a day, "
                f"{gas_text(counted)} of it are paid or promised until {_end(day):%Y-%m-%dT%H:%MZ}",
                fee=gas_text(datoshi),
                counted=gas_text(counted),
                max_fee_per_day=gas_text(cap),
                resets_at=_end(day).isoformat(),
            )
        await connection.execute(_SQL["count_fee"], key | {"day": day, "datoshi": datoshi})
        await connection.execute(_SQL["mark_counted"], key | {"id": id, "day": day, "datoshi": datoshi})

    async def _settle(self, connection: Connection, wallet: Wallet) -> None:
        """Give back what transactions that have ended did not use."""
        await connection.execute(_SQL["settle_fees"], _key(wallet.tenant_id, wallet.id))

    async def _counted(self, connection: Connection, wallet: Wallet, day: date) -> int:
        params = _key(wallet.tenant_id, wallet.id) | {"day": day}
        row = await (await connection.execute(_SQL["counted_fees"], params)).fetchone()
        return row[0] if row else 0


def bound(wallet: Wallet, limits: Limits, max_fee: int | None, fee: int | None) -> int | None:
    """The most that a transaction may cost, datoshi; None when nothing bounds it.

    Args:
        max_fee: the request's own bound.
        fee: what it costs now; None while no node can tell.

    Raises:
        FeeAboveCap: that is more than the wallet may pay for one.
    """
    cap = limits.max_fee_per_transaction
    if cap is not None and fee is not None and fee > cap:
        raise FeeAboveCap(
            f"it would cost {gas_text(fee)} GAS; wallet {wallet.name!r} may pay {gas_text(cap)} for a transaction",
            fee=gas_text(fee),
            max_fee=gas_text(cap),
        )
    bounds = [limit for limit in (max_fee, cap) if limit is not None]
    if limits.max_fee_per_day is not None and fee is not None:
        bounds.append(int(fee * (1 + HEADROOM)))
    return min(bounds, default=None)


def _datoshi(text: str | None, name: str) -> int | None:
    return None if text is None else gas_parse(text, name)


def _gas(datoshi: int | None) -> str | None:
    return None if datoshi is None else gas_text(datoshi)


def _key(tenant_id: UUID, wallet_id: UUID) -> dict[str, object]:
    return {"tenant_id": tenant_id, "wallet_id": wallet_id}


def _today() -> date:
    return datetime.now(UTC).date()


def _end(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), time(), UTC)
