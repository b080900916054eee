"""Killed at bad moments, the service loses nothing and does nothing twice. The chain is counted by raw RPC."""

import asyncio
import random
import sys
import time

import psycopg
import pytest

from tests.proxy import NodeProxy, everything, nothing, sending
from tests.system import RECEIVER, NewSystem, System

SEED = 20261123


async def effects(system: System, first_block: int, amounts: set[int]) -> list[int]:
    """Amounts of the GAS transfers to RECEIVER in blocks from ``first_block`` on, as the node's logs tell them."""
    found = []
    for index in range(first_block, await system.rpc("getblockcount")):
        block = await system.rpc("getblock", index, 1)
        for transaction in block["tx"]:
            log = await system.rpc("getapplicationlog", transaction["hash"])
            for note in log["executions"][0]["notifications"]:
                amount = int(note["state"]["value"][2]["value"]) if note["eventname"] == "Transfer" else 0
                if amount in amounts:
                    found.append(amount)
    return sorted(found)


async def test_a_worker_killed_between_stored_and_sent(system_behind_proxy: tuple[System, NodeProxy]) -> None:
    """The node never saw the bytes: the next worker sends the stored ones."""
    system, proxy = system_behind_proxy
    first_block = await system.rpc("getblockcount")
    proxy.hold = sending
    held = proxy.held
    accepted = await system.transfer("default", RECEIVER, 1001)
    await system.eventually(lambda: proxy.held > held)
    assert (await system.get(f"/transactions/{accepted['id']}"))["state"] == "signed"
    txid = (await system.get(f"/transactions/{accepted['id']}"))["txid"]
    system.kill("worker")
    proxy.hold = nothing
    view = await system.settled(accepted["id"])
    assert (view["state"], view["txid"]) == ("confirmed", txid)
    assert await effects(system, first_block, {1001}) == [1001]


async def test_a_worker_killed_after_the_node_accepted_and_before_it_heard(
    system_behind_proxy: tuple[System, NodeProxy],
) -> None:
    system, proxy = system_behind_proxy
    first_block = await system.rpc("getblockcount")
    proxy.drop_answer = sending
    dropped = proxy.dropped
    accepted = await system.transfer("default", RECEIVER, 1002)
    await system.eventually(lambda: proxy.dropped > dropped)
    system.kill("worker")
    proxy.drop_answer = nothing
    view = await system.settled(accepted["id"])
    assert view["state"] == "confirmed"
    assert await effects(system, first_block, {1002}) == [1002]


@pytest.mark.parametrize("group", ["auto", "never"])
async def test_answers_lost_after_the_node_accepted_have_one_effect_each(
    system_behind_proxy: tuple[System, NodeProxy], group: str
) -> None:
    system, proxy = system_behind_proxy
    first_block = await system.rpc("getblockcount")
    lost: list[str] = []

    def first_answers_to_sends(method: str) -> bool:
        if method != "sendrawtransaction" or len(lost) >= 3:
            return False
        lost.append(method)
        return True

    proxy.drop_answer = first_answers_to_sends
    amounts = set(range(2000, 2020))
    accepted = await asyncio.gather(
        *(system.transfer("default", RECEIVER, amount, group=group) for amount in amounts)
    )
    views = [await system.settled(view["id"]) for view in accepted]
    proxy.drop_answer = nothing
    assert {view["state"] for view in views} == {"confirmed"}
    # Two are one request that the HTTP client repeated; all transfers may have been in it.
    assert 2 <= len(lost) <= 3
    assert await effects(system, first_block, amounts) == sorted(amounts)


async def test_a_worker_killed_in_the_middle_of_a_batch(system_behind_proxy: tuple[System, NodeProxy]) -> None:
    """Some of it is stored and sent, some stored only, some not even signed."""
    system, proxy = system_behind_proxy
    first_block = await system.rpc("getblockcount")
    seen: list[str] = []

    def every_send_but_the_first(method: str) -> bool:
        if method == "sendrawtransaction":
            seen.append(method)
        return method == "sendrawtransaction" and len(seen) > 1

    amounts = set(range(4000, 4300))
    address = (await system.post("/wallets", {"name": "batch"}, status=201))["address"]
    funding = await system.transfer("default", address, 50 * 10**8)
    await system.settled(funding["id"])
    proxy.hold = every_send_but_the_first
    accepted = await asyncio.gather(
        *(
            system.transfer("batch", RECEIVER, amount, group="auto" if amount % 2 else "never")
            for amount in sorted(amounts)
        )
    )
    await system.eventually(lambda: len(seen) >= 2)
    system.kill("worker")
    proxy.hold = nothing
    views = [await system.settled(view["id"]) for view in accepted]
    assert {view["state"] for view in views} == {"confirmed"}
    assert await effects(system, first_block, amounts) == sorted(amounts)


