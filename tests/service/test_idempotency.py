"""An Idempotency-Key runs a function once, whichever API process is asked, and gives the first answer again."""

import asyncio
import json
from collections import Counter
from typing import Any

import psycopg

from tests.service.beside import another_api, answers
from tests.system import NewSystem, System

SLEEPS = "export default (ms, ctx) => new Promise((done) => setTimeout(() => done(ctx.executionId), ms))"


async def deploy(system: System, name: str, source: str, **settings: object) -> None:
    await system.request("PUT", f"/functions/{name}", {"source": source, **settings})


async def invoke(
    system: System, name: str, key: str, input: Any = None, *, url: str | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    body = b"" if input is None else json.dumps(input).encode()
    given = {"idempotency-key": key, **headers}
    return await system.raw("POST", f"/api/v1/functions/{name}/invoke", body=body, headers=given, url=url)


async def runs(system: System, name: str) -> int:
    return len((await system.get("/executions", function=name, limit=100))["items"])


async def test_a_second_call_gets_the_first_output_and_runs_nothing(system: System) -> None:
    await deploy(system, "keyed", "let n = 0; export default (input) => ({ n: ++n, input })")
    first = await invoke(system, "keyed", "a", {"x": 1})
    assert (first[0], first[2], "idempotency-replayed" in first[1]) == (200, {"n": 1, "input": {"x": 1}}, False)
    for _ in range(3):
        status, headers, output = await invoke(system, "keyed", "a", {"x": 1})
        assert (status, output, headers["idempotency-replayed"]) == (200, first[2], "true")
        assert headers["neolayer-execution"] == first[1]["neolayer-execution"]
        assert headers["neolayer-start"] == first[1]["neolayer-start"]
    assert await runs(system, "keyed") == 1
    assert (await invoke(system, "keyed", "b", {"x": 1}))[2]["n"] == 2
    record = await system.get(f"/executions/{first[1]['neolayer-execution']}")
    assert (record["status"], record["output"]) == ("succeeded", first[2])


async def test_a_failure_of_the_function_is_given_again_too(system: System) -> None:
    source = "let n = 0; export default () => { throw new TypeError(`failure ${++n}`) }"
    await deploy(system, "keyed-fails", source)
    first = await invoke(system, "keyed-fails", "f")
    again = await invoke(system, "keyed-fails", "f")
    assert (first[0], first[2]["code"]) == (422, "function_error")
    assert "failure 1" in first[2]["detail"]
    assert again[0] == 422
    assert again[2] == first[2]
    assert again[1]["content-type"] == "application/problem+json"
    assert again[1]["idempotency-replayed"] == "true"


async def test_a_key_belongs_to_one_request(system: System) -> None:
    await deploy(system, "keyed-one", "export default (input) => input")
    await deploy(system, "keyed-two", "export default (input) => input")
    assert (await invoke(system, "keyed-one", "k", 1))[0] == 200
    for name, input, headers in (
        ("keyed-one", 2, {}),
        ("keyed-two", 1, {}),
        ("keyed-one@1", 1, {}),
        ("keyed-one", 1, {"prefer": "respond-async"}),
    ):
        status, _, problem = await invoke(system, name, "k", input, **headers)
        assert (status, problem["code"]) == (422, "idempotency_key_reused")
    other = await system.new_tenant("keyed-other")
    await system.request("PUT", "/functions/keyed-one", {"source": "export default () => 'other'"}, key=other)
    assert (await invoke(system, "keyed-one", "k", 2, authorization=f"Bearer {other}"))[2] == "other"
    for bad in ("", "x" * 256, "kéy"):
        status, _, problem = await invoke(system, "keyed-one", bad, 1)
        assert (status, problem["code"]) == (422, "invalid_request"), bad


async def test_what_never_ran_leaves_the_key_free(system: System) -> None:
    status, _, problem = await invoke(system, "keyed-later", "later", 1)
    assert (status, problem["code"]) == (404, "function_not_found")
    await deploy(system, "keyed-later", "export default (input) => input")
    assert (await invoke(system, "keyed-later", "later", 1))[2] == 1


async def test_a_hundred_clients_at_two_api_processes_cause_one_execution(system: System) -> None:
    await deploy(system, "keyed-crowd", SLEEPS)
    async with another_api(system) as other:
        urls = (system.url, other) * 50
        given = await asyncio.gather(*(invoke(system, "keyed-crowd", "one", 300, url=url) for url in urls))
        outcomes = Counter((status, None if status == 200 else answer["code"]) for status, _, answer in given)
        assert set(outcomes) <= {(200, None), (409, "idempotency_in_progress")}
        assert outcomes[200, None] >= 1
        ids = {answer for status, _, answer in given if status == 200}
        refused = {answer["execution"] for status, _, answer in given if status == 409}
        assert len(ids | refused) == 1
        for url in (system.url, other):
            status, headers, output = await invoke(system, "keyed-crowd", "one", 300, url=url)
            assert (status, headers["idempotency-replayed"]) == (200, "true")
            assert {output, headers["neolayer-execution"]} == ids
    assert await runs(system, "keyed-crowd") == 1


async def test_an_asynchronous_call_is_accepted_once(system: System) -> None:
    await deploy(system, "keyed-async", "export default (input) => input")
    given = await asyncio.gather(
        *(invoke(system, "keyed-async", "async", 7, prefer="respond-async") for _ in range(20))
    )
    assert {status for status, _, _ in given} == {202}
    assert len({body["id"] for _, _, body in given}) == 1
    assert sum("idempotency-replayed" not in headers for _, headers, _ in given) == 1
    assert len({headers["location"] for _, headers, _ in given}) == 1
    assert await runs(system, "keyed-async") == 1


async def test_a_key_whose_process_died_runs_again_as_the_same_execution(new_system: NewSystem) -> None:
    """The API is killed while the function runs; the key is free once the call must be over."""
    system = await new_system()
    source = """export default async (to, ctx) => {
      const sent = await ctx.neo.send({calls: [{contract: 'GasToken', method: 'symbol'}]});
      if (to > 0) await new Promise((done) => setTimeout(done, to));
      return [ctx.executionId, sent.id];
    }"""
    await deploy(system, "keyed-dies", source, timeout_ms=5_000)
    first = asyncio.create_task(invoke(system, "keyed-dies", "k", 3000))

    async def sent() -> list[Any]:
        return list((await system.get("/transactions"))["items"])

    await system.eventually(sent)
    transaction = (await sent())[0]
    system.kill("api")
    await asyncio.gather(first, return_exceptions=True)
    await system.eventually(lambda: answers(system.url))
    status, _, problem = await invoke(system, "keyed-dies", "k", 3000)
    assert (status, problem["code"]) == (409, "idempotency_in_progress")
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as connection:
        # As time does it.
        await connection.execute("UPDATE invoke_keys SET lease_until = now()")
    status, headers, output = await invoke(system, "keyed-dies", "k", 3000)
    assert (status, output) == (200, [problem["execution"], transaction["id"]])
    assert "idempotency-replayed" not in headers
    assert len(await sent()) == 1


async def test_a_day_later_a_key_is_new(system: System) -> None:
    await deploy(system, "keyed-day", "export default (input) => input")
    assert (await invoke(system, "keyed-day", "day", 1))[2] == 1
    async with await psycopg.AsyncConnection.connect(system.database_url, autocommit=True) as connection:
        await connection.execute(
            "UPDATE invoke_keys SET created_at = created_at - interval '25 hours' WHERE key = 'day'"
        )
    status, headers, output = await invoke(system, "keyed-day", "day", 2)
    assert (status, output, "idempotency-replayed" in headers) == (200, 2, False)
