"""Functions through the API: deployed, called, recorded; and each way to fail says what failed."""

import asyncio

from tests.system import System


async def deploy(system: System, name: str, source: str, **settings: object) -> None:
    await system.request("PUT", f"/functions/{name}", {"source": source, **settings})


async def test_a_function_returns_its_output_and_the_execution_is_recorded(system: System) -> None:
    await deploy(
        system,
        "adds",
        "export default async function (input) { console.log('adding', input.a); return input.a + 1 }",
    )
    output, execution = await system.invoke("adds", {"a": 41})
    assert output == 42
    record = await system.get(f"/executions/{execution}")
    assert (record["function"], record["version"], record["status"], record["output"]) == (
        "adds",
        1,
        "succeeded",
        42,
    )
    assert record["wall_ms"] >= record["cpu_ms"] > 0
    assert record["heap_bytes"] > 0
    assert record["peak_heap_bytes"] > 0
    assert (record["bytes_in"], record["bytes_out"]) == (len('{"a": 41}'), len("42"))
    assert record["queue_ms"] >= 0
    logs = (await system.get(f"/executions/{execution}/logs"))["items"]
    assert [(line["level"], line["text"]) for line in logs] == [("log", "adding 41")]
    assert (await system.get("/executions", function="adds"))["items"][0]["id"] == execution


async def test_a_plain_function_main_works_too(system: System) -> None:
    await deploy(system, "plain", "function main(input) { return { got: input } }")
    assert (await system.invoke("plain", [1, "ü"]))[0] == {"got": [1, "ü"]}


async def test_a_new_version_is_called_at_once(system: System) -> None:
    for version in (1, 2, 3):
        await deploy(system, "versioned", f"export default () => {version}")
        assert (await system.invoke("versioned"))[0] == version
    assert (await system.get("/functions/versioned"))["version"] == 3


async def test_create_refuses_a_name_that_exists(system: System) -> None:
    body = {"name": "only-once", "source": "export default () => 1"}
    await system.post("/functions", body, status=201)
    assert (await system.post("/functions", body, status=409))["code"] == "function_exists"


async def test_a_cold_start_is_recorded_with_its_phases_and_a_warm_one_has_none(system: System) -> None:
    source = "const end = Date.now() + 30; while (Date.now() < end); export default () => 1"
    await deploy(system, "cold-phases", "export default () => 0")
    await deploy(system, "cold-phases", source, hold=True)
    _, first = await system.invoke("cold-phases@2")
    _, second = await system.invoke("cold-phases@2")
    record = await system.get(f"/executions/{first}")
    assert record["cold"]
    phases = record["phases"]
    assert list(phases)[-6:] == ["isolate", "context", "prepare", "compile", "evaluate", "first_call"]
    assert set(phases) <= {"process", "isolate", "context", "prepare", "compile", "evaluate", "first_call"}
    assert 29 < phases["evaluate"] < record["wall_ms"]
    warm = await system.get(f"/executions/{second}")
    assert (warm["cold"], warm["phases"]) == (False, None)


async def test_a_deleted_function_is_gone_and_its_executions_stay(system: System) -> None:
    await deploy(system, "leaving", "export default () => 1")
    _, execution = await system.invoke("leaving")
    await system.request("DELETE", "/functions/leaving", status=204)
    assert (await system.request("POST", "/functions/leaving/invoke", status=404))["code"] == "function_not_found"
    assert (await system.get(f"/executions/{execution}"))["status"] == "succeeded"


async def test_source_that_does_not_parse_is_refused_with_its_place_and_not_stored(system: System) -> None:
    source = "export default function (input) {\n  return input +;\n}\n"
    problem = await system.request("PUT", "/functions/broken", {"source": source}, status=422)
    assert (problem["code"], problem["line"], problem["column"]) == ("syntax_error", 2, 17)
    await system.get("/functions/broken", status=404)