async def test_two_worker_processes_on_one_queue_and_one_of_them_killed(
    system_behind_proxy: tuple[System, NodeProxy],
) -> None:
    system, _ = system_behind_proxy
    first_block = await system.rpc("getblockcount")
    amounts = set(range(5000, 5200))
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "neolayer", "worker"),
        env=system.environ_of_parts,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert second.stdout is not None
    assert b"ready" in await second.stdout.readline()
    accepted = []
    for amount in sorted(amounts):
        accepted.append(
            await system.transfer("default", RECEIVER, amount, group="auto" if amount % 3 else "never")
        )
        if amount == 5120:
            second.kill()
    await second.wait()
    views = [await system.settled(view["id"]) for view in accepted]
    assert {view["state"] for view in views} == {"confirmed"}
    assert await effects(system, first_block, amounts) == sorted(amounts)


async def test_a_worker_that_hangs_is_stood_in_for_and_does_nothing_twice_when_it_wakes(
    system_behind_proxy: tuple[System, NodeProxy],
) -> None:
    """It leads the following of the chain and holds leases; the other process has both within five seconds."""
    system, _ = system_behind_proxy
    first_block = await system.rpc("getblockcount")
    amounts = set(range(6000, 6040))
    hanging = [process for process in system.processes() if "worker" in process.cmdline()]
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "neolayer", "worker"),
        env=system.environ_of_parts,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert second.stdout is not None
        assert b"ready" in await second.stdout.readline()
        accepted = [await system.transfer("default", RECEIVER, amount) for amount in sorted(amounts)]
        for process in hanging:
            process.suspend()
        hung_at = time.monotonic()
        height = await system.rpc("getblockcount")
        async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as connection:

            async def followed() -> bool:
                row = await (await connection.execute("SELECT max(index) FROM chain_blocks")).fetchone()
                assert row is not None
                return int(row[0]) >= height

            await system.eventually(followed)
        assert time.monotonic() - hung_at < 5 + 1  # the block itself took up to a second
        views = [await system.settled(view["id"]) for view in accepted]
        for process in hanging:
            process.resume()
        last = await system.transfer("default", RECEIVER, 6040)
        views.append(await system.settled(last["id"]))
        assert {view["state"] for view in views} == {"confirmed"}
        assert await effects(system, first_block, amounts | {6040}) == sorted(amounts | {6040})
    finally:
        for process in hanging:
            process.resume()
        second.kill()
        await second.wait()


async def test_a_node_that_is_down_delays_and_loses_nothing(system_behind_proxy: tuple[System, NodeProxy]) -> None:
    system, proxy = system_behind_proxy
    proxy.refuse = everything
    await system.eventually(lambda: system.ready(expect=False))
    _, _, readiness = await system.raw("GET", "/health/ready")
    assert {part["name"]: part["state"] for part in readiness["parts"]}["chain"] == "down"
    accepted = await system.transfer("default", RECEIVER, 1003)
    assert accepted["state"] == "queued"

    async def cause() -> bool:
        view = await system.get(f"/transactions/{accepted['id']}")
        assert view["state"] == "queued"
        return bool(view["cause"] and view["cause"]["code"] == "node_unavailable")

    await system.eventually(cause)
    proxy.refuse = nothing
    assert (await system.settled(accepted["id"]))["state"] == "confirmed"
    assert await system.ready()


@pytest.mark.parametrize("round", range(3))
async def test_everything_killed_at_once(new_system: NewSystem, round: int) -> None:
    """SIGKILL to every process at a seeded moment, the node included, which loses its last blocks by it."""
    moment = random.Random(SEED + round).uniform(0.05, 2.5)  # noqa: S311 - a seeded moment
    system = await new_system()
    first_block = await system.rpc("getblockcount")
    amounts = set(range(3000, 3030))
    accepted = await asyncio.gather(
        *(system.transfer("default", RECEIVER, amount, idempotency_key=f"k{amount}") for amount in amounts)
    )
    await asyncio.sleep(moment)
    system.kill_everything()

    await system.start()
    views = [await system.settled(view["id"]) for view in accepted]
    assert {view["state"] for view in views} == {"confirmed"}, f"killed after {moment:.3f} s"
    assert await effects(system, first_block, amounts) == sorted(amounts), f"killed after {moment:.3f} s"
    again = await system.transfer("default", RECEIVER, 3000, idempotency_key="k3000", status=200)
    assert again["state"] == "confirmed"
