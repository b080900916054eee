"""Calls past the enclave: the same answers under the same limits."""

import asyncio
import time
from typing import Any

import pytest
import uvloop
from aiohttp import web

from neolayer.enclave import (
    EnclaveRefused,
)
from tests.enclave.caller import ASK, ECHO, Caller, Gate, echo_host, stopped, until
from tests.enclave_process.host import Process, is_direct, logs, output


async def test_a_warm_call_is_answered_while_the_enclave_stands_still(own_enclave: Process, own: Caller) -> None:
    bundle = await own.warm(ASK)
    with stopped(own_enclave.process.pid):
        for n in range(20):
            assert output(await asyncio.wait_for(own.call(bundle, n, echo_host), 5)) == ["neo.read", n]
    assert output(await own.call(await own.load(ECHO), "after")) == "after"


async def test_without_direct_calls_every_call_passes_the_enclave(own_enclave: Process) -> None:
    caller = Caller(own_enclave, direct=False)
    bundle = await caller.load(ECHO)
    for n in range(5):
        assert output(await caller.call(bundle, n)) == n
    assert not caller.client.cells
    with stopped(own_enclave.process.pid):
        call = asyncio.ensure_future(caller.call(bundle, 1))
        await asyncio.sleep(0.3)
        assert not call.done()
    assert output(await call) == 1
    await caller.client.close()


@pytest.mark.parametrize(
    ("source", "input"),
    [
        (ECHO, {"text": "ü€😀", "list": [1, None, 2.5]}),
        (ECHO, None),
        ("export default () => { throw new TypeError('no') }", 1),
        ("export default () => { console.log('a', [1]); console.error('b\\n'); return 'ü' }", 1),
        ("export default () => 10n", 1),
        ("export default () => 'x'.repeat(1_100_000)", 1),
        ("export default async (i, ctx) => [await ctx.neo.read([i]), await ctx.neo.wallet('w')]", 5),
        ("export default async (i, ctx) => [await ctx.neo.send({ i }), await ctx.invoke('other', { i })]", 6),
        ("export default (i, ctx) => ctx.neo.read('refuse').catch((e) => [e.code, e.message])", 1),
        ("const sum = (i) => crypto.subtle.digest('SHA-256', new Uint8Array(i));"
         "export default async (i) => [...new Uint8Array(await sum(i))]", 99),
        ("const sum = (i) => crypto.subtle.digest('SHA-256', new Uint8Array(i));"
         "export default async (i) => [...new Uint8Array(await sum(i))]", 200_000),
        ("export default async (i, ctx) => [ctx.executionId, ctx.secrets.NONE]", 1),
        ("export default () => { for (;;); }", 1),
        ("export default () => new Promise(() => {})", 1),
        ("export default () => { const kept = []; for (;;) kept.push(new Array(500_000).fill(kept.length)) }", 1),
        ("export default () => { const f = () => f(); f() }", 1),
    ],
)  # fmt: skip
async def test_answers_are_those_of_calls_through_the_enclave(
    process: Process, caller: Caller, source: str, input: Any
) -> None:
    async def host(name: str, argument: bytes) -> bytes:
        if argument == b'"refuse"':
            raise EnclaveRefused("refused", "not that", retryable=False)
        return await echo_host(name, argument)

    through = Caller(process, direct=False)
    told = []
    for each in (through, caller):
        bundle = await each.warm(source, cpu_ms=200, timeout_ms=500, memory_mb=32) if each is caller else None
        if bundle is None:
            bundle = await each.load(source, cpu_ms=200, timeout_ms=500, memory_mb=32)
            await each.client.warm(bundle)
        else:
            assert is_direct(caller.client, "alice")
        result = await each.call(bundle, input, host)
        error = result.error and (
            result.error.code,
            result.error.message,
            result.error.stack,
            result.error.retryable,
        )
        told.append((result.output, error, logs(result), result.cold, result.fetches))
    assert told[0] == told[1]
    assert told[0][3] is False
    await through.client.close()


async def test_what_a_direct_call_fetches_passes_the_enclave_and_its_rules(caller: Caller) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=await request.read() + b" back")

    server = web.Server(handle)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    bundle = await caller.warm(
        "export default async (input) => { const back = await fetch(input, { method: 'POST', body: 'there and' });"
        "return await back.text() }",
        egress=(f"http://127.0.0.1:{port}",),
    )
    result = await caller.call(bundle, f"http://127.0.0.1:{port}/")
    assert (output(result), result.fetches, result.cold) == ("there and back", 1, False)
    refused = await caller.call(bundle, "http://127.0.0.1:1/")
    assert refused.error
    assert refused.error.code == "function_error"
    assert is_direct(caller.client, "alice")
    await runner.cleanup()


