"""Asynchronous executions: stored first, run at least once, repeated, dead, replayed, cancelled."""

import asyncio
import json
import random
import time
from typing import Any

import psycopg
import pytest

from neolayer.db.sql import load_queries
from neolayer.functions.worker import DEAD_DAYS, MAX_LEASES
from tests.service.beside import another_api
from tests.system import NewSystem, System, new_receiver

FINAL = ("succeeded", "failed", "dead", "cancelled")
SLEEPS = "export default (ms) => new Promise((done) => setTimeout(() => done(ms), ms))"


async def deploy(system: System, name: str, source: str, *, key: str | None = None, **settings: object) -> None:
    await system.request("PUT", f"/functions/{name}", {"source": source, **settings}, key=key)


async def accept(
    system: System, name: str, input: Any = None, *, key: str | None = None, url: str | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    given = {"prefer": "respond-async", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if key is not None:
        given["authorization"] = f"Bearer {key}"
    body = b"" if input is None else json.dumps(input).encode()
    return await system.raw("POST", f"/api/v1/functions/{name}/invoke", body=body, headers=given, url=url)


async def started(system: System, name: str, input: Any = None, **options: Any) -> str:
    status, headers, body = await accept(system, name, input, **options)
    assert status == 202, body
    assert headers["location"] == f"/api/v1/executions/{body['id']}"
    return str(body["id"])


async def over(system: System, id: str, *, key: str | None = None, timeout_s: float = 30) -> Any:
    async with asyncio.timeout(timeout_s):
        while True:
            view = await system.get(f"/executions/{id}", key=key)
            if view["status"] in FINAL:
                return view
            await asyncio.sleep(0.05)


async def listed(system: System, query: str, *, key: str | None = None) -> list[Any]:
    page = await system.request("GET", f"/executions?{query}", key=key)
    return list(page["items"])


async def test_an_asynchronous_call_is_accepted_and_its_result_found_later(system: System) -> None:
    await deploy(system, "later", "export default (input) => { console.log('got', input.n); return input.n * 2 }")
    status, headers, body = await accept(system, "later", {"n": 21}, prefer="wait=1, Respond-Async; x=1")
    assert (status, body["status"], headers["preference-applied"]) == (202, "queued", "respond-async")
    view = await over(system, body["id"])
    shown = (view["status"], view["output"], view["kind"], view["attempt"], view["function"], view["version"])
    assert shown == ("succeeded", 42, "async", 1, "later", 1)
    assert view["bytes_in"] == len('{"n": 21}')
    logs = (await system.get(f"/executions/{body['id']}/logs"))["items"]
    assert [line["text"] for line in logs] == ["got 21"]
    status, _, problem = await accept(system, "no-such-function")
    assert (status, problem["code"]) == (404, "function_not_found")
    status, headers, answer = await accept(system, "later", {"n": 1}, prefer="return=minimal")
    assert (status, answer) == (200, 2)


async def test_an_accepted_execution_is_in_the_database_before_the_answer(system: System) -> None:
    await deploy(system, "durable", SLEEPS)
    id = await started(system, "durable", 1)
    async with await psycopg.AsyncConnection.connect(system.database_url) as connection:
        row = await (await connection.execute("SELECT kind FROM executions WHERE id = %s", (id,))).fetchone()
    assert row == ("async",)


async def test_a_run_longer_than_a_lease_keeps_it(system: System) -> None:
    """The tests' leases are 2 s: without their renewal another run would begin meanwhile."""
    await deploy(system, "long", SLEEPS)
    view = await over(system, await started(system, "long", 5000))
    assert (view["status"], view["attempt"], view["output"]) == ("succeeded", 1, 5000)


async def test_a_failing_execution_is_repeated_then_dead_and_runs_again_when_replayed(system: System) -> None:
    await deploy(system, "fails", "export default () => { throw new Error('not today') }", max_attempts=2)
    id = await started(system, "fails")
    view = await over(system, id)
    assert (view["status"], view["attempt"], view["error"]["code"]) == ("dead", 2, "function_error")
    assert id in [item["id"] for item in await listed(system, "status=dead")]
    assert id in [item["id"] for item in await listed(system, "code=function_error")]

    await deploy(system, "fails", "export default () => 'mended'")
    assert (await system.post(f"/executions/{id}/replay", None, status=202))["status"] == "queued"
    view = await over(system, id)
    assert (view["status"], view["output"], view["attempt"], view["version"]) == ("succeeded", "mended", 3, 2)
    assert view["error"] is None
    assert (await system.post(f"/executions/{id}/replay", None, status=409))["code"] == "not_replayable"
    assert (await system.post(f"/executions/{id}/cancel", None, status=409))["code"] == "not_cancellable"


async def test_a_version_that_cannot_run_at_all_is_dead_at_once(system: System) -> None:
    """Its top level succeeds when it is deployed, and fails from then on."""
    later = int((time.time() + 2) * 1000)
    source = f"if (Date.now() > {later}) throw new Error('too late');\nexport default () => 1"
    await deploy(system, "too-late", "export default () => 0")
    # What is held is not made ready ahead of its calls.
    await deploy(system, "too-late", source, max_attempts=5, hold=True)
    await asyncio.sleep(2.1)
    view = await over(system, await started(system, "too-late@2"))
    assert (view["status"], view["attempt"], view["error"]["code"]) == ("dead", 1, "invalid_function")


async def test_a_dead_execution_can_be_replayed_for_two_weeks(system: System) -> None:
    await deploy(system, "long-dead", "export default () => { throw new Error('no') }", max_attempts=1)
    old, young = [await started(system, "long-dead") for _ in range(2)]
    for id in (old, young):
        assert (await over(system, id))["status"] == "dead"
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as connection:
        # As time and the worker do it.
        await connection.execute(
            "UPDATE execution_queue SET dead_at = dead_at - interval '15 days' WHERE execution_id = %s", (old,)
        )
        await connection.execute(load_queries("neolayer.functions")["forget_dead"], {"days": DEAD_DAYS})
    assert (await system.get(f"/executions/{old}"))["status"] == "failed"
    assert (await system.post(f"/executions/{old}/replay", None, status=409))["code"] == "not_replayable"
    assert (await system.post(f"/executions/{young}/replay", None, status=202))["status"] == "queued"


async def test_an_execution_that_takes_worker_after_worker_down_is_dead(system: System) -> None:
    await deploy(system, "poison", "export default () => { throw new Error('again') }", max_attempts=10)
    id = await started(system, "poison")

    async def paused() -> bool:
        view = await system.get(f"/executions/{id}")
        return bool(view["status"] == "queued" and view["attempt"] >= 1)

    await system.eventually(paused)
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as connection:
        # As so many workers that died with it leave it.
        await connection.execute(
            "UPDATE execution_queue SET leases = %s, state = 'running', available_at = now()"
            " WHERE execution_id = %s",
            (MAX_LEASES, id),
        )
    view = await over(system, id)
    assert (view["status"], view["error"]["code"]) == ("dead", "worker_lost")


async def test_a_waiting_execution_is_cancelled_and_never_runs(system: System) -> None:
    await deploy(system, "waits", "export default () => { throw new Error('again') }", max_attempts=10)
    id = await started(system, "waits")

    async def paused() -> bool:
        view = await system.get(f"/executions/{id}")
        return bool(view["status"] == "queued" and view["attempt"] >= 2)

    await system.eventually(paused)
    assert (await system.post(f"/executions/{id}/cancel", None))["status"] == "cancelled"
    attempts = (await system.get(f"/executions/{id}"))["attempt"]
    await asyncio.sleep(3)
    view = await system.get(f"/executions/{id}")
    assert (view["status"], view["attempt"]) == ("cancelled", attempts)
    missing = "01890000-0000-7000-8000-000000000000"
    assert (await system.post(f"/executions/{missing}/cancel", None, status=404))["code"] == "execution_not_found"
    assert (await system.post("/executions/nonsense/replay", None, status=404))["code"] == "execution_not_found"


async def test_what_waits_for_a_deleted_function_fails_and_its_history_stays(system: System) -> None:
    await deploy(system, "leaves", "export default () => { throw new Error('again') }", max_attempts=10)
    waiting = await started(system, "leaves")
    await deploy(system, "leaves-dead", "export default () => { throw new Error('no') }", max_attempts=1)
    dead = await started(system, "leaves-dead")
    assert (await over(system, dead))["status"] == "dead"

    async def paused() -> bool:
        view = await system.get(f"/executions/{waiting}")
        return bool(view["status"] == "queued" and view["attempt"] >= 1)

    await system.eventually(paused)
    await system.request("DELETE", "/functions/leaves", status=204)
    await system.request("DELETE", "/functions/leaves-dead", status=204)
    view = await system.get(f"/executions/{waiting}")
    assert (view["status"], view["error"]["code"]) == ("failed", "function_deleted")
    view = await system.get(f"/executions/{dead}")
    assert (view["status"], view["error"]["code"]) == ("failed", "function_error")
    assert (await system.post(f"/executions/{dead}/replay", None, status=409))["code"] == "not_replayable"


async def test_a_full_queue_refuses_with_retry_after_and_only_its_tenant(system: System) -> None:
    crowd, quiet = await system.new_tenant("crowd"), await system.new_tenant("quiet")
    for key in (crowd, quiet):
        await deploy(system, "slow", SLEEPS, key=key)
    async with another_api(system, async_queue_max="3") as url:
        ids = []
        for _ in range(3):
            status, _, body = await accept(system, "slow", 3000, key=crowd, url=url)
            assert status == 202, body
            ids.append(body["id"])
        status, headers, problem = await accept(system, "slow", 1, key=crowd, url=url)
        assert (status, problem["code"], problem["retryable"]) == (429, "queue_full", True)
        assert int(headers["retry-after"]) >= 1
        assert (await accept(system, "slow", 1, key=quiet, url=url))[0] == 202
        for id in ids:
            assert (await over(system, id, key=crowd))["status"] == "succeeded"
        assert (await accept(system, "slow", 1, key=crowd, url=url))[0] == 202


async def test_a_tenant_with_a_long_queue_does_not_hold_up_another(system: System) -> None:
    busy, other = await system.new_tenant("busy"), await system.new_tenant("other")
    for key in (busy, other):
        await deploy(system, "sleeps", SLEEPS, key=key)
    queued = await asyncio.gather(*(started(system, "sleeps", 1000, key=busy) for _ in range(100)))
    quick = await started(system, "sleeps", 1, key=other)
    assert (await over(system, quick, key=other, timeout_s=5))["status"] == "succeeded"
    waiting = await listed(system, "status=queued&limit=100", key=busy)
    assert len(waiting) > 40
    assert (await over(system, queued[-1], key=busy))["status"] == "succeeded"


@pytest.mark.parametrize("round", range(2))
async def test_a_worker_killed_in_the_middle_runs_them_again_and_sends_each_transaction_once(
    new_system: NewSystem, round: int
) -> None:
    """SIGKILL at a seeded moment while functions are between their two transactions, one of them sent by another
    function. Each ran at least once, and each transaction is there once."""
    moment = random.Random(20261123 + round).uniform(0.2, 1.2)  # noqa: S311 - a seeded moment
    system = await new_system()
    send = """ctx.neo.send({calls: [{contract: 'GasToken', method: 'transfer', args: [
        {type: 'Hash160', value: (await ctx.neo.wallet()).script_hash}, {type: 'Hash160', value: input.to},
        {type: 'Integer', value: String(input.amount)}, {type: 'Any', value: null}]}]})"""
    await deploy(system, "pays", f"export default async (input, ctx) => (await {send}).id")
    source = f"""export default async (input, ctx) => {{
      const first = (await {send}).id;
      await new Promise((done) => setTimeout(done, 1500));
      return [first, await ctx.invoke('pays', {{to: input.to, amount: input.amount + 1}})];
    }}"""
    await deploy(system, "pays-twice", source)
    receivers = [new_receiver() for _ in range(12)]
    ids = [await started(system, "pays-twice", {"to": to, "amount": 1000}) for to in receivers]

    async def sent() -> bool:
        return len((await system.get("/transactions", limit=100))["items"]) >= 6

    await system.eventually(sent)
    await asyncio.sleep(moment)
    system.kill("worker")
    views = [await over(system, id, timeout_s=60) for id in ids]
    assert {view["status"] for view in views} == {"succeeded"}, [view["error"] for view in views]
    assert max(view["attempt"] for view in views) >= 2, "the kill came too late to interrupt any"
    transactions = (await system.get("/transactions", limit=100))["items"]
    assert len(transactions) == 24
    assert {id for view in views for id in view["output"]} == {item["id"] for item in transactions}
    for item in transactions:
        assert (await system.settled(item["id"]))["state"] == "confirmed"
    for to in receivers:
        assert await system.gas_of(to) == 1000 + 1001
