"""Watches as users make them and hear of them: the API, the stream of events, the command line, a dead worker."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.service.test_chain import cli
from tests.system import NewSystem, System, new_receiver

GAS = "0xd2a4cff31913016155e38e474a2c06d08be276cf"


class Stream:
    """Server-sent events of a tenant."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def next(self, timeout_s: float = 15) -> dict[str, Any]:
        """Kind and data of the next event."""
        kind = ""
        async with asyncio.timeout(timeout_s):
            while True:
                line = (await self._response.content.readline()).decode().rstrip("\n")
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: "):
                    return json.loads(line[6:]) | {"kind": kind}

    async def of_transaction(self, txid: str) -> dict[str, Any]:
        while (event := await self.next()).get("txid") != txid or event["kind"] != "notification":
            pass
        return event


@asynccontextmanager
async def listening(system: System, query: str = "", last_id: str = "") -> AsyncIterator[Stream]:
    headers = {"authorization": f"Bearer {system.key}"} | ({"last-event-id": last_id} if last_id else {})
    address = f"{system.url}/api/v1/events?{query}"
    async with aiohttp.ClientSession() as session, session.get(address, headers=headers) as response:
        assert response.status == 200, await response.text()
        await response.content.readline()
        yield Stream(response)


@pytest.fixture
async def watch(system: System) -> AsyncIterator[dict[str, Any]]:
    """On transfers of GAS, until the test ends."""
    made = await system.post("/chain/watches", {"contract": "GasToken", "event": "Transfer"}, status=201)
    yield made
    await system.request("DELETE", f"/chain/watches/{made['id']}", status=204)


async def test_a_transfer_arrives_among_the_events(system: System, watch: dict[str, Any]) -> None:
    assert (watch["contract"], watch["event"], watch["events"]) == (GAS, "Transfer", 0)
    async with listening(system) as everything, listening(system, "kind=notification") as notifications:
        view = await system.settled((await system.transfer("default", new_receiver(), 4321))["id"])
        event = await notifications.of_transaction(view["txid"])
        assert event == await everything.of_transaction(view["txid"])
    assert event["state"]["value"][2] == {"type": "Integer", "value": "4321"}
    assert (event["watch"], event["contract"], event["event"]) == (watch["id"], GAS, "Transfer")
    assert event["block"] == view["block"]
    assert event["at"]
    shown = await system.get(f"/chain/watches/{watch['id']}")
    assert shown["events"] >= event["number"]


async def test_a_stream_of_one_kind_has_no_other(system: System, watch: dict[str, Any]) -> None:
    async with listening(system, "kind=transaction") as transactions:
        for _ in range(2):
            await system.settled((await system.transfer("default", new_receiver(), 1))["id"])
        kinds = {(await transactions.next())["kind"] for _ in range(6)}
    assert kinds == {"transaction"}
    assert (await system.get(f"/chain/watches/{watch['id']}"))["events"] > 0
    problem = await system.get("/events", kind="notification,nonsense", status=422)
    assert problem["code"] == "invalid_request"
    assert "nonsense" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"contract": 5}, "invalid_request"),
        ({"contract": "GasTokn"}, "bad_contract_hash"),
        ({"contract": "0x12"}, "bad_contract_hash"),
        ({"contract": GAS[2:]}, "bad_contract_hash"),
        ({"contract": GAS, "event": ""}, "invalid_request"),
        ({"contract": GAS, "event": "x" * 33}, "invalid_request"),
        ({"contract": GAS, "event": "a\0"}, "invalid_request"),
        ({"contract": GAS, "events": "Transfer"}, "invalid_request"),
    ],
)
async def test_what_cannot_be_watched_is_refused(system: System, body: dict[str, Any], code: str) -> None:
    assert (await system.post("/chain/watches", body, status=422))["code"] == code


