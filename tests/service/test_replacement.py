"""Cancel, speed-up, limits and following of transactions through the API and on the command line."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.proxy import NodeProxy, nothing, sending
from tests.service.beside import another_api
from tests.service.test_cli import neolayer
from tests.system import RECEIVER, System, new_receiver


@asynccontextmanager
async def events(system: System, last_id: str = "", url: str | None = None) -> AsyncIterator[Any]:
    """Yields a function that gives id and data of the next event."""
    headers = {"authorization": f"Bearer {system.key}"} | ({"last-event-id": last_id} if last_id else {})
    address = f"{url or system.url}/api/v1/events"
    async with aiohttp.ClientSession() as session, session.get(address, headers=headers) as response:
        assert response.status == 200, await response.text()

        async def following() -> tuple[str, Any]:
            seen = ""
            async with asyncio.timeout(15):
                while True:
                    line = (await response.content.readline()).decode().rstrip("\n")
                    if line.startswith("id: "):
                        seen = line[4:]
                    elif line.startswith("data: "):
                        return seen, json.loads(line[6:])

        await response.content.readline()  # the first bytes: from here on nothing is missed
        yield following


@pytest.fixture
async def held(system_behind_proxy: tuple[System, NodeProxy]) -> AsyncIterator[tuple[System, Any]]:
    """A system, and a transaction of it that never reaches the node."""
    system, proxy = system_behind_proxy
    proxy.swallow = sending
    try:
        view = await system.transfer("default", RECEIVER, 1, valid_for_blocks=60)
        while (await system.get(f"/transactions/{view['id']}"))["state"] != "sent":
            await asyncio.sleep(0.05)
        yield system, view
    finally:
        proxy.swallow = nothing


async def test_cancelling_is_asked_for_shown_and_decided_by_the_chain(
    held: tuple[System, Any], system_behind_proxy: tuple[System, NodeProxy]
) -> None:
    system, view = held
    asked = await system.request("POST", f"/transactions/{view['id']}/cancel", status=202)
    assert (asked["state"], asked["cancelling"], asked["cause"]["code"]) == ("sent", True, "cancelling")
    system_behind_proxy[1].swallow = nothing
    done = await system.settled(view["id"])
    assert (done["state"], done["cancelling"], done["cause"]["code"]) == ("cancelled", False, "cancelled")
    made = (await system.get(f"/transactions/{view['id']}/attempts"))["items"]
    assert [(one["kind"], one["state"]) for one in made] == [("send", "replaced"), ("cancel", "included")]
    assert made[1]["conflicts"] == [made[0]["txid"]]
    again = await system.request("POST", f"/transactions/{view['id']}/cancel", status=202)
    assert again["state"] == "cancelled"
    late = await system.request("POST", f"/transactions/{view['id']}/speed-up", {}, status=409)
    assert (late["code"], late["state"], late["txid"]) == ("too_late", "cancelled", made[1]["txid"])


async def test_a_speed_up_is_confirmed_in_place_of_the_first(
    held: tuple[System, Any], system_behind_proxy: tuple[System, NodeProxy]
) -> None:
    system, view = held
    body = {"speed": "urgent", "max_fee": "0.2"}
    asked = await system.post(f"/transactions/{view['id']}/speed-up", body, status=202)
    assert (asked["speed"], asked["max_fee"], asked["cause"]["code"]) == ("urgent", "0.2", "speeding_up")
    refused = await system.post(
        f"/transactions/{view['id']}/speed-up", {"speed": "fast", "max_fee": "0.01"}, status=422
    )
    assert refused["code"] == "fee_above_cap"
    system_behind_proxy[1].swallow = nothing
    done = await system.settled(view["id"])
    assert done["state"] == "confirmed"
    assert done["txid"] != view["txid"]


async def test_cancel_and_speed_up_name_what_is_wrong(system: System) -> None:
    view = await system.transfer("default", RECEIVER, 1)
    await system.settled(view["id"])
    late = await system.request("POST", f"/transactions/{view['id']}/cancel", status=409)
    assert (late["code"], late["state"]) == ("too_late", "confirmed")
    other = await system.new_tenant("meddler")
    for path, body, key, status, code in (
        (f"/transactions/{view['id']}/cancel", {}, other, 404, "transaction_not_found"),
        (f"/transactions/{view['id']}/speed-up", {}, other, 404, "transaction_not_found"),
        (f"/transactions/{view['id']}/attempts", None, other, 404, "transaction_not_found"),
        ("/transactions/nope/cancel", {}, None, 404, "transaction_not_found"),
        (f"/transactions/{view['id']}/speed-up", {"speed": "warp"}, None, 422, "invalid_request"),
        (f"/transactions/{view['id']}/cancel", {"max_fee": "x"}, None, 422, "invalid_request"),
        (f"/transactions/{view['id']}/cancel", {"fee": "1"}, None, 422, "invalid_request"),
    ):
        method = "GET" if body is None else "POST"
        problem = await system.request(method, path, body, key=key, status=status)
        assert problem["code"] == code, path


async def test_a_long_poll_answers_at_the_change_and_not_before(held: tuple[System, Any]) -> None:
    system, view = held
    id = view["id"]
    shown = await system.get(f"/transactions/{id}")
    start = time.monotonic()
    same = await system.get(f"/transactions/{id}", wait=1, after=shown["event"])
    assert time.monotonic() - start >= 1
    assert same["event"] == shown["event"]
    waiting = asyncio.ensure_future(system.get(f"/transactions/{id}", wait=20))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    start = time.monotonic()
    await system.request("POST", f"/transactions/{id}/cancel", status=202)
    changed = await waiting
    assert time.monotonic() - start < 2
    assert (changed["cancelling"], changed["event"]) == (True, shown["event"] + 1)
    start = time.monotonic()
    assert (await system.get(f"/transactions/{id}", wait=20, after=shown["event"]))["event"] > shown["event"]
    assert time.monotonic() - start < 1  # it was missed between two polls
    for wrong in ("wait=-1", "wait=61", "wait=x", "after=-1"):
        assert (await system.request("GET", f"/transactions/{id}?{wrong}", status=422))[
            "code"
        ] == "invalid_request"


async def test_changes_are_followed_by_server_sent_events_at_any_api_process(system: System) -> None:
    other = await system.new_tenant("listener")
    async with events(system) as following:
        view = await system.transfer("default", new_receiver(), 7)
        await system.post("/wallets", {"name": "deaf"}, key=other, status=201)
        seen = [await following() for _ in range(2)]
        last_id = seen[-1][0]
    await system.settled(view["id"])
    async with another_api(system) as url, events(system, last_id, url) as following:
        seen += [await following() for _ in range(2)]
    assert [data["state"] for _, data in seen] == ["queued", "signed", "sent", "confirmed"]
    assert [data["number"] for _, data in seen] == [1, 2, 3, 4]
    assert {data["id"] for _, data in seen} == {view["id"]}
    done = await system.get(f"/transactions/{view['id']}")
    final = seen[-1][1]
    assert (final["txid"], final["block"], final["cause"]) == (done["txid"], done["block"], None)
    status, _, problem = await system.raw("GET", "/api/v1/events", headers={"last-event-id": "nonsense"})
    assert (status, problem["code"]) == (422, "invalid_request")


async def test_a_wallets_limits_are_set_shown_and_obeyed(system: System) -> None:
    await system.post("/wallets", {"name": "limited"}, status=201)
    address = (await system.get("/wallets/limited"))["address"]
    await system.settled((await system.transfer("default", address, 5 * 10**8))["id"])
    empty = await system.get("/wallets/limited/limits")
    assert (empty["max_fee_per_transaction"], empty["max_fee_per_day"], empty["counted"]) == (None, None, "0")
    limits = {"max_fee_per_transaction": "0.2", "max_fee_per_day": "0.2"}
    assert (await system.request("PUT", "/wallets/limited/limits", limits))["max_fee_per_day"] == "0.2"
    view = await system.transfer("limited", RECEIVER, 1)
    problem = await system.transfer("limited", RECEIVER, 1, status=422)
    assert (problem["code"], problem["max_fee_per_day"]) == ("daily_cap_reached", "0.2")
    done = await system.settled(view["id"])
    spent = round((float(done["system_fee"]) + float(done["network_fee"])) * 10**8)
    shown = await system.get("/wallets/limited/limits")
    assert round(float(shown["counted"]) * 10**8) == spent
    await system.request("PUT", "/wallets/limited/limits", {"max_fee_per_transaction": "0.01"})
    problem = await system.transfer("limited", RECEIVER, 1, status=422)
    assert problem["code"] == "fee_above_cap"
    await system.request("PUT", "/wallets/limited/limits", {"max_fee_per_day": "-1"}, status=422)
    await system.request("PUT", "/wallets/none/limits", {}, status=404)


async def test_the_command_line_cancels_speeds_up_and_watches(
    held: tuple[System, Any], system_behind_proxy: tuple[System, NodeProxy]
) -> None:
    system, view = held
    said = await neolayer(system, "tx", "speed-up", view["id"], "--speed", "urgent")
    assert "is to take its place" in said
    await neolayer(system, "tx", "cancel", view["id"])
    system_behind_proxy[1].swallow = nothing
    said = await neolayer(system, "tx", "watch", view["id"], code=1)
    assert "cancelled" in said
