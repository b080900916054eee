"""What a wallet may spend on fees: refused before anything is stored, counted in the database."""

import asyncio
import os
import time

import pytest

from neolayer.app import build_parts
from neolayer.chain.errors import NodeUnavailable
from neolayer.chain.scripts import GAS, transfer
from neolayer.core.errors import InvalidRequest
from neolayer.core.types import Hash160, gas_parse
from neolayer.transactions import service
from neolayer.transactions.errors import DailyCapReached, FeeAboveCap
from neolayer.transactions.limits import LimitsRequest, LimitsView
from neolayer.transactions.model import TransactionRequest, TransactionView
from tests.chain.conftest import Node
from tests.enclave_process.host import Process
from tests.proxy import NodeProxy, everything, nothing
from tests.transactions.conftest import Room, room_on
from tests.transactions.test_pipeline import running, until


def stranger() -> Hash160:
    return Hash160(os.urandom(20))


async def limit(room: Room, *, transaction: str | None = None, day: str | None = None) -> LimitsView:
    request = LimitsRequest(max_fee_per_transaction=transaction, max_fee_per_day=day)
    return await room.parts.limits.set(room.wallet, request)


async def counted(room: Room) -> int:
    return gas_parse((await room.parts.limits.view(room.wallet)).counted)


async def queued(room: Room) -> int:
    return len(await room.parts.database.fetch(b"SELECT id FROM transactions"))


def paid(view: TransactionView) -> int:
    assert view.system_fee is not None
    assert view.network_fee is not None
    return gas_parse(view.system_fee) + gas_parse(view.network_fee)


async def test_a_transaction_above_the_wallets_limit_is_refused_and_not_stored(room: Room) -> None:
    await limit(room, transaction="0.05")
    with pytest.raises(FeeAboveCap, match=r"may pay 0\.05 for a transaction"):
        await room.submit(stranger(), 1)
    assert await queued(room) == 0
    await limit(room, transaction="0.5")
    assert (await room.submit(stranger(), 1)).max_fee == "0.5"
    assert (await room.submit(stranger(), 1, max_fee="0.2")).max_fee == "0.2"
    await limit(room)
    assert (await room.submit(stranger(), 1)).max_fee is None


async def test_fees_of_a_day_are_counted_at_their_most_and_corrected_to_what_was_paid(room: Room) -> None:
    await limit(room, day="1")
    views = [await room.submit(stranger(), 1, group="never") for _ in range(3)]
    bounds = [gas_parse(view.max_fee or "0") for view in views]
    assert await counted(room) == sum(bounds)
    await room.parts.replacements.cancel(room.tenant_id, views[2].id, None)
    assert await counted(room) == sum(bounds[:2])
    async with running(room.parts.notices.run, room.pipeline().run, room.monitor.run):

        async def confirmed() -> bool:
            return all([(await room.show(view)).state == "confirmed" for view in views[:2]])

        await until(confirmed)
    total = sum([paid(await room.show(view)) for view in views[:2]])
    assert total < sum(bounds[:2])
    assert await counted(room) == total


async def test_many_at_once_in_two_processes_never_pass_the_daily_limit(room: Room) -> None:
    view = await room.submit(stranger(), 1)
    await room.parts.replacements.cancel(room.tenant_id, view.id, None)
    await limit(room, day="1")
    probe = await room.submit(stranger(), 1)
    one = gas_parse(probe.max_fee or "0")
    fits = 10**8 // one
    async with build_parts(room.parts.settings) as beside:
        other = Room(beside, room.node, room.tenant_id, room.wallet)
        results = await asyncio.gather(
            *((room, other)[index % 2].submit(stranger(), 1) for index in range(fits + 6)), return_exceptions=True
        )
    refused = [one for one in results if isinstance(one, DailyCapReached)]
    assert [one for one in results if isinstance(one, BaseException)] == refused
    assert len(results) - len(refused) == fits - 1  # and the probe
    assert await counted(room) <= 10**8
    extra = refused[0].extra
    assert (refused[0].code, extra["max_fee_per_day"]) == ("daily_cap_reached", "1")
    assert await queued(room) == fits + 1


