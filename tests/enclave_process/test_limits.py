"""Programs that pass a limit: each ends, with its code, and nothing else does."""

import asyncio
import os
import signal
import time
from typing import Any
from uuid import UUID

import pytest

from neolayer_enclave.protocol import Check, Checked, Statistics, Stats
from tests.enclave_process.host import Host, Process, Refusal, logs, output

CANARY = "export default (input) => input"


async def answer(name: str, argument: Any) -> Any:
    return {}


def wait(ms: int) -> str:
    return f"await new Promise((resolve) => setTimeout(resolve, {ms}));"


@pytest.mark.parametrize(
    "body",
    [
        "for (;;);",
        "await ctx.neo.read({}); for (;;);",
        f"{wait(1)} for (;;);",
        "await null; for (;;);",
        "const again = () => Promise.resolve().then(again); await again();",
        "queueMicrotask(function again() { queueMicrotask(again) }); await new Promise(() => {});",
        "return { toJSON() { for (;;); } };",
        "return { get a() { for (;;); } };",
        "throw { get message() { for (;;); } };",
        "/^(a+)+$/.test('a'.repeat(40) + 'b');",
        "return { then(resolve) { for (;;); } };",
        "console.log(new Proxy({}, { ownKeys() { for (;;); } }));",
        "setTimeout(() => { for (;;); }, 1); await new Promise(() => {});",
        "try { for (;;); } finally { for (;;); }",
        "let text = 'x'; for (;;) { try { JSON.parse(text) } catch {} }",
    ],
)
async def test_a_program_that_runs_on_ends_at_its_cpu_limit(host: Host, body: str) -> None:
    bundle = await host.load(
        f"export default async (input, ctx) => {{ if (!input) return 'ready'; console.log('begun'); {body} }}",
        cpu_ms=200,
        timeout_ms=5_000,
    )
    # Once when the function is entered on a thread of its own, once on the cell's main thread.
    for warm in (0, 15):
        for _ in range(warm):
            assert output(await host.invoke(bundle)) == "ready"
        begun = time.monotonic()
        result = await host.invoke(bundle, 1, host=answer)
        assert result.error is not None
        if ("ctx.neo" in body or "setTimeout" in body) and result.error.code == "cell_crashed":
            # A busy machine: what has asked for something is not begun again when it must leave the main thread.
            assert "too busy" in result.error.message
            assert result.cpu_us < 200_000
        else:
            assert result.error.code == "cpu_limit"
            assert result.cpu_us >= 190_000
        # But for the time in which others had the processors.
        assert time.monotonic() - begun < 0.7 + (result.wall_us - result.cpu_us) / 1e6
        assert logs(result)[0] == "begun"
    assert output(await host.invoke(bundle)) == "ready"


@pytest.mark.parametrize(
    "body",
    [
        "await new Promise(() => {});",
        "setInterval(() => {}, 1); await new Promise(() => {});",
        "await ctx.neo.read({});",
        "for (;;) await new Promise((resolve) => setTimeout(resolve, 5));",
        "await { then() {} };",
        "for (let i = 0; i < 10000; i++) new Promise(() => {}); await new Promise(() => {});",
    ],
)
async def test_a_call_that_waits_for_ever_ends_at_its_time_limit(either_host: Host, body: str) -> None:
    async def never(name: str, argument: Any) -> Any:
        await asyncio.sleep(60)

    begun = time.monotonic()
    source = f"export default async (input, ctx) => {{ console.log('begun'); {body} }}"
    result = await either_host.run(source, timeout_ms=300, host=never)
    assert result.error is not None
    assert (result.error.code, result.error.message) == ("timeout", "the call took longer than 300 ms")
    assert 0.3 <= time.monotonic() - begun < 0.9
    assert logs(result) == ["begun"]


async def test_a_call_ends_at_its_callers_limit_where_that_is_less(host: Host) -> None:
    bundle = await host.load("export default () => new Promise(() => {})", timeout_ms=600)
    for given, limit in ((300, 300), (20_000, 600), (0, 600)):
        begun = time.monotonic()
        error = (await host.invoke(bundle, depth=1, timeout_ms=given)).error
        assert error is not None
        assert (error.code, error.message) == ("timeout", f"the call took longer than {limit} ms")
        assert limit / 1000 <= time.monotonic() - begun < limit / 1000 + 0.5


