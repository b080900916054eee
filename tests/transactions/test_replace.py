"""Cancel and speed-up: of all that was signed for an intent at most one is ever in the chain, and we say which.

Blocks come every 1.2 seconds here, so that transactions stay in the pool long enough to be displaced. A proxy
keeps from the node what must not reach it.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from neolayer.chain.scripts import GAS
from neolayer.core.types import Hash160, Hash256, gas_parse
from neolayer.transactions.errors import FeeAboveCap, TooLate, TransactionNotFound
from neolayer.transactions.model import AttemptView, TransactionView
from tests.chain.conftest import Node
from tests.enclave_process.host import Process
from tests.proxy import NodeProxy, nothing, sending
from tests.transactions.conftest import Room, room_on
from tests.transactions.test_pipeline import RefusingNode, running, until


@pytest.fixture(scope="module")
async def slow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    node = Node(tmp_path_factory.mktemp("slow"), block_ms=1200)
    try:
        await node.start()
        yield node
    finally:
        await node.close()


@pytest.fixture
async def gate(slow: Node) -> AsyncIterator[NodeProxy]:
    proxy = NodeProxy(slow.devnet.rpc_url)
    await proxy.start()
    yield proxy
    await proxy.close()


@pytest.fixture
async def room(
    slow: Node, enclave: Process, database_url: str, valkey_url: str, gate: NodeProxy
) -> AsyncIterator[Room]:
    async with room_on(slow, enclave, database_url, valkey_url, gate.url) as room:
        yield room


@asynccontextmanager
async def working(room: Room, **settings: Any) -> AsyncIterator[None]:
    """A worker process's parts."""
    parts = room.parts
    async with running(parts.notices.run, room.pipeline(**settings).run, room.monitor.run):
        yield


def stranger() -> Hash160:
    return Hash160(os.urandom(20))


async def reaches(room: Room, view: TransactionView, *states: str) -> TransactionView:
    async def reached() -> bool:
        return (await room.show(view)).state in states

    await until(reached, timeout_s=20)
    return await room.show(view)


async def attempts(room: Room, view: TransactionView) -> list[AttemptView]:
    return await room.parts.transactions.attempts(room.tenant_id, view.id)


async def pool(room: Room) -> set[str]:
    return set(await room.node.rpc.call("getrawmempool"))


async def pooled(room: Room, txid: str | None) -> None:
    async def there() -> bool:
        return txid in await pool(room)

    await until(there, timeout_s=5)


async def raw(room: Room, txid: str) -> bytes:
    row = await room.parts.database.fetch_one(
        b"SELECT raw FROM transaction_attempts WHERE txid = %(txid)s", {"txid": Hash256.parse(txid).data}
    )
    assert row is not None
    return bytes(row[0])


async def never_again(room: Room, txid: str) -> None:
    """The node refuses the bytes for good."""
    outcome = await room.node.rpc.send_raw_transaction(await raw(room, txid))
    assert outcome.node_code == -500, outcome


async def cancel(room: Room, view: TransactionView, max_fee: int | None = None) -> None:
    await room.parts.replacements.cancel(room.tenant_id, view.id, max_fee)


async def speed_up_often(room: Room, view: TransactionView, times: int) -> None:
    for _ in range(times):
        await speed_up(room, view)


async def speed_up(room: Room, view: TransactionView, max_fee: int | None = None) -> None:
    await room.parts.replacements.speed_up(room.tenant_id, view.id, "fast", max_fee)


async def test_what_is_queued_is_cancelled_at_once_and_never_signed(room: Room) -> None:
    to = stranger()
    view, other = await room.submit(to, 1), await room.submit(to, 2)
    await cancel(room, view)
    await cancel(room, view)
    done = await room.show(view)
    assert (done.state, done.txid, done.cancelling) == ("cancelled", None, False)
    async with working(room):
        await reaches(room, other, "confirmed")
    assert await room.states(view) == ["queued", "cancelled"]
    assert await attempts(room, view) == []
    assert await room.node.rpc.balance_of(GAS, to) == 2