async def test_yesterdays_fees_do_not_count_today(room: Room) -> None:
    await limit(room, day="0.2")
    await room.submit(stranger(), 1)
    with pytest.raises(DailyCapReached):
        await room.submit(stranger(), 1)
    await room.parts.database.execute(b"UPDATE wallet_fee_days SET day = day - 1")
    await room.parts.database.execute(b"UPDATE transactions SET counted_day = counted_day - 1")
    await room.submit(stranger(), 1)
    with pytest.raises(DailyCapReached):
        await room.submit(stranger(), 1)


async def test_one_idempotency_key_counts_once(room: Room) -> None:
    await limit(room, day="10")
    views = await asyncio.gather(*(submit_with_key(room) for _ in range(8)))
    assert len({view.id for view in views}) == 1
    assert await counted(room) == gas_parse(views[0].max_fee or "0")


async def speed_up_often(room: Room, view: TransactionView, times: int) -> None:
    for _ in range(times):
        await room.parts.replacements.speed_up(room.tenant_id, view.id, "fast", 10**8)


async def submit_with_key(room: Room) -> TransactionView:
    call = dict(transfer(GAS, room.wallet.script_hash, Hash160(bytes(20)), 1))
    request = TransactionRequest(calls=[call])
    return (await room.parts.transactions.submit(room.tenant_id, request, idempotency_key="once"))[0]


async def test_a_replacement_counts_what_it_costs_more(room: Room) -> None:
    await limit(room, day="0.15")
    view = await room.submit(stranger(), 1)
    before = await counted(room)

    async def signed() -> bool:
        return (await room.show(view)).state != "queued"

    async with running(room.pipeline().run):
        await until(signed)
    # The first fits into what was counted for it, later ones into what is left of the day.
    with pytest.raises(DailyCapReached):
        await speed_up_often(room, view, 8)
    assert gas_parse((await room.show(view)).max_fee or "1") <= await counted(room)
    made = await room.parts.transactions.attempts(room.tenant_id, view.id)
    dearest = max(gas_parse(one.system_fee) + gas_parse(one.network_fee) for one in made)
    assert len(made) >= 2
    assert await counted(room) == max(before, dearest) <= gas_parse("0.15")


async def test_speeding_up_what_is_queued_passes_no_limit(room: Room) -> None:
    """A higher `max_fee` counts as that of a new transaction, and is no way past the wallet's own limits."""
    await limit(room, transaction="0.5", day="0.9")
    view, other = await room.submit(stranger(), 1), await room.submit(stranger(), 1)
    before = await counted(room)
    speed_up = room.parts.replacements.speed_up
    await speed_up(room.tenant_id, view.id, "urgent", 10**9)
    assert (await room.show(view)).max_fee == "0.5"
    assert await counted(room) == before - gas_parse(view.max_fee or "0") + gas_parse("0.5")
    with pytest.raises(DailyCapReached):
        await speed_up(room.tenant_id, other.id, "urgent", 10**9)
    assert (await room.show(other)).speed == "standard"
    assert (await room.show(other)).max_fee == other.max_fee


async def test_what_cannot_be_priced_is_counted_at_its_max_fee_or_not_taken(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy
) -> None:
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        await limit(room, day="1")
        proxy.refuse = everything
        with pytest.raises(NodeUnavailable):
            await room.submit(stranger(), 1)
        view = await room.submit(stranger(), 1, max_fee="0.6")
        assert (await room.show(view)).state == "queued"
        assert await counted(room) == gas_parse("0.6")
        with pytest.raises(DailyCapReached):
            await room.submit(stranger(), 1, max_fee="0.6")
        proxy.refuse = nothing


async def test_amounts_that_are_none_are_refused_by_name(room: Room) -> None:
    for wrong in ("-1", "x", "1e3", ""):
        with pytest.raises(InvalidRequest, match="max_fee_per_day"):
            await limit(room, day=wrong)


async def test_nodes_that_hang_hold_up_no_answer_for_long(
    node: Node,
    enclave: Process,
    database_url: str,
    valkey_url: str,
    proxy: NodeProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is stored untried instead; asking to the end takes twice one attempt's time for each question."""
    monkeypatch.setattr(service, "TRY_OUT_S", 1.0)
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        await room.submit(stranger(), 1)
        proxy.hang()
        begun = time.monotonic()
        view = await room.submit(stranger(), 1)
        assert time.monotonic() - begun < 2
        assert view.state == "queued"
        proxy.heal()
        async with running(room.monitor.run, room.pipeline().run):

            async def confirmed() -> bool:
                return (await room.show(view)).state == "confirmed"

            await until(confirmed)
