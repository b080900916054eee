"""A tenant has 64 calls running and 256 waiting; more are sent away, and other tenants notice nothing."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from neolayer_enclave.protocol import Result, Statistics, Stats
from tests.enclave_process.host import Host, Process, Refusal, output

ASK = "export default async (input, ctx) => ctx.neo.read(input)"


class Gate:
    """A host function that answers once it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.asked: list[int] = []

    async def __call__(self, name: str, argument: Any) -> Any:
        self.asked.append(argument)
        await self.opened.wait()
        return argument


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while True:
            met = condition()
            if met is True or (not isinstance(met, bool) and await met):
                return
            await asyncio.sleep(0.01)


def start(host: Host, bundle: str, numbers: range, gate: Gate, **options: Any) -> list[asyncio.Task[Result]]:
    return [asyncio.ensure_future(host.invoke(bundle, n, host=gate, **options)) for n in numbers]


async def test_calls_beyond_64_wait_in_order_and_those_beyond_256_more_are_refused(
    own_enclave: Process, own_host: Host
) -> None:
    gate = Gate()
    bundle = await own_host.load(ASK)
    calls = start(own_host, bundle, range(64 + 256), gate)
    await until(lambda: len(gate.asked) == 64)
    with pytest.raises(Refusal) as refusal:
        await own_host.invoke(bundle, 1, host=gate)
    assert (refusal.value.code, refusal.value.failure.retryable) == ("too_many_calls", True)
    neighbour = await own_host.load("export default (input) => input", tenant="bob")
    assert output(await own_host.invoke(neighbour, 7)) == 7
    assert gate.asked == list(range(64))
    gate.opened.set()
    results = await asyncio.gather(*calls)
    assert [output(result) for result in results] == list(range(64 + 256))
    assert gate.asked == list(range(64 + 256))
    assert all(result.queue_us < 1_000 for result in results[:64])
    assert all(result.queue_us > 1_000 for result in results[64:])


async def test_who_waits_too_long_is_sent_away_while_the_others_run_on(own_host: Host) -> None:
    gate = Gate()
    bundle = await own_host.load(ASK, timeout_ms=30_000)
    running = start(own_host, bundle, range(64), gate)
    await until(lambda: len(gate.asked) == 64)
    with pytest.raises(Refusal) as refusal:
        await asyncio.wait_for(own_host.invoke(bundle, 64, host=gate), 8)
    assert refusal.value.code == "too_many_calls"
    gate.opened.set()
    assert [output(result) for result in await asyncio.gather(*running)] == list(range(64))


async def test_calls_made_by_running_functions_do_not_wait_behind_them(own_host: Host) -> None:
    gate = Gate()
    bundle = await own_host.load(ASK)
    running = start(own_host, bundle, range(64), gate)
    await until(lambda: len(gate.asked) == 64)
    echo = await own_host.load("export default (input) => input")
    assert output(await own_host.invoke(echo, "nested", depth=1)) == "nested"
    gate.opened.set()
    await asyncio.gather(*running)


async def test_waiting_calls_are_run_by_the_cell_that_replaces_a_dead_one(
    own_enclave: Process, own_host: Host
) -> None:
    gate = Gate()
    bundle = await own_host.load(ASK)
    calls = start(own_host, bundle, range(70), gate)
    await until(lambda: len(gate.asked) == 64)
    (cell,) = own_enclave.cells()
    os.kill(cell, signal.SIGKILL)
    await until(lambda: len(gate.asked) == 70)
    gate.opened.set()
    results = await asyncio.gather(*calls)
    assert {result.error.code for result in results[:64] if result.error} == {"cell_crashed"}
    assert [output(result) for result in results[64:]] == list(range(64, 70))


async def test_a_waiting_call_whose_host_left_is_never_run(own_enclave: Process, own_host: Host) -> None:
    gate = Gate()
    bundle = await own_host.load(ASK)
    leaving = await Host.connect(own_enclave)
    running = start(own_host, bundle, range(64), gate)
    await until(lambda: len(gate.asked) == 64)
    waiting = start(leaving, bundle, range(100, 110), gate)
    await asyncio.sleep(0.1)
    await leaving.close()
    gate.opened.set()
    await asyncio.gather(*running)

    async def nothing_runs() -> bool:
        return (await own_host.ask(Stats(), Statistics)).running == 0

    await until(nothing_runs)
    assert max(gate.asked) == 63
    for call in waiting:
        call.cancel()
