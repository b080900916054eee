"""Isolation "call": a world of its own for each call, and none of it left behind."""

import asyncio
from typing import Any

import pytest

from neolayer_enclave.protocol import Statistics, Stats
from tests.enclave_process.host import Host, Process, logs, output, rss_bytes


async def answer(name: str, argument: Any) -> Any:
    await asyncio.sleep(0.02)
    return argument


@pytest.mark.parametrize(
    ("leave", "look"),
    [
        ("globalThis.seen = 1", "typeof globalThis.seen"),
        ("state.push(1)", "state.length"),
        ("Object.prototype.polluted = 1", "typeof ({}).polluted"),
        ("Array.prototype.map = () => 'mine'", "[1].map(String)"),
        ("JSON.parse = () => 'mine'", "JSON.parse('[1]')"),
        ("Promise.prototype.then = undefined", "typeof Promise.prototype.then"),
        ("console.log = undefined", "typeof console.log"),
        ("delete globalThis.fetch", "typeof fetch"),
        ("fetch.kept = 1", "typeof fetch.kept"),
        ("Symbol.for('shared').constructor.kept = 1", "typeof Symbol.kept"),
        ("setTimeout(() => { globalThis.late = 1 }, 5)", "await wait(30), typeof globalThis.late"),
        ("new Promise((resolve) => { globalThis.resolve = resolve })", "typeof globalThis.resolve"),
        ("ctx.neo.read({}).then(() => { globalThis.answered = 1 })", "await wait(50), typeof globalThis.answered"),
        ("/(secret)/.test('secret')", "RegExp.$1"),
        ("Error.prepareStackTrace = () => 'mine'", "typeof new Error('x').stack"),
        ("Error.stackTraceLimit = 0", "Error.stackTraceLimit"),
    ],
)
async def test_nothing_of_a_call_is_visible_to_the_next(host: Host, leave: str, look: str) -> None:
    source = f"""
      const state = [];
      const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
      export default async (input, ctx) => {{
        if (input === 'leave') {{ {leave}; return 'left' }}
        return ({look});
      }}"""
    bundle = await host.load(source, isolation="call")
    untouched = output(await host.invoke(bundle, "look", host=answer))
    for _ in range(3):
        assert output(await host.invoke(bundle, "leave", host=answer)) == "left"
        assert output(await host.invoke(bundle, "look", host=answer)) == untouched


async def test_calls_at_the_same_time_have_worlds_of_their_own(host: Host) -> None:
    source = """
      let mine = null;
      export default async (input, ctx) => {
        if (mine !== null) throw new Error('somebody was here');
        mine = input;
        console.log(`before ${input}`);
        const answer = await ctx.neo.read({ n: input });
        await new Promise((resolve) => setTimeout(resolve, answer.n % 5));
        console.log(`after ${mine}`);
        return mine;
      }"""
    bundle = await host.load(source, isolation="call")
    results = await asyncio.gather(*(host.invoke(bundle, n, host=answer) for n in range(40)))
    assert [output(result) for result in results] == list(range(40))
    assert [logs(result) for result in results] == [[f"before {n}", f"after {n}"] for n in range(40)]


async def test_the_next_world_is_made_while_nothing_runs(host: Host) -> None:
    bundle = await host.load("const born = Date.now(); export default () => Date.now() - born", isolation="call")
    first = await host.invoke(bundle)
    assert first.cold
    for _ in range(3):
        await asyncio.sleep(0.25)
        result = await host.invoke(bundle)
        assert not result.cold
        assert output(result) >= 150


async def test_what_the_top_level_logs_comes_with_every_call(host: Host) -> None:
    bundle = await host.load("console.log('loaded'); export default () => console.log('called')", isolation="call")
    for _ in range(3):
        assert logs(await host.invoke(bundle)) == ["loaded", "called"]


async def test_a_top_level_that_fails_only_now_and_then_fails_only_those_calls(host: Host) -> None:
    # The realms of an isolate share nothing that a test could count with, but the time.
    source = "if (Date.now() % 2) throw new Error('odd'); export default () => 'even'"
    bundle = await host.load(source, isolation="call")
    seen = set()
    for _ in range(60):
        result = await host.invoke(bundle)
        seen.add(result.error.message if result.error else output(result))
        if result.error:
            assert result.error.code == "invalid_function"
    assert seen == {"odd", "even"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("for (;;);", "cpu_limit"),
        ("await new Promise(() => {})", "timeout"),
        ("const kept = []; for (;;) kept.push(new Array(1e5).fill(kept.length))", "memory_limit"),
        ("throw new Error('no')", "function_error"),
    ],
)
async def test_calls_after_one_that_passed_a_limit_are_served(host: Host, body: str, code: str) -> None:
    source = f"export default async (input) => {{ if (input) {{ {body} }} return 'well' }}"
    bundle = await host.load(source, isolation="call", cpu_ms=200, timeout_ms=400, memory_mb=32)
    for _ in range(2):
        assert output(await host.invoke(bundle)) == "well"
        error = (await host.invoke(bundle, 1)).error
        assert error is not None
        assert error.code == code
    assert output(await host.invoke(bundle)) == "well"


async def test_a_top_level_that_does_not_end_is_stopped_at_the_calls_expense(host: Host) -> None:
    source = "let n = 0; if (Date.now() > %d) for (;;) n++; export default () => n"
    result = await host.run(source % 0, isolation="call", cpu_ms=100)
    assert result.error is not None
    assert result.error.code == "cpu_limit"


@pytest.mark.parametrize("isolation", ["version", "call"])
async def test_a_cell_does_not_grow_with_its_calls(own_enclave: Process, own_host: Host, isolation: Any) -> None:
    source = """
      const kept = new Map();
      export default async (input, ctx) => {
        kept.set('last', new Uint8Array(20_000).fill(input));
        console.log('line', input);
        setTimeout(() => {}, 60_000);
        new Promise(() => {});
        return { read: await ctx.neo.read({ n: input }), size: kept.size };
      }"""

    async def at_once(name: str, argument: Any) -> Any:
        return argument

    bundle = await own_host.load(source, isolation=isolation)
    sizes = []
    for _ in range(4):
        for n in range(50):
            calls = (own_host.invoke(bundle, 8 * n + i, host=at_once) for i in range(8))
            for result in await asyncio.gather(*calls):
                assert output(result)["size"] == 1
        (cell,) = own_enclave.cells()
        sizes.append(rss_bytes(cell) >> 20)
    # A context that stays costs half a megabyte: 400 of them could not be missed.
    assert sizes[3] - sizes[1] < 40, sizes


async def test_an_isolate_that_holds_much_is_replaced_between_calls(own_enclave: Process, own_host: Host) -> None:
    source = "const kept = []; export default (n) => { kept.push(new Array(n).fill(1.5)); return kept.length }"
    bundle = await own_host.load(source, memory_mb=32)
    counts, cold = [], 0
    for _ in range(120):
        result = await own_host.invoke(bundle, 60_000)
        counts.append(output(result))
        cold += result.cold
        await asyncio.sleep(0.012)
    # Its memory would have been full after about 65 calls.
    assert counts.count(1) >= 2
    assert cold == 1
    statistics = await own_host.ask(Stats(), Statistics)
    assert statistics.loads.worn >= 1
    assert statistics.loads.cold_starts == 1
    assert statistics.cells_crashed == 0