async def test_a_thrown_error_comes_back_with_the_functions_own_stack(system: System) -> None:
    source = "function inner() {\n  throw new TypeError('no such thing');\n}\nexport default () => inner();\n"
    await deploy(system, "throws", source)
    problem = await system.invoke_fails("throws")
    assert problem["code"] == "function_error"
    assert "no such thing" in problem["detail"]
    assert "inner" in problem["stack"]
    assert ":2:" in problem["stack"]
    assert "/" not in problem["stack"].replace("://", "")
    record = await system.get(f"/executions/{problem['execution']}")
    assert (record["status"], record["error"]["code"], record["output"]) == ("failed", "function_error", None)


async def test_results_that_are_not_json_fail(system: System) -> None:
    for number, body in enumerate(
        ("10n", "(() => { const a = []; a.push(a); return a })()", "'x'.repeat(2_000_000)")
    ):
        await deploy(system, f"unjson-{number}", f"export default () => {body}")
        assert (await system.invoke_fails(f"unjson-{number}"))["code"] == "invalid_output"
    await deploy(system, "nothing", "export default () => {}")
    assert (await system.invoke("nothing"))[0] is None


async def test_endless_loops_end_at_their_limit_also_after_an_await(system: System) -> None:
    await deploy(system, "spins", "export default () => { for (;;); }", cpu_ms=100)
    assert (await system.invoke_fails("spins"))["code"] == "cpu_limit"
    source = """export default async (input, ctx) => {
      await ctx.neo.read({contract: 'GasToken', method: 'symbol'});
      for (;;);
    }"""
    await deploy(system, "spins-later", source, cpu_ms=100)
    assert (await system.invoke_fails("spins-later"))["code"] == "cpu_limit"
    await deploy(system, "sleeps", "export default () => new Promise(() => {})", timeout_ms=200)
    assert (await system.invoke_fails("sleeps"))["code"] == "timeout"


async def test_eating_memory_harms_nobody_else(system: System) -> None:
    neighbour = await system.new_tenant("neighbour")
    await system.request("PUT", "/functions/canary", {"source": "export default () => 'alive'"}, key=neighbour)
    sources = (
        "export default () => { const all = []; for (;;) all.push(new Array(1000).fill(1)) }",
        "export default () => { const o = {}; for (let i = 0; ; i++) o['a' + i] = new Array(100) }",
    )
    for number, source in enumerate(sources):
        await deploy(system, f"eats-{number}", source, memory_mb=16, cpu_ms=5000)
        eating = asyncio.create_task(system.invoke_any(f"eats-{number}"))
        answers = 0
        while not eating.done():
            assert (await system.invoke("canary", key=neighbour))[0] == "alive"
            answers += 1
        assert answers > 0
        status, problem = await eating
        assert problem["code"] in ("memory_limit", "cell_crashed", "cpu_limit"), (status, problem)
        await deploy(system, "after-eating", "export default () => 'fine'")
        assert (await system.invoke("after-eating"))[0] == "fine"


async def test_fetch_reaches_no_host_that_was_not_allowed(system: System) -> None:
    await deploy(system, "fetches", "export default async () => (await fetch('https://example.com/')).status")
    problem = await system.invoke_fails("fetches")
    assert "example.com" in problem["detail"]
    assert "egress_denied" in problem["detail"]


async def test_a_function_reads_the_chain(system: System) -> None:
    read = "ctx.neo.read({contract: 'GasToken', method: 'decimals'})"
    source = f"export default async (input, ctx) => (await {read}).value"
    await deploy(system, "reads", source)
    assert (await system.invoke("reads"))[0] == "8"
    bad = "export default async (input, ctx) => ctx.neo.read({contract: 'NoSuchToken', method: 'symbol'})"
    await deploy(system, "reads-badly", bad)
    assert "bad_contract_hash" in (await system.invoke_fails("reads-badly"))["detail"]


