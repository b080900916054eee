"""Calls on a cell's main thread, where wall time ends an entry: what is ended, what is begun again, who waits."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest

from neolayer_enclave.protocol import Result
from tests.enclave_process.host import Host, Process, logs, output

type Isolation = Literal["version", "call"]

#: Past a limit; seconds.
SLACK_S = 0.5
#: Quick calls, after which a function is entered on the main thread.
QUICK_CALLS = 15
#: `burn(n)` takes CPU time in proportion to n, and nothing else.
BURN = "const burn = (n) => { let x = 1; for (let i = 0; i < n; i++) x = (x * 48271) % 2147483647; return x };"


async def answer(name: str, argument: Any) -> Any:
    return 1


async def never(name: str, argument: Any) -> Any:
    await asyncio.sleep(60)


async def quick(host: Host, body: str, *, isolation: Isolation = "version", **limits: int) -> str:
    """A function that has been quick and runs ``body`` when it gets an input."""
    source = f"{BURN} let calls = 0; export default async (input, ctx) => {{ calls++; if (input) {{ {body} }} }}"
    bundle = await host.load(source, isolation=isolation, **limits)
    for _ in range(QUICK_CALLS):
        assert output(await host.invoke(bundle)) is None
    return bundle


async def iterations(host: Host, cpu_ms: int) -> int:
    """How far `burn` counts in that CPU time."""
    bundle = await host.load(f"{BURN} export default (n) => burn(n)", cpu_ms=10_000)
    n = 20_000_000
    await host.invoke(bundle, n)
    return int(n * cpu_ms * 1000 / (await host.invoke(bundle, n)).cpu_us)


@contextmanager
def busy_machine() -> Iterator[None]:
    """Twice as many processes that compute as there are processors."""
    spinners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


async def interrupted(enclave: Process, call: "asyncio.Future[Result]", for_s: float) -> Result:
    """The call, whose cell gets no processor for some time."""
    await asyncio.sleep(0.1)
    (cell,) = enclave.cells()
    os.kill(cell, signal.SIGSTOP)
    await asyncio.sleep(for_s)
    os.kill(cell, signal.SIGCONT)
    return await call


@pytest.mark.parametrize("cpu_ms", [400, 1_000, 2_000])
@pytest.mark.parametrize("body", ["for (;;);", "await ctx.neo.read({}); for (;;);"], ids=["loop", "later loop"])
async def test_a_quick_function_that_turns_hostile_ends_at_its_limit(host: Host, body: str, cpu_ms: int) -> None:
    bundle = await quick(host, body, cpu_ms=cpu_ms)
    begun = time.monotonic()
    result = await host.invoke(bundle, 1, host=answer)
    took_s = time.monotonic() - begun
    assert result.error is not None
    limit_s, cpu_s, wall_s = cpu_ms / 1000, result.cpu_us / 1e6, result.wall_us / 1e6
    if result.error.code == "cell_crashed":
        # The machine was so busy that it got less than its CPU time, and what it asked for cannot be asked again.
        assert "ctx.neo" in body
        assert cpu_s < limit_s
    else:
        assert result.error.code == "cpu_limit"
        assert limit_s <= cpu_s < limit_s + SLACK_S
    # But for the time in which others had the processor.
    assert took_s < limit_s + SLACK_S + (wall_s - cpu_s)
    assert output(await host.invoke(bundle)) is None


async def test_on_a_busy_machine_a_call_has_all_of_its_cpu_time(own_host: Host) -> None:
    cpu_ms = 1_000
    n = await iterations(own_host, int(0.6 * cpu_ms))
    bundle = await quick(own_host, "return burn(input)", cpu_ms=cpu_ms, timeout_ms=30_000)
    with busy_machine():
        result = await own_host.invoke(bundle, n)
    assert isinstance(output(result), int)
    assert result.cpu_us < cpu_ms * 1000
    # It took longer than an entry may take on the main thread.
    assert result.wall_us > (cpu_ms + 200) * 1000


@pytest.mark.parametrize("isolation", ["version", "call"])
async def test_a_call_that_was_cut_short_is_begun_again_as_if_it_had_not_run(
    own_enclave: Process, own_host: Host, isolation: Isolation
) -> None:
    n = await iterations(own_host, 300)
    body = "console.log('begun'); return [calls, burn(input) > 0]"
    bundle = await quick(own_host, body, isolation=isolation, cpu_ms=600)
    call = asyncio.ensure_future(own_host.invoke(bundle, n))
    result = await interrupted(own_enclave, call, 1.2)
    assert (output(result), logs(result), result.cold) == ([1, True], ["begun"], True)
    assert 200_000 < result.cpu_us < 600_000


@pytest.mark.parametrize(("function", "retryable"), [("read", True), ("send", False), ("invoke", False)])
async def test_a_call_that_has_asked_for_something_is_not_begun_again(
    own_enclave: Process, own_host: Host, function: str, retryable: bool
) -> None:
    n = await iterations(own_host, 300)
    ask = "ctx.invoke('f')" if function == "invoke" else f"ctx.neo.{function}({{}})"
    bundle = await quick(own_host, f"await {ask}; return burn(input)", cpu_ms=600)
    asked: list[str] = []

    async def note(name: str, argument: Any) -> Any:
        asked.append(name)

    call = asyncio.ensure_future(own_host.invoke(bundle, n, host=note))
    error = (await interrupted(own_enclave, call, 1.2)).error
    assert error is not None
    assert (error.code, error.retryable) == ("cell_crashed", retryable)
    assert "busy" in error.message
    assert len(asked) == 1
    assert output(await own_host.invoke(bundle)) is None


async def test_calls_that_had_not_begun_when_another_passed_its_limit_run(host: Host) -> None:
    source = "export default (input) => { if (input === 'spin') for (;;); return input }"
    bundle = await host.load(source, cpu_ms=300)
    assert output(await host.invoke(bundle, 0)) == 0
    # On a thread: what comes meanwhile waits in the cell.
    slow = await host.invoke(bundle, "spin")
    assert slow.error is not None
    culprit = asyncio.ensure_future(host.invoke(bundle, "spin"))
    await asyncio.sleep(0.05)
    results = await asyncio.gather(*(host.invoke(bundle, n) for n in range(5)))
    assert [output(result) for result in results] == list(range(5))
    error = (await culprit).error
    assert error is not None
    assert error.code == "cpu_limit"


async def test_a_call_that_waits_is_ended_in_time_while_another_holds_the_main_thread(host: Host) -> None:
    bundle = await quick(host, "for (;;);", cpu_ms=2_000, timeout_ms=20_000)
    waiting = await host.load("export default (input, ctx) => ctx.neo.read({})", timeout_ms=600)
    begun = time.monotonic()
    patient = asyncio.ensure_future(host.invoke(waiting, host=never))
    await asyncio.sleep(0.2)
    spinning = asyncio.ensure_future(host.invoke(bundle, 1))
    error = (await patient).error
    assert error is not None
    assert (error.code, error.message) == ("timeout", "the call took longer than 600 ms")
    assert time.monotonic() - begun < 0.6 + SLACK_S
    assert not spinning.done()
    culprit = (await spinning).error
    assert culprit is not None
    assert culprit.code == "cpu_limit"


async def test_a_call_on_another_thread_ends_in_time_while_quick_ones_turn_slow(host: Host) -> None:
    quick_one = await quick(host, "for (;;);", cpu_ms=3_000, timeout_ms=20_000)
    source = "export default (input) => { if (input) for (;;); }"
    slow_one = await host.load(source, cpu_ms=500)
    assert output(await host.invoke(slow_one)) is None
    await host.invoke(slow_one, 1)
    spinning = asyncio.ensure_future(host.invoke(slow_one, 1))
    await asyncio.sleep(0.1)
    beside = asyncio.ensure_future(host.invoke(quick_one, 1))
    result = await spinning
    assert result.error is not None
    assert result.error.code == "cpu_limit"
    assert result.cpu_us / 1e6 < 0.5 + SLACK_S
    # It had to leave the main thread early, and lost nothing by that.
    other = await beside
    assert other.error is not None
    assert other.error.code == "cpu_limit"
    assert other.cpu_us >= 2_900_000