async def test_a_cell_that_stands_still_is_ended_at_the_callers_limit(
    own_enclave: Process, own_host: Host
) -> None:
    bundle = await own_host.load(CANARY)
    assert output(await own_host.invoke(bundle, 1)) == 1
    os.kill(own_enclave.cells()[0], signal.SIGSTOP)
    error = (await asyncio.wait_for(own_host.invoke(bundle, 2, depth=1, timeout_ms=300), 2)).error
    assert error is not None
    assert (error.code, error.message) == ("timeout", "the call took longer than 300 ms")


async def test_cpu_time_counts_across_waits(either_host: Host) -> None:
    spin = "const end = Date.now() + 60; while (Date.now() < end);"
    source = f"export default async () => {{ for (let i = 0; i < 20; i++) {{ {spin} {wait(1)} }} }}"
    result = await either_host.run(source, cpu_ms=300)
    assert result.error is not None
    assert result.error.code == "cpu_limit"
    fine = await either_host.run(source.replace("20", "2"), cpu_ms=1000)
    assert fine.error is None
    assert 60_000 < fine.cpu_us < 400_000


async def test_waiting_costs_no_cpu_time(either_host: Host) -> None:
    result = await either_host.run(f"export default async () => {{ {wait(400)} }}", cpu_ms=100)
    assert result.error is None
    assert result.wall_us > 390_000
    assert result.cpu_us < 100_000


@pytest.mark.parametrize(
    "body",
    [
        "const kept = []; for (;;) kept.push('x'.repeat(1000) + kept.length);",
        "const kept = []; for (;;) kept.push(new Uint8Array(1_000_000).fill(1));",
        "const kept = new Map(); for (let i = 0; ; i++) kept.set(i, [i]);",
        "let text = 'x'; for (;;) text = (text + text).replace(/y/, '');",
        "new Uint8Array(900_000_000).fill(1); for (;;);",
        "const o = {}; for (let i = 0; ; i++) o['a' + i] = new Array(100).fill(i);",
        "return 'x'.repeat(2 ** 29 - 24).split('');",
    ],
)
async def test_a_program_that_eats_memory_ends_and_its_neighbours_do_not_notice(host: Host, body: str) -> None:
    tenant = "glutton"
    canary = await host.load(CANARY, tenant="neighbour")
    await host.invoke(canary, 0)
    bundle = await host.load(
        f"export default (input) => {{ if (input) return input; {body} }}",
        tenant=tenant,
        memory_mb=32,
        cpu_ms=5_000,
    )
    bomb = asyncio.ensure_future(host.invoke(bundle))
    answered, slowest = 0, 0.0
    while not bomb.done():
        begun = time.monotonic()
        assert output(await host.invoke(canary, answered)) == answered
        slowest = max(slowest, time.monotonic() - begun)
        answered += 1
        await asyncio.sleep(0.005)
    result = await bomb
    # An ArrayBuffer or string that V8 refuses to make is the author's to catch.
    if result.error is None or result.error.code == "function_error":
        assert result.error is not None
        assert "RangeError" in result.error.message
    else:
        assert result.error.code in ("memory_limit", "cpu_limit")
        assert not result.error.retryable
    assert answered > 0
    assert slowest < 1.0
    assert output(await host.invoke(bundle, 7)) == 7