async def test_a_cancelling_that_is_in_time_displaces_the_transaction(room: Room) -> None:
    to = stranger()
    async with working(room):
        await room.node.next_block()
        view = await room.submit(to, 5)
        victim = (await reaches(room, view, "sent")).txid
        assert victim is not None
        await cancel(room, view)
        asked = await room.show(view)
        assert (asked.state, asked.cancelling, asked.txid) == ("sent", True, victim)
        await cancel(room, view)  # asking twice makes no second replacement
        _, canceller = await attempts(room, view)
        await pooled(room, canceller.txid)
        assert victim not in await pool(room)
        done = await reaches(room, view, "cancelled", "confirmed")
    first, second = await attempts(room, view)
    assert (done.state, done.txid, done.block) == ("cancelled", second.txid, second.block)
    assert (first.txid, first.kind, first.state, first.executes) == (victim, "send", "replaced", True)
    assert (second.kind, second.state, second.executes) == ("cancel", "included", False)
    assert second.conflicts == [victim]
    assert gas_parse(second.network_fee) > gas_parse(first.network_fee)
    assert done.cause is not None
    assert done.cause["code"] == "cancelled"
    assert await room.node.rpc.balance_of(GAS, to) == 0
    await never_again(room, victim)
    with pytest.raises(TooLate) as late:
        await speed_up(room, view)
    assert late.value.extra["state"] == "cancelled"


async def test_a_cancelling_that_comes_too_late_says_so(room: Room, gate: NodeProxy) -> None:
    """The replacement never reaches the node."""
    to = stranger()
    async with working(room):
        await room.node.next_block()
        view = await room.submit(to, 5)
        victim = (await reaches(room, view, "sent")).txid
        gate.swallow = sending
        await cancel(room, view)
        done = await reaches(room, view, "confirmed", "cancelled")
    assert (done.state, done.txid, done.cancelling) == ("confirmed", victim, False)
    assert done.cause is not None
    assert done.cause["code"] == "too_late"
    first, second = await attempts(room, view)
    assert (first.state, second.state) == ("included", "replaced")
    assert gate.swallowed >= 1
    assert await room.node.rpc.balance_of(GAS, to) == 5
    refused = await room.node.rpc.send_raw_transaction(await raw(room, second.txid))
    assert refused.node_code == -507  # the node's word for too late
    with pytest.raises(TooLate) as late:
        await cancel(room, view)
    assert (late.value.extra["state"], late.value.extra["txid"]) == ("confirmed", victim)


async def test_a_speed_up_carries_the_same_calls_out_once(room: Room) -> None:
    to = stranger()
    async with working(room):
        await room.node.next_block()
        view = await room.submit(to, 5)
        slow_one = (await reaches(room, view, "sent")).txid
        await speed_up(room, view)
        _, faster = await attempts(room, view)
        await pooled(room, faster.txid)
        assert slow_one not in await pool(room)
        done = await reaches(room, view, "confirmed")
    first, second = await attempts(room, view)
    assert (done.txid, second.kind, second.state, first.state) == (second.txid, "speed_up", "included", "replaced")
    assert second.executes
    # 33 bytes of Conflicts cost more than one datoshi does.
    assert gas_parse(second.network_fee) == gas_parse(first.network_fee) + 33 * 1000
    assert (done.network_fee, done.speed) == (second.network_fee, "fast")
    assert await room.node.rpc.balance_of(GAS, to) == 5
    await never_again(room, first.txid)


