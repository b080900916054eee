"""One intent, one effect: leases, ambiguous sends, faults and expiry on a real node and database."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from aiohttp import web

from neolayer.chain.payload import UnsignedTransaction
from neolayer.chain.scripts import GAS, build_script
from neolayer.core.types import Hash160
from tests.chain.conftest import Key, Node, build
from tests.enclave_process.host import Process
from tests.proxy import NodeProxy, nothing, sending
from tests.transactions.conftest import Room, room_on

SYMBOL = {"contract": "GasToken", "method": "symbol"}


def stranger() -> Hash160:
    return Hash160(os.urandom(20))


@asynccontextmanager
async def running(*work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(one()) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 15) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_what_is_accepted_is_shown_as_it_will_be_read(room: Room) -> None:
    """The answer to the request is made without reading what was stored."""
    plus_two = timezone(timedelta(hours=2))
    cases: list[dict[str, Any]] = [
        {},
        {"max_fee": "1.5", "priority": "critical", "group": "never", "speed": "urgent"},
        {"not_before": datetime(2090, 5, 1, 12, tzinfo=plus_two), "not_before_block": 7, "fifo_key": "a"},
        {"valid_for_blocks": 5000, "on_expiry": "rebuild"},
    ]
    for settings in cases:
        accepted = await room.submit(stranger(), 1, **settings)
        stored = await room.show(accepted)
        assert accepted == stored
        assert msgspec.json.encode(accepted) == msgspec.json.encode(stored)


@pytest.mark.parametrize("group", ["auto", "never"])
async def test_many_workers_on_one_queue_sign_each_intent_once(room: Room, group: str) -> None:
    to = stranger()
    views = [await room.submit(to, 1, group=group) for _ in range(40)]
    pipelines = [room.pipeline(transaction_workers=4, lease_s=0.05) for _ in range(5)]

    async def all_confirmed() -> bool:
        return all([(await room.show(view)).state == "confirmed" for view in views])

    async with running(room.monitor.run, *(pipeline.run for pipeline in pipelines)):
        await until(all_confirmed)
    carried = await room.parts.database.fetch(b"SELECT count(*) FROM transaction_attempt_intents")
    assert carried == [(40,)]
    assert await room.node.rpc.balance_of(GAS, to) == 40
    for view in views:
        assert (await room.states(view))[0::3] == ["queued", "confirmed"]


async def test_a_refusal_by_another_node_after_a_lost_answer_does_not_end_it(
    node: Node, enclave: Process, database_url: str, valkey_url: str
) -> None:
    """The first node takes the bytes and its answer is lost; the second refuses by a policy of its own."""
    first, refusing = NodeProxy(node.devnet.rpc_url), RefusingNode(node.devnet.rpc_url)
    await first.start()
    await refusing.start()
    try:
        async with room_on(node, enclave, database_url, valkey_url, first.url, refusing.url) as room:
            first.drop_answer = sending
            view = await room.submit(stranger(), 7)
            monitor = Room(room.parts, node, room.tenant_id, room.wallet).monitor

            async def confirmed() -> bool:
                return (await room.show(view)).state == "confirmed"

            async with running(monitor.run, room.pipeline().run):
                await until(confirmed)
            assert first.dropped >= 1
            assert refusing.refused >= 1
            assert "rejected" not in await room.states(view)
    finally:
        await first.close()
        await refusing.close()


async def test_a_plain_refusal_ends_it_with_the_nodes_code(
    node: Node, enclave: Process, database_url: str, valkey_url: str
) -> None:
    refusing = RefusingNode(node.devnet.rpc_url)
    await refusing.start()
    try:
        async with room_on(node, enclave, database_url, valkey_url, refusing.url) as room:
            view = await room.submit(stranger(), 7)

            async def rejected() -> bool:
                return (await room.show(view)).state == "rejected"

            async with running(room.pipeline().run):
                await until(rejected)
            cause = (await room.show(view)).cause
            assert cause is not None
            assert (cause["code"], cause["node_code"]) == ("rejected_by_node", -505)
    finally:
        await refusing.close()


async def test_what_no_block_takes_expires_after_its_last_block_and_not_before(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy
) -> None:
    proxy.swallow = sending
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        view = await room.submit(stranger(), 1, valid_for_blocks=6)

        async def expired() -> bool:
            return (await room.show(view)).state == "expired"

        async with running(room.pipeline().run, room.monitor.run):
            await until(expired)
        done = await room.show(view)
        # Stored together with the state; the follower itself knows a moment later.
        cursor = await room.monitor.load_cursor()
        assert done.valid_until_block is not None
        assert cursor is not None
        assert cursor.index >= done.valid_until_block
        assert await room.states(view) == ["queued", "signed", "sent", "expired"]
        assert proxy.swallowed > 1  # it was tried again meanwhile


async def test_what_expired_is_signed_anew_when_that_was_asked_for(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy
) -> None:
    proxy.swallow = sending
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        to = stranger()
        view = await room.submit(to, 6, valid_for_blocks=6, on_expiry="rebuild")

        async def rebuilt() -> bool:
            return (await room.states(view))[:4] == ["queued", "signed", "sent", "queued"]

        async def confirmed() -> bool:
            return (await room.show(view)).state == "confirmed"

        async with running(room.pipeline().run, room.monitor.run):
            await until(rebuilt)
            proxy.swallow = nothing
            await until(confirmed)
        assert await node.rpc.balance_of(GAS, to) == 6
        states = await room.parts.database.fetch(
            b"SELECT state, count(*) FROM transaction_attempts GROUP BY state ORDER BY state"
        )
        assert ("included", 1) in states
        assert {state for state, _ in states} == {"expired", "included"}


async def test_a_sent_transaction_that_the_node_forgot_is_sent_again_byte_for_byte(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy
) -> None:
    """As a killed node does, which restarts with an empty memory pool."""
    proxy.swallow = sending
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        to = stranger()
        view = await room.submit(to, 3)

        async def sent() -> bool:
            return (await room.show(view)).state == "sent"

        async def confirmed() -> bool:
            return (await room.show(view)).state == "confirmed"

        async with running(room.pipeline().run, room.monitor.run):
            await until(sent)
            txid = (await room.show(view)).txid
            proxy.swallow = nothing
            await until(confirmed)
        assert (await room.show(view)).txid == txid
        assert await room.states(view) == ["queued", "signed", "sent", "confirmed"]
        assert await node.rpc.balance_of(GAS, to) == 3


async def test_a_fault_with_bytes_that_no_text_holds_is_recorded_and_following_goes_on(
    room: Room, rich: Key
) -> None:
    """neo-go hands the bytes of ABORTMSG through as they are: NUL, and what is no UTF-8."""
    abort = b"\x0c\x05a\x00b\xff\xed" + b"\xe0"  # PUSHDATA1 5 bytes, ABORTMSG
    fees = {"system_fee": 1_000_000, "network_fee": 10_000_000}
    transaction = await build(room.node.rpc, rich, abort, **fees)
    view = await room.submit(stranger(), 1)
    await adopt(room, view.id, transaction)
    network = (await room.node.rpc.version()).network

    async def faulted() -> bool:
        return (await room.show(view)).state == "faulted"

    async with running(room.monitor.run):
        assert (await room.node.rpc.send_raw_transaction(rich.sign(transaction, network))).kind == "accepted"
        await until(faulted)
        cause = (await room.show(view)).cause
        assert cause is not None
        assert cause["code"] == "vm_fault"
        assert "\0" not in cause["message"]
        msgspec.json.encode(await room.show(view))
        at = room.monitor.follower.height
        assert at is not None
        await room.node.reach(at + 2)

        async def goes_on() -> bool:
            cursor = room.monitor.follower.cursor
            return cursor is not None and cursor.index > at

        await until(goes_on)


async def test_a_block_that_waits_for_a_workers_row_numbers_its_event_after_the_workers(
    room: Room, rich: Key
) -> None:
    transaction = await build(room.node.rpc, rich, build_script([SYMBOL]))
    view = await room.submit(stranger(), 1)
    await adopt(room, view.id, transaction)
    network = (await room.node.rpc.version()).network
    ids = {"tenant": room.tenant_id, "id": view.id}
    async with running(room.monitor.run):
        async with room.parts.database.transaction() as connection:
            await connection.execute(
                b"UPDATE transactions SET events = events + 1, cause = NULL WHERE id = %(id)s", ids
            )
            await connection.execute(
                b"INSERT INTO transaction_events (tenant_id, transaction_id, number, state)"
                b" VALUES (%(tenant)s, %(id)s, 2, 'sent')",
                ids,
            )
            assert (await room.node.rpc.send_raw_transaction(rich.sign(transaction, network))).kind == "accepted"
            await asyncio.sleep(1)  # four blocks: the monitor waits for this row

        async def confirmed() -> bool:
            return (await room.show(view)).state == "confirmed"

        await until(confirmed)
    assert await room.states(view) == ["queued", "sent", "confirmed"]


async def test_the_system_fee_is_what_the_block_consumed(room: Room) -> None:
    view = await room.submit(stranger(), 10**9)

    async def confirmed() -> bool:
        return (await room.show(view)).state == "confirmed"

    async with running(room.monitor.run, room.pipeline().run):
        await until(confirmed)
    done = await room.show(view)
    assert done.result is not None
    assert done.result["gas_consumed"] == done.system_fee


class RefusingNode(NodeProxy):
    """Refuses every transaction as a node whose own limit of system fees is lower does (−505)."""

    refused = 0
    refusing = True

    async def _forward(self, request: web.Request) -> web.Response:
        body = await request.json()
        many = body if isinstance(body, list) else [body]
        if self.refusing and many[0]["method"] == "sendrawtransaction":
            self.refused += len(many)
            error = {"code": -505, "message": "Policy failed", "data": "system fee above MaxBlockSystemFee"}
            answers = [{"jsonrpc": "2.0", "id": one["id"], "error": error} for one in many]
            return web.json_response(answers if isinstance(body, list) else answers[0])
        return await super()._forward(request)


async def adopt(room: Room, id: object, transaction: UnsignedTransaction) -> None:
    """Make a transaction of our own building the attempt of an intent."""
    params = {
        "tenant": room.tenant_id,
        "wallet": room.wallet.id,
        "id": id,
        "txid": transaction.hash.data,
        "network": (await room.node.rpc.version()).network,
        "vub": transaction.valid_until_block,
    }
    await room.parts.database.execute(
        b"WITH attempt AS (INSERT INTO transaction_attempts (tenant_id, txid, wallet_id, network, raw, state,"
        b" valid_until_block, system_fee, network_fee)"
        b" VALUES (%(tenant)s, %(txid)s, %(wallet)s, %(network)s, '', 'sent', %(vub)s, 1, 1))"
        b" INSERT INTO transaction_attempt_intents (tenant_id, txid, position, transaction_id, system_fee,"
        b" network_fee) VALUES (%(tenant)s, %(txid)s, 0, %(id)s, 1, 1)",
        params,
    )
    await room.parts.database.execute(
        b"UPDATE transactions SET state = 'sent', txid = %(txid)s WHERE id = %(id)s", params
    )