async def test_a_catastrophe_kills_only_its_tenants_cell(own_host: Host) -> None:
    """Growth of a dictionary's table is one allocation: V8 gives up on the process, whatever the limit says."""
    body = "const o = {}; for (let i = 0; ; i++) o['a' + i] = i;"
    canary = await own_host.load(CANARY, tenant="neighbour")
    await own_host.invoke(canary, 0)
    bomb = await own_host.load(
        f"export default (input) => {{ if (input) return input; {body} }}", memory_mb=16, cpu_ms=10_000
    )
    waiting = await own_host.load("export default async (i, ctx) => { await ctx.neo.read({}); return 1 }")
    sending = await own_host.load("export default async (i, ctx) => { await ctx.neo.send({}); return 1 }")

    async def slow(name: str, argument: Any) -> Any:
        await asyncio.sleep(20)

    bystanders = [asyncio.ensure_future(own_host.invoke(each, host=slow)) for each in (waiting, sending)]
    await asyncio.sleep(0.3)
    for warm in (False, True):
        if warm:
            for _ in range(15):
                assert output(await own_host.invoke(bomb, 1)) == 1
        result = await own_host.invoke(bomb)
        assert result.error is not None
        assert (result.error.code, result.error.retryable) == ("memory_limit", False)
    assert output(await own_host.invoke(canary, 1)) == 1
    assert (await own_host.ask(Stats(), Statistics)).cells_crashed == 2
    read, send = [(await call).error for call in bystanders]
    assert read is not None
    assert (read.code, read.retryable) == ("cell_crashed", True)
    assert send is not None
    assert (send.code, send.retryable) == ("cell_crashed", False)


async def test_other_calls_of_a_function_whose_isolate_ends_may_be_repeated(either_host: Host) -> None:
    source = "export default async (input, ctx) => { if (input) for (;;); await ctx.neo.read({}); return 1 }"
    bundle = await either_host.load(source, cpu_ms=200)
    asked = asyncio.Event()

    async def slow(name: str, argument: Any) -> Any:
        asked.set()
        await asyncio.sleep(20)

    patient = asyncio.ensure_future(either_host.invoke(bundle, host=slow))
    await asked.wait()
    culprit = await either_host.invoke(bundle, 1)
    assert culprit.error is not None
    assert culprit.error.code == "cpu_limit"
    other = (await patient).error
    assert other is not None
    assert (other.code, other.retryable) == ("cell_crashed", True)


async def test_a_call_that_times_out_leaves_the_others_alone(either_host: Host) -> None:
    source = """export default async (input) => {
      await new Promise((resolve) => setTimeout(resolve, input));
      return input;
    }"""
    bundle = await either_host.load(source, timeout_ms=400)
    results = await asyncio.gather(*(either_host.invoke(bundle, ms) for ms in (5_000, 300, 350)))
    assert results[0].error is not None
    assert results[0].error.code == "timeout"
    assert [output(result) for result in results[1:]] == [300, 350]
    assert output(await either_host.invoke(bundle, 1)) == 1


async def test_deep_recursion_is_the_authors_error(host: Host) -> None:
    bundle = await host.load("export default (input) => { if (input) return 1; const f = () => f() + 1; f() }")
    result = await host.invoke(bundle)
    assert result.error is not None
    assert "Maximum call stack" in result.error.message
    assert output(await host.invoke(bundle, 1)) == 1


async def test_what_a_call_asks_for_at_once_is_bounded(either_host: Host) -> None:
    endless = "export default () => { for (;;) clearTimeout(setTimeout(() => {}, 1)) }"
    result = await either_host.run(endless)
    assert result.error is not None
    assert "too much is asked for at once" in result.error.message
    timers = await either_host.run("export default () => { for (;;) setTimeout(() => {}, 1) }")
    assert timers.error is not None
    assert "1000 timers" in timers.error.message

    async def never(name: str, argument: Any) -> Any:
        await asyncio.sleep(60)

    source = """export default async (input, ctx) => {
      const codes = [];
      const note = (error) => codes.push(error.code);
      ctx.neo.read('x'.repeat(1048577)).catch(note);
      for (let i = 0; i < 1001; i++) ctx.neo.read(i).catch(note);
      await null; await null;
      return codes;
    }"""
    assert output(await either_host.run(source, host=never)) == ["invalid_request", "too_many_calls"]


async def test_a_check_runs_under_limits_too(host: Host) -> None:
    for source in (
        "for (;;); export default () => 1",
        "const o = []; for (;;) o.push('x'.repeat(1000) + o.length); export default () => 1",
    ):
        begun = time.monotonic()
        with pytest.raises(Refusal) as refusal:
            await host.ask(Check("alice", source), Checked)
        assert refusal.value.code == "invalid_function"
        assert time.monotonic() - begun < 3
    await host.ask(Check("alice", CANARY), Checked)