async def test_each_replacement_names_all_before_it_and_pays_more_than_their_sum(
    room: Room, gate: NodeProxy
) -> None:
    """None of them reaches the node until the last one."""
    to = stranger()
    gate.swallow = sending
    async with working(room):
        view = await room.submit(to, 5)
        await reaches(room, view, "sent")
        for _ in range(3):
            await speed_up(room, view)
        gate.swallow = nothing
        await cancel(room, view)
        await reaches(room, view, "cancelled")
    made = await attempts(room, view)
    assert [one.kind for one in made] == ["send", "speed_up", "speed_up", "speed_up", "cancel"]
    for index, one in enumerate(made):
        assert sorted(one.conflicts) == sorted(earlier.txid for earlier in made[:index])
        total = sum(gas_parse(earlier.network_fee) for earlier in made[:index])
        assert gas_parse(one.network_fee) > total
    assert [one.state for one in made] == ["replaced"] * 4 + ["included"]
    assert await room.node.rpc.balance_of(GAS, to) == 0
    for one in made[:-1]:
        await never_again(room, one.txid)


async def test_a_replacement_that_was_stored_by_one_that_died_is_sent_by_another(room: Room) -> None:
    to = stranger()
    async with running(room.pipeline().run):
        await room.node.next_block()
        view = await room.submit(to, 5)
        await reaches(room, view, "sent")
    await cancel(room, view)  # nobody sends it
    _, canceller = await attempts(room, view)
    assert (canceller.state, canceller.txid in await pool(room)) == ("signed", False)
    async with working(room):
        done = await reaches(room, view, "cancelled")
    assert done.txid == canceller.txid
    assert await room.node.rpc.balance_of(GAS, to) == 0


async def test_a_victim_that_no_node_saw_is_held_back_once_it_is_to_be_replaced(
    room: Room, gate: NodeProxy
) -> None:
    """It is signed and its answer was lost; what is sent from then on is the replacement alone."""
    to = stranger()
    gate.refuse = sending
    async with working(room):
        view = await room.submit(to, 5)
        await reaches(room, view, "signed")
        await cancel(room, view)
        gate.refuse = nothing
        done = await reaches(room, view, "cancelled", "confirmed")
    assert done.state == "cancelled"
    assert await room.states(view) == ["queued", "signed", "signed", "sent", "cancelled"]
    assert await room.node.rpc.balance_of(GAS, to) == 0


async def test_cancelling_one_of_a_group_leaves_it_out_and_carries_out_the_others(room: Room) -> None:
    to = [stranger() for _ in range(4)]
    views = [await room.submit(account, 10 + index) for index, account in enumerate(to)]
    async with working(room, transaction_workers=1):
        sent = [await reaches(room, view, "sent") for view in views]
        assert {view.group_size for view in sent} == {4}
        await cancel(room, views[1])
        done = [await reaches(room, view, "confirmed", "cancelled") for view in views]
    assert [view.state for view in done] == ["confirmed", "cancelled", "confirmed", "confirmed"]
    assert len({view.txid for view in done}) == 1
    balances = [await room.node.rpc.balance_of(GAS, account) for account in to]
    assert balances == [10, 0, 12, 13]
    for view in (views[0], views[2], views[3]):
        first, second = await attempts(room, view)
        assert second.network_fee == first.network_fee  # whoever cancels pays for it
    first, second = await attempts(room, views[1])
    assert gas_parse(second.network_fee) > gas_parse(first.network_fee)


async def test_all_of_a_group_cancelled_one_after_the_other(room: Room) -> None:
    to = stranger()
    views = [await room.submit(to, 10) for _ in range(3)]
    async with working(room, transaction_workers=1):
        for view in views:
            await reaches(room, view, "sent")
        await asyncio.gather(*(cancel(room, view) for view in views))
        done = [await reaches(room, view, "confirmed", "cancelled") for view in views]
    assert [view.state for view in done] == ["cancelled"] * 3
    assert await room.node.rpc.balance_of(GAS, to) == 0