async def test_a_call_that_waits_for_longer_than_a_silent_cell_may_is_answered(own: Caller) -> None:
    bundle = await own.warm(
        "export default () => new Promise((done) => setTimeout(done, 10_800, 1))", timeout_ms=20_000
    )
    assert output(await own.call(bundle, timeout_ms=20_000)) == 1
    statistics = await own.client.stats()
    assert (statistics.cells_started, statistics.cells_crashed) == (1, 0)


async def test_direct_calls_are_counted_when_they_begin(own: Caller) -> None:
    bundle = await own.warm(ASK)
    before = (await own.client.stats()).loads
    gate = Gate()
    calls = [asyncio.ensure_future(own.call(bundle, n, gate)) for n in range(64 + 256 + 10)]
    await until(lambda: sum(call.done() for call in calls) == 10)
    gate.opened.set()
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(0.3)
    after = await own.client.stats()
    assert after.loads.warm_starts - before.warm_starts == 64 + 256
    assert after.loads.cold_starts == before.cold_starts
    assert (after.isolates, after.running) == (2, 0)


async def test_64_run_256_wait_in_order_and_the_rest_is_refused(caller: Caller) -> None:
    gate = Gate()
    bundle = await caller.warm(ASK)
    neighbour = await caller.warm(ECHO, tenant="bob")
    calls = [asyncio.ensure_future(caller.call(bundle, n, gate)) for n in range(64 + 256)]
    await until(lambda: len(gate.asked) == 64)
    with pytest.raises(EnclaveRefused) as refusal:
        await caller.call(bundle, 1, gate)
    assert (refusal.value.code, refusal.value.retryable) == ("too_many_calls", True)
    assert output(await caller.call(bundle, 1, echo_host, depth=1)) == ["neo.read", 1]
    assert output(await caller.call(neighbour, 7)) == 7
    assert gate.asked == list(range(64))
    gate.opened.set()
    results = await asyncio.gather(*calls)
    assert [output(result) for result in results] == list(range(64 + 256))
    assert gate.asked == list(range(64 + 256))
    assert all(result.queue_us > 1_000 for result in results[64:])


async def test_who_waits_too_long_or_with_too_much_is_sent_away(caller: Caller) -> None:
    gate = Gate()
    bundle = await caller.warm(ASK, timeout_ms=30_000)
    running = [asyncio.ensure_future(caller.call(bundle, n, gate)) for n in range(64)]
    await until(lambda: len(gate.asked) == 64)
    begun = time.monotonic()
    large = [asyncio.ensure_future(caller.call(bundle, "x" * 900_000, gate)) for _ in range(50)]
    refused = await asyncio.gather(*large, return_exceptions=True)
    assert all(isinstance(error, EnclaveRefused) and error.code == "too_many_calls" for error in refused)
    # Those beyond 32 MB at once, the others after 5 s.
    assert sum("are waiting" in str(error) for error in refused) in range(8, 20)
    assert 4.9 < time.monotonic() - begun < 7
    gate.opened.set()
    assert [output(result) for result in await asyncio.gather(*running)] == list(range(64))


async def test_an_input_beyond_the_limit_is_refused(caller: Caller) -> None:
    bundle = await caller.warm(ECHO)
    with pytest.raises(EnclaveRefused) as refusal:
        await caller.call(bundle, "x" * 1_048_576)
    assert refusal.value.code == "input_too_large"
    assert output(await caller.call(bundle, "x" * 1_000_000)) == "x" * 1_000_000


@pytest.mark.parametrize("busy_poll", [False, True])
def test_polling_neither_reorders_nor_stalls_what_else_is_done(
    tmp_path_factory: pytest.TempPathFactory, busy_poll: bool
) -> None:
    async def check() -> None:
        process = await Process.start(tmp_path_factory.mktemp("polls"), "--spare", "0")
        caller = Caller(process, busy_poll=busy_poll)
        bundle = await caller.warm(ASK)
        slow = await caller.warm("export default (i) => new Promise((done) => setTimeout(done, 30, i))")
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.ensure_future(turn())
        # Alone, where polling is tried, then many at once; each one's host calls are served between.
        for n in range(300):
            assert output(await caller.call(bundle, n, echo_host)) == ["neo.read", n]
        for n in range(10):
            before = turns
            assert output(await caller.call(slow, n)) == n
            assert turns - before > 50
        order: list[int] = []

        async def one(n: int) -> None:
            assert output(await caller.call(bundle, n, echo_host)) == ["neo.read", n]
            order.append(n)

        await asyncio.gather(*(one(n) for n in range(60)))
        assert order == list(range(60))
        turning.cancel()
        await caller.client.close()
        await process.stop()

    uvloop.run(check())