@pytest.mark.parametrize(
    "tampering",
    [
        "Object.prototype.toJSON = () => 'forged';",
        "Array.prototype.push = String.prototype.slice = String.prototype.indexOf = () => { throw 1 };",
        "Promise.prototype.then = () => { throw 1 };",
        "JSON.parse = JSON.stringify = () => 'forged';",
        "Map.prototype.get = Map.prototype.set = Map.prototype.delete = () => { throw 1 };",
        "Function.prototype.call = Function.prototype.apply = Function.prototype.bind = () => { throw 1 };",
        "Reflect.apply = Object.freeze = Date.now = Math.floor = () => { throw 1 };",
        "globalThis.Promise = globalThis.Map = globalThis.JSON = globalThis.Error = globalThis.Reflect = null;",
        "Array.prototype[Symbol.iterator] = function* () { throw 1 };",
        "for (const k of ['id', 'pending', 'over', 'kind', 'resolve', 'get', 'set', 'code', 'logs', '0'])"
        " Object.defineProperty(Object.prototype, k, { set() { throw 1 }, get() { throw 1 } });",
        "Object.defineProperty(Promise.prototype, 'constructor', { get() { throw 1 } });",
        "Error.prepareStackTrace = () => { throw 1 }; Error.stackTraceLimit = 0;",
        "globalThis.console = null; globalThis.setTimeout = null; delete globalThis.fetch;",
        "String.prototype[Symbol.split] = String.prototype[Symbol.iterator] = () => { throw 1 };",
    ],
)
async def test_tampering_with_built_ins_harms_no_later_call(host: Host, tampering: str) -> None:
    """The function shares its realm with our bootstrap, which must not notice."""
    asked: list[Any] = []

    async def echo(name: str, argument: Any) -> Any:
        asked.append(argument)
        return argument

    source = f"""export default async (input, ctx) => {{
      if (input === 'tamper') {{ {tampering} return 'tampered' }}
      return await ctx.neo.read('question ' + input) + ' ' + ctx.secrets.S;
    }}"""
    bundle = await host.load(source, secrets={"S": "s"}, timeout_ms=2_000)
    before = output(await host.invoke(bundle, "1", host=echo))
    assert before == "question 1 s"
    first = await host.invoke(bundle, "tamper")
    # Its own result may suffer; a forged JSON of its own value is its own business.
    assert first.error is None or first.error.code in ("function_error", "invalid_output", "timeout")
    later = await host.invoke(bundle, "2", host=echo)
    if "Promise.prototype, 'constructor'" in tampering:
        # `await` itself reads it.
        assert later.error is not None
    else:
        assert output(later) == "question 2 s"
    assert all(isinstance(each, str) and each.startswith("question") for each in asked)
    other = await host.load(source, secrets={"S": "other"})
    assert output(await host.invoke(other, "3", host=echo)) == "question 3 other"


@pytest.mark.parametrize(
    "expression",
    [
        "typeof WebAssembly",
        "typeof SharedArrayBuffer",
        "typeof Atomics",
        "typeof require",
        "typeof process",
        "typeof global",
        "typeof $0",
        "typeof module",
        "typeof Buffer",
        "typeof gc",
        "typeof streamLog",
        "typeof (() => {}).constructor('return this')().process",
        "typeof console.log.constructor('return this')().require",
        "typeof ctx.neo.read.constructor('return this')().process",
        "typeof fetch.constructor('return this')().ivm",
    ],
)
async def test_nothing_of_the_process_is_in_reach(host: Host, expression: str) -> None:
    assert output(await host.run(f"export default (input, ctx) => {expression}")) == "undefined"


async def test_a_hundred_calls_at_once_keep_their_answers_apart(either_host: Host) -> None:
    async def echo(name: str, argument: Any) -> Any:
        await asyncio.sleep(argument % 7 / 1000)
        return argument

    source = """export default async (input, ctx) => {
      console.log(input);
      const [a, b] = await Promise.all([ctx.neo.read(input), ctx.neo.read(input)]);
      console.log(input);
      return [a, b, ctx.executionId];
    }"""
    bundle = await either_host.load(source)
    calls = [either_host.invoke(bundle, n, execution=UUID(int=n), host=echo) for n in range(100)]
    for n, result in enumerate(await asyncio.gather(*calls)):
        assert output(result) == [n, n, str(UUID(int=n))]
        assert logs(result) == [str(n), str(n)]
