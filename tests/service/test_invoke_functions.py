"""`ctx.invoke`: a function calls another of its tenant, to a depth, within its own time, and both are recorded."""

import asyncio
import re
from typing import Any

from tests.system import System


async def deploy(system: System, name: str, source: str, *, key: str | None = None, **settings: object) -> None:
    await system.request("PUT", f"/functions/{name}", {"source": source, **settings}, key=key)


async def executions(system: System, name: str) -> list[dict[str, Any]]:
    return list((await system.get("/executions", function=name, limit=100))["items"])


async def test_a_function_calls_another_and_gets_its_output(system: System) -> None:
    await deploy(system, "callee", "export default (input) => ({ got: input === undefined ? 'nothing' : input })")
    source = """export default async (input, ctx) => [
      await ctx.invoke('callee', input), await ctx.invoke('callee'), await ctx.invoke('callee@1', null)]"""
    await deploy(system, "caller", source)
    output, execution = await system.invoke("caller", {"ü": [1]})
    assert output == [{"got": {"ü": [1]}}, {"got": "nothing"}, {"got": None}]
    children = await executions(system, "callee")
    assert len(children) == 3
    assert {child["parent"] for child in children} == {execution}
    assert {child["kind"] for child in children} == {"invoke"}
    assert sorted(child["alias"] or "" for child in children) == ["", "", "1"]
    assert (await executions(system, "caller"))[0]["parent"] is None


async def test_what_goes_wrong_there_is_an_error_with_its_code_here(system: System) -> None:
    await deploy(system, "callee-throws", "export default () => { throw new Error('in there') }")
    await deploy(system, "callee-spins", "export default () => { for (;;); }", cpu_ms=50)
    source = """export default async (names, ctx) => {
      const seen = [];
      for (const name of names) {
        try { await ctx.invoke(name); } catch (error) { seen.push([error.code, error.message]); }
      }
      return seen;
    }"""
    await deploy(system, "catches", source)
    names = ["callee-throws", "callee-spins", "none-such", "callee-throws@9", "callee-throws@none", "No Name", 7]
    seen = (await system.invoke("catches", names))[0]
    assert [code for code, _ in seen] == [
        "function_error",
        "cpu_limit",
        "function_not_found",
        "version_not_found",
        "alias_not_found",
        "invalid_request",
        "invalid_request",
    ]
    assert "in there" in seen[0][1]
    await deploy(system, "lets-pass", "export default (input, ctx) => ctx.invoke('none-such')")
    assert "function_not_found" in (await system.invoke_fails("lets-pass"))["detail"]


async def test_other_tenants_functions_do_not_exist(system: System) -> None:
    other = await system.new_tenant("not-mine")
    await deploy(system, "theirs", "export default () => 1", key=other)
    await deploy(system, "reaches", "export default (input, ctx) => ctx.invoke('theirs')")
    assert "function_not_found" in (await system.invoke_fails("reaches"))["detail"]


async def test_eight_deep_is_allowed_and_nine_is_not_round_in_circles_too(system: System) -> None:
    source = "export default async (left, ctx) => left === 0 ? 'deep' : ctx.invoke('digs', left - 1)"
    await deploy(system, "digs", source)
    assert (await system.invoke("digs", 8))[0] == "deep"
    before = len(await executions(system, "digs"))
    status, _, problem = await system.raw("POST", "/api/v1/functions/digs/invoke", body=b"9")
    assert (status, problem["code"]) == (422, "function_error")
    assert "depth_exceeded" in problem["detail"]
    assert len(await executions(system, "digs")) == before + 9


async def test_one_execution_cannot_cause_calls_without_end(system: System) -> None:
    source = """export default async (input, ctx) => {
      const all = await Promise.allSettled(Array.from({ length: 200 }, () => ctx.invoke('leaf')));
      const codes = all.filter((one) => one.status === 'rejected').map((one) => one.reason.code);
      return [all.length - codes.length, [...new Set(codes)]];
    }"""
    await deploy(system, "leaf", "export default () => 1")
    await deploy(system, "forks", source)
    assert (await system.invoke("forks"))[0] == [128, ["too_many_calls"]]


async def test_a_called_function_has_no_more_time_than_its_caller(system: System) -> None:
    await deploy(system, "never", "export default () => new Promise(() => {})", timeout_ms=20_000)
    await deploy(system, "impatient", "export default (input, ctx) => ctx.invoke('never')", timeout_ms=700)
    problem = await system.invoke_fails("impatient")
    # Either end may notice first.
    assert problem["code"] == "timeout" or "timeout" in problem["detail"]

    async def recorded() -> list[dict[str, Any]]:
        return await executions(system, "never")

    await system.eventually(recorded, 3)
    child = (await recorded())[0]
    assert (child["status"], child["error"]["code"]) == ("failed", "timeout")
    # Its own cell ended it, by what was left of its caller's time.
    took = re.fullmatch(r"the call took longer than (\d+) ms", child["error"]["message"])
    assert took
    assert int(took[1]) <= 700
    assert child["wall_ms"] < 1200

    # Its own time is kept, where that is shorter.
    await deploy(system, "short", "export default () => new Promise(() => {})", timeout_ms=200)
    source = "export default (input, ctx) => ctx.invoke('short').catch((error) => error.code)"
    await deploy(system, "patient", source)
    assert (await system.invoke("patient"))[0] == "timeout"


async def test_after_its_callers_time_a_called_function_has_no_effect(system: System) -> None:
    source = """export default async (input, ctx) => {
      await new Promise((done) => setTimeout(done, 900));
      await ctx.invoke('overdue-effect');
    }"""
    await deploy(system, "overdue-effect", "export default () => 1")
    await deploy(system, "overdue", source)
    await deploy(system, "hasty", "export default (input, ctx) => ctx.invoke('overdue')", timeout_ms=500)
    await system.invoke_fails("hasty")
    await asyncio.sleep(1.2)
    assert [execution["error"]["code"] for execution in await executions(system, "overdue")] == ["timeout"]
    assert await executions(system, "overdue-effect") == []


async def test_many_chains_at_once_all_end(system: System) -> None:
    """As many callers as a tenant may run at a time, each of which needs eight more places."""
    source = """export default async (left, ctx) => {
      await new Promise((done) => setTimeout(done, 20));
      return left === 0 ? 0 : 1 + await ctx.invoke('chain', left - 1);
    }"""
    await deploy(system, "chain", source)
    outputs = await asyncio.gather(*(system.invoke("chain", 8) for _ in range(64)))
    assert [output for output, _ in outputs] == [8] * 64