async def test_tenants_see_their_own_watches_only(system: System, watch: dict[str, Any]) -> None:
    key = await system.new_tenant("watcher")
    assert (await system.get("/chain/watches", key=key))["items"] == []
    path = f"/chain/watches/{watch['id']}"
    for id in (watch["id"], "nonsense"):
        problem = await system.request("DELETE", f"/chain/watches/{id}", key=key, status=404)
        assert problem["code"] == "watch_not_found"
    assert (await system.get(path, key=key, status=404))["code"] == "watch_not_found"
    # What one tenant watches another may watch too, and nobody twice.
    body = {"contract": GAS, "event": "Transfer"}
    problem = await system.post("/chain/watches", body, status=409)
    assert (problem["code"], problem["watch"]) == ("watch_exists", watch["id"])
    await system.post("/chain/watches", body, key=key, status=201)
    assert (await system.get(path))["id"] == watch["id"]


async def test_watches_on_the_command_line(system: System) -> None:
    code, text = await cli(system, "chain", "watch", "NeoToken", "--event", "Vote", "--json")
    assert code == 0
    id = json.loads(text)["id"]
    code, text = await cli(system, "chain", "watches")
    assert code == 0
    assert id in text
    assert "Vote" in text
    code, text = await cli(system, "chain", "watches", "--json")
    assert id in [watch["id"] for watch in json.loads(text)["items"]]
    code, text = await cli(system, "chain", "unwatch", id)
    assert (code, id in text) == (0, True)
    code, text = await cli(system, "chain", "unwatch", id, "--json")
    assert (code != 0, json.loads(text)["code"]) == (True, "watch_not_found")


async def test_workers_that_are_killed_tell_each_notification_once(new_system: NewSystem) -> None:
    """The numbers of a watch have no gap and nothing comes twice; the chain, asked plainly, has the same."""
    chance = random.Random(7)  # noqa: S311 - seeded
    system = await new_system()
    watch = await system.post("/chain/watches", {"contract": GAS, "event": "Transfer"}, status=201)
    async with listening(system, "kind=notification", last_id="1-0") as stream:
        ids = []
        for _ in range(4):
            for _ in range(10):
                ids.append((await system.transfer("default", new_receiver(), 1, group="never"))["id"])
            await system.eventually(lambda: any("worker" in process.cmdline() for process in system.processes()))
            await asyncio.sleep(chance.uniform(0, 2.5))
            system.kill("worker")
        views = [await system.settled(id) for id in ids]
        assert {view["state"] for view in views} == {"confirmed"}
        last = max(view["block"] for view in views)
        events = [await stream.next()]
        while events[-1]["block"] <= last:
            events.append(await stream.next())
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert {event["watch"] for event in events} == {watch["id"]}
    told = [event["id"] for event in events if event["block"] <= last]
    assert told == await transfers_of(system, events[0]["block"], last)
    sent = sorted(view["txid"] for view in views)
    assert sorted(event["txid"] for event in events if event["txid"] in sent) == sent


async def transfers_of(system: System, first: int, last: int) -> list[str]:
    """Ids of the notifications of GAS in these blocks, by plain questions to the node."""
    found = []
    for height in range(first, last + 1):
        block = await system.rpc("getblock", height, 1)
        own = (await system.rpc("getapplicationlog", block["hash"]))["executions"]
        logs = [await system.rpc("getapplicationlog", transaction["hash"]) for transaction in block["tx"]]
        ran = [own[0], *(log["executions"][0] for log in logs), own[1]]
        found += [
            f"{block['hash']}-{place}-{index}"
            for place, execution in enumerate(ran)
            for index, one in enumerate(execution["notifications"])
            if one["contract"] == GAS and execution["vmstate"] == "HALT"
        ]
    return found


async def test_the_api_describes_watches_and_their_events(system: System) -> None:
    _, _, schema = await system.raw("GET", "/schema/openapi.json")
    assert {"get", "post"} <= set(schema["paths"]["/api/v1/chain/watches"])
    stream = schema["paths"]["/api/v1/events"]["get"]
    content = json.dumps(stream["responses"]["200"]["content"])
    assert all(name in content for name in ("TransactionEvent", "NotificationEvent", "ChainRewoundEvent"))
    assert "kind" in [parameter["name"] for parameter in stream["parameters"]]
