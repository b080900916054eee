"""Watches on a real node, with the follower that tells them."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from neolayer.chain.scripts import GAS
from neolayer.events.outbox import Position
from tests.chain.conftest import Node, new_node, node, rich, rpc
from tests.enclave_process.conftest import enclave
from tests.enclave_process.host import Process
from tests.proxy import NodeProxy
from tests.transactions.conftest import Room, database_url, proxy, room, room_on

__all__ = ["database_url", "enclave", "new_node", "node", "proxy", "rich", "room", "rpc"]


@pytest.fixture
async def behind_proxy(
    node: Node, enclave: Process, database_url: str, valkey_url: str, proxy: NodeProxy
) -> AsyncIterator[Room]:
    async with room_on(node, enclave, database_url, valkey_url, proxy.url) as room:
        yield room


async def told(room: Room, tenant_id: UUID | None = None) -> list[dict[str, Any]]:
    """The tenant's events of watches, in the order in which they are read, with their kind."""
    outbox = room.parts.outbox
    events = await outbox.of_tenant(tenant_id or room.tenant_id, Position(0), await outbox.now(), 100_000)
    events = [event for event in events if event.kind != "transaction"]
    for event in events:
        assert (str(event.subject), event.number) == (event.data["watch"], event.data["number"])
    return [event.data | {"kind": event.kind} for event in events]


async def of_chain(
    node: Node, first: int, last: int, *, contract: str = str(GAS), event: str | None = "Transfer"
) -> list[dict[str, Any]]:
    """What plain questions to the node show of notifications in these blocks."""
    found = []
    for height in range(first, last + 1):
        block = await node.rpc.call("getblock", [height, 1])
        own = (await node.rpc.call("getapplicationlog", [block["hash"]]))["executions"]
        ran = [(None, own[0])]
        for transaction in block["tx"]:
            log = await node.rpc.call("getapplicationlog", [transaction["hash"]])
            ran.append((transaction["hash"], log["executions"][0]))
        ran.append((None, own[1]))
        found += [
            {
                "id": f"{block['hash']}-{place}-{index}",
                "txid": txid,
                "trigger": execution["trigger"],
                "contract": one["contract"],
                "event": one["eventname"],
                "state": one["state"],
                "block": height,
            }
            for place, (txid, execution) in enumerate(ran)
            if execution["vmstate"] == "HALT"
            for index, one in enumerate(execution["notifications"])
            if one["contract"] == contract and event in (None, one["eventname"])
        ]
    return found


def facts(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of events, what `of_chain` tells too."""
    names = ("id", "txid", "trigger", "contract", "event", "state", "block")
    return [{name: event[name] for name in names} for event in events]