async def test_a_cap_keeps_a_replacement_from_being_signed(room: Room, gate: NodeProxy) -> None:
    gate.swallow = sending
    async with working(room):
        view = await room.submit(stranger(), 5, max_fee="0.15")
        await reaches(room, view, "sent")
        with pytest.raises(FeeAboveCap):
            await speed_up_often(room, view, 5)
        made = len(await attempts(room, view))
        with pytest.raises(FeeAboveCap):
            await cancel(room, view, max_fee=1000)
        await speed_up(room, view, max_fee=10**8)
        assert len(await attempts(room, view)) == made + 1
        assert (await room.show(view)).max_fee == "1"


async def test_nobody_replaces_what_is_not_theirs(room: Room) -> None:
    view = await room.submit(stranger(), 1)
    with pytest.raises(TransactionNotFound):
        await room.parts.replacements.cancel(view.id, view.id, None)
    with pytest.raises(TransactionNotFound):
        await room.parts.replacements.speed_up(room.tenant_id, room.tenant_id, "fast", None)


async def test_a_replacement_that_the_node_refuses_lets_the_transaction_go_on(
    slow: Node, enclave: Process, database_url: str, valkey_url: str
) -> None:
    """The node's own limit of system fees is lower when the replacement comes; asking again makes another one."""
    refusing = RefusingNode(slow.devnet.rpc_url)
    await refusing.start()
    try:
        async with room_on(slow, enclave, database_url, valkey_url, refusing.url) as room:
            to = stranger()
            refusing.refusing = False
            async with working(room):
                await slow.next_block()
                view = await room.submit(to, 5)
                await reaches(room, view, "sent")
                refusing.refusing = True
                await cancel(room, view)

                async def refused() -> bool:
                    return (await attempts(room, view))[1].state == "refused"

                await until(refused, timeout_s=5)
                shown = await room.show(view)
                assert shown.cause is not None
                assert shown.cause["code"] == "rejected_by_node"
                refusing.refusing = False
                await cancel(room, view)
                await reaches(room, view, "cancelled")
            made = await attempts(room, view)
            assert [one.state for one in made] == ["replaced", "refused", "included"]
            assert made[2].conflicts == [made[0].txid]
            assert await slow.rpc.balance_of(GAS, to) == 0
    finally:
        await refusing.close()


class HoldingNode(RefusingNode):
    """Keeps the first sending until it is let go, and refuses it then; keeps those after it until they are."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.kept, self.let_go, self.let_others_go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def _forward(self, request: web.Request) -> web.Response:
        body = await request.json()
        method = body[0]["method"] if isinstance(body, list) else body["method"]
        self.refusing = False
        if method == "sendrawtransaction":
            if self.kept.is_set():
                await self.let_others_go.wait()
            else:
                self.kept.set()
                await self.let_go.wait()
                self.refusing = True
        return await super()._forward(request)


@pytest.mark.parametrize("count", [1, 2])
async def test_what_the_node_refuses_while_its_replacement_waits_is_the_replacements(
    slow: Node, enclave: Process, database_url: str, valkey_url: str, count: int
) -> None:
    """Alone it would be rejected by now, and in a group go back into the queue and be signed a second time."""
    node = HoldingNode(slow.devnet.rpc_url)
    await node.start()
    try:
        async with room_on(slow, enclave, database_url, valkey_url, node.url) as room:
            to = stranger()
            views = [await room.submit(to, 5) for _ in range(count)]
            async with working(room, transaction_workers=2):
                await node.kept.wait()
                await speed_up(room, views[0])
                node.let_go.set()

                async def refused() -> bool:
                    return (await attempts(room, views[0]))[0].state == "refused"

                await until(refused, timeout_s=5)
                assert {(await room.show(view)).state for view in views} == {"signed"}
                node.let_others_go.set()
                done = [await reaches(room, view, "confirmed") for view in views]
            first, second = await attempts(room, views[-1])
            assert (first.state, second.state) == ("refused", "included")
            assert {view.txid for view in done} == {second.txid}
            assert await slow.rpc.balance_of(GAS, to) == 5 * count
    finally:
        node.let_go.set()
        node.let_others_go.set()
        await node.close()
