"""Confirming without asking: what the node tells of executions is enough; what it does not tell is asked for."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from neolayer.chain.scripts import GAS
from tests.chain.conftest import Node
from tests.enclave_process.host import Process
from tests.proxy import NodeProxy
from tests.transactions.conftest import Room, room_on
from tests.transactions.test_pipeline import running, stranger, until

type Event = dict[str, Any]


@pytest.fixture
async def behind_proxy(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy
) -> AsyncIterator[Room]:
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        yield room


async def transfers_are_confirmed(room: Room, count: int, **settings: Any) -> None:
    """All of them, each with its own result, and the receiver has the GAS."""
    to = stranger()
    views = [await room.submit(to, 1 + number, **settings) for number in range(count)]

    async def all_confirmed() -> bool:
        return all([(await room.show(view)).state == "confirmed" for view in views])

    async with running(room.monitor.run, room.pipeline().run):
        await until(all_confirmed)
    assert await room.node.rpc.balance_of(GAS, to) == count * (count + 1) // 2
    for view in views:
        shown = await room.show(view)
        assert shown.result is not None
        assert shown.result["vmstate"] == "HALT"
        assert shown.txid is not None
    # A monitor follows once; what a test goes on with needs another.
    room.__post_init__()


def asked(proxy: NodeProxy) -> Counter[str]:
    """What is asked for to confirm transactions."""
    return Counter({method: proxy.calls[method] for method in ("getapplicationlog", "gettransactionheight")})


@pytest.mark.parametrize("group", ["auto", "never"])
async def test_no_log_is_asked_for_while_the_node_tells_all(
    behind_proxy: Room, proxy: NodeProxy, group: str
) -> None:
    await transfers_are_confirmed(behind_proxy, 30, group=group)
    assert asked(proxy).total() == 0


async def test_only_the_log_that_was_not_told_is_asked_for(behind_proxy: Room, proxy: NodeProxy) -> None:
    dropped: list[str] = []

    def drop(event: Event) -> list[Event]:
        if not dropped and event["params"][0].get("trigger") == "Application":
            dropped.append(event["params"][0]["container"])
            return []
        return [event]

    proxy.events = drop
    await transfers_are_confirmed(behind_proxy, 10, group="never")
    assert len(dropped) == 1
    assert asked(proxy) == {"getapplicationlog": 1, "gettransactionheight": 0}


async def test_a_cut_between_executions_and_their_block_confirms_all_the_same(
    behind_proxy: Room, proxy: NodeProxy
) -> None:
    cut: list[str] = []

    def cut_off(event: Event) -> list[Event]:
        told = event["params"][0]
        if cut or not told.get("tx"):
            return [event]
        cut.append(told["hash"])
        proxy.cut_websockets()
        return []

    proxy.events = cut_off
    await transfers_are_confirmed(behind_proxy, 10, group="never")
    assert len(cut) == 1
    assert 1 <= asked(proxy)["getapplicationlog"] <= 10


async def test_what_an_event_says_of_another_transaction_confirms_nothing(
    behind_proxy: Room, proxy: NodeProxy
) -> None:
    """All executions are told as failures of transactions that the block does not have."""

    def lie(event: Event) -> list[Event]:
        told = event["params"][0]
        if told.get("trigger") != "Application":
            return [event]
        lies = {"container": "0x" + told["container"][:1:-1], "vmstate": "FAULT", "exception": "a lie"}
        return [event | {"params": [told | lies]}]

    proxy.events = lie
    await transfers_are_confirmed(behind_proxy, 10, group="never")
    assert asked(proxy)["getapplicationlog"] == 10


async def test_a_node_without_websocket_is_asked_for_all(behind_proxy: Room, proxy: NodeProxy) -> None:
    proxy.websockets = False
    await transfers_are_confirmed(behind_proxy, 10, group="never")
    assert asked(proxy)["getapplicationlog"] == 10


async def test_blocks_of_the_time_without_a_follower_are_asked_for(behind_proxy: Room, proxy: NodeProxy) -> None:
    """Sent and included while nobody follows; the follower that comes then catches up."""
    room, to = behind_proxy, stranger()
    async with running(room.monitor.run):
        await until(lambda: _true(room.monitor.follower.connected == "websocket"))
    view = await room.submit(to, 7)

    async def included() -> bool:
        return await room.node.rpc.balance_of(GAS, to) == 7

    async with running(room.pipeline().run):
        await until(included)
    room.__post_init__()

    async def confirmed() -> bool:
        return (await room.show(view)).state == "confirmed"

    async with running(room.monitor.run):
        await until(confirmed)
    assert asked(proxy)["getapplicationlog"] == 1


async def _true(value: bool) -> bool:
    return value


@pytest.mark.parametrize("group", ["auto", "never"])
async def test_a_transaction_whose_log_cannot_be_had_holds_up_nobody(
    behind_proxy: Room, proxy: NodeProxy, group: str
) -> None:
    """How it ended is known all the same."""
    room = behind_proxy
    proxy.websockets = False
    views = [await room.submit(stranger(), 1 + number, group=group) for number in range(8)]
    lost: list[str] = []

    def without(method: str, params: list[Any]) -> dict[str, Any] | None:
        if method != "getapplicationlog":
            return None
        if not lost:
            lost.append(params[0])
        return {"code": -32603, "message": "too long"} if params[0] in lost else None

    proxy.objection = without

    async def all_confirmed() -> bool:
        return all([(await room.show(view)).state == "confirmed" for view in views])

    async with running(room.monitor.run, room.pipeline().run):
        await until(all_confirmed)
    shown = [await room.show(view) for view in views]
    causes = {view.txid: view.cause and view.cause["code"] for view in shown}
    assert causes == {txid: "result_unknown" if txid in lost else None for txid in causes}
    assert "result_unknown" in causes.values()