async def test_bad_input_is_refused_before_anything_runs(system: System) -> None:
    await deploy(system, "strict", "export default (input) => input")
    path = "/api/v1/functions/strict/invoke"
    for body, status, code in (
        (b"{", 400, "malformed_json"),
        (b'"\xff"', 400, "malformed_json"),
        (b'"' + b"x" * 1_000_001 + b'"', 413, "body_too_large"),
    ):
        got, _, problem = await system.raw("POST", path, body=body)
        assert (got, problem["code"]) == (status, code)
    assert (await system.get("/executions", function="strict"))["items"] == []
    for field, value in (("timeout_ms", 1), ("memory_mb", 9999), ("egress", ["not a host"]), ("sauce", "x")):
        body = {"source": "export default () => 1", field: value}
        assert (await system.request("PUT", "/functions/strict", body, status=422))["code"] == "invalid_request"


async def test_many_calls_at_once_keep_apart(system: System) -> None:
    await deploy(system, "echoes", "export default async (input) => { await null; return input }")
    outputs = await asyncio.gather(*(system.invoke("echoes", number) for number in range(300)))
    assert [output for output, _ in outputs] == list(range(300))
    assert len({execution for _, execution in outputs}) == 300


async def test_erasable_typescript_is_deployed_as_it_is_and_errors_show_its_own_lines(system: System) -> None:
    source = """interface Order { amount: number }
export default async function (order: Order): Promise<number> {
  if (order.amount < 0) throw new RangeError('negative');
  return order.amount * 2;
}"""
    await deploy(system, "typed", source)
    assert (await system.invoke("typed", {"amount": 21}))[0] == 42
    assert (await system.get("/functions/typed"))["source"] == source
    problem = await system.request("POST", "/functions/typed/invoke", {"amount": -1}, status=422)
    assert problem["code"] == "function_error"
    assert "typed.js:3:31" in str(problem)
    not_erasable = {"source": f"{source}\nenum Colour {{ red }}"}
    problem = await system.request("PUT", "/functions/typed", not_erasable, status=422)
    assert (problem["code"], problem["line"]) == ("typescript_not_erasable", 6)


async def loads(system: System, name: str) -> float:
    """A counter of how functions became isolates."""
    _, _, text = await system.raw("GET", "/metrics")
    prefix = f'neolayer_enclave_loads{{counter="{name}"}} '
    return float(next(line for line in str(text).splitlines() if line.startswith(prefix)).split()[-1])


async def test_what_is_deployed_or_promoted_is_ready_before_its_first_call(system: System) -> None:
    async def start_of_a_call() -> str:
        status, headers, _ = await system.raw("POST", "/api/v1/functions/preloaded/invoke", body=b"1")
        assert status == 200
        return str(headers["neolayer-start"])

    warmed = await loads(system, "warmed")

    async def has_warmed(more: int) -> bool:
        return await loads(system, "warmed") >= warmed + more

    await deploy(system, "preloaded", "export default () => 1")
    await system.eventually(lambda: has_warmed(1))
    assert await start_of_a_call() == "warm"
    await deploy(system, "preloaded", "export default () => 2", hold=True)
    shares = {"versions": [{"version": 2}]}
    await system.request("PUT", "/functions/preloaded/aliases/live", shares)
    await system.eventually(lambda: has_warmed(2))
    assert await start_of_a_call() == "warm"


async def test_metrics_show_how_functions_become_warm(system: System) -> None:
    async def counter(name: str) -> float:
        return await loads(system, name)

    await deploy(system, "counted", "export default () => 0")
    await deploy(system, "counted", "export default () => 1", hold=True)
    # A cell tells of calls that passed the enclave by within 0.3 s, of those before too.
    await asyncio.sleep(0.5)
    before = {name: await counter(name) for name in ("cold_starts", "warm_starts", "code_hits")}
    for _ in range(3):
        await system.invoke("counted@2")
    await asyncio.sleep(0.5)
    # The deployment's check has left code for the first call.
    after = {name: await counter(name) - value for name, value in before.items()}
    assert after == {"cold_starts": 1, "warm_starts": 2, "code_hits": 1}
