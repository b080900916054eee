"""Isolates made before calls need them: by request, by expectation; and their end when memory is short."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from neolayer_enclave import warmup
from neolayer_enclave.__main__ import bundled_node
from neolayer_enclave.bundle import Bundle
from neolayer_enclave.cells import Cells
from neolayer_enclave.egress import Egress
from neolayer_enclave.hardening import settle
from neolayer_enclave.loading import Loading
from neolayer_enclave.protocol import Limits, Loads, Statistics, Stats, Warm, Warmed
from neolayer_enclave.warmup import Forecast, WarmUp, available_memory
from tests.enclave_process.host import HANDLES, Host, Process, Refusal, logs, output

KEY = ("alice", "bundle")


def times(gaps: list[float]) -> list[float | None]:
    """What a forecast says after each call."""
    forecast, now = Forecast(), 1000.0
    said = [forecast.note(KEY, now)]
    for gap in gaps:
        now += gap
        expected = forecast.note(KEY, now)
        said.append(None if expected is None else expected - now)
    return said


@pytest.mark.parametrize(
    ("gaps", "low", "high"),
    [
        ([60.0] * 5, 59, 60),
        ([60, 63, 58, 61, 59, 62], 50, 60),
        ([600, 0.01, 0.02, 600, 0.01, 600, 0.3], 590, 600),
    ],
)
def test_a_steady_pace_says_when_to_be_ready(gaps: list[float], low: float, high: float) -> None:
    said = times(gaps)
    assert said[:3] == [None] * 3
    assert said[-1] is not None
    assert low <= said[-1] <= high


@pytest.mark.parametrize(
    "gaps",
    [
        [0.1] * 50,  # its isolate stays anyway
        [60, 600, 5, 300, 20],
        [100_000] * 5,  # longer than a day
        [60, 60],
    ],
)
def test_no_pace_says_nothing(gaps: list[float]) -> None:
    assert times(gaps) == [None] * (len(gaps) + 1)


async def loads(host: Host) -> Loads:
    return (await host.ask(Stats(), Statistics)).loads


async def test_a_function_is_made_ready_by_request(own_host: Host) -> None:
    bundle = await own_host.load("console.log('loaded'); let n = 0; export default () => ++n")
    assert not (await own_host.ask(Warm(HANDLES[bundle]), Warmed)).was_warm
    assert (await own_host.ask(Warm(HANDLES[bundle]), Warmed)).was_warm
    result = await own_host.invoke(bundle)
    assert (output(result), result.cold, logs(result)) == (1, False, ["loaded"])
    statistics = await loads(own_host)
    assert (statistics.warmed, statistics.cold_starts, statistics.warm_starts) == (1, 0, 1)


async def test_a_function_that_cannot_be_made_ready_is_refused_and_its_call_says_why(own_host: Host) -> None:
    with pytest.raises(Refusal) as refusal:
        await own_host.ask(Warm(b"unknown!"), Warmed)
    assert refusal.value.code == "not_loaded"
    for source in ("throw new Error('no'); export default () => 1", "for (;;); export default () => 1"):
        bundle = await own_host.load(source, cpu_ms=50)
        with pytest.raises(Refusal) as refusal:
            await own_host.ask(Warm(HANDLES[bundle]), Warmed)
        assert refusal.value.code == "invalid_function"
        error = (await own_host.invoke(bundle)).error
        assert error is not None
        assert error.code in ("invalid_function", "cpu_limit")


async def test_a_cell_that_ends_meanwhile_is_not_taken_for_a_bad_function(
    own_enclave: Process, own_host: Host
) -> None:
    busy = "const end = Date.now() + 400; while (Date.now() < end); export default () => 1"
    bundle = await own_host.load(busy)
    assert output(await own_host.run("export default () => 1")) == 1
    warming = asyncio.ensure_future(own_host.ask(Warm(HANDLES[bundle]), Warmed))
    await asyncio.sleep(0.1)
    os.kill(own_enclave.cells()[0], signal.SIGKILL)
    with pytest.raises(Refusal) as refusal:
        await warming
    assert (refusal.value.code, refusal.value.failure.retryable) == ("cell_crashed", True)
    assert not (await own_host.ask(Warm(HANDLES[bundle]), Warmed)).was_warm
    # One that ends the process itself is bad.
    bomb = "const o = {}; for (let i = 0; ; i++) o['a' + i] = i; export default () => 1"
    bundle = await own_host.load(bomb, memory_mb=16, cpu_ms=10_000)
    with pytest.raises(Refusal) as refusal:
        await own_host.ask(Warm(HANDLES[bundle]), Warmed)
    assert refusal.value.code == "invalid_function"


async def test_calls_that_come_while_it_is_made_ready_wait_for_it(own_host: Host) -> None:
    busy = "const end = Date.now() + 80; while (Date.now() < end); let n = 0; export default () => ++n"
    bundle = await own_host.load(busy)
    warming = asyncio.ensure_future(own_host.ask(Warm(HANDLES[bundle]), Warmed))
    await asyncio.sleep(0.01)
    results = await asyncio.gather(*(own_host.invoke(bundle) for _ in range(5)))
    await warming
    assert sorted(output(result) for result in results) == [1, 2, 3, 4, 5]
    assert (await loads(own_host)).cold_starts == 0


async def test_a_function_that_lost_its_cell_is_ready_for_the_call_it_expects(
    own_enclave: Process, own_host: Host
) -> None:
    bundle = await own_host.load("export default () => 1")
    gap, begun = 1.6, time.monotonic()
    for n in range(5):
        await asyncio.sleep(begun + n * gap - time.monotonic())
        assert output(await own_host.invoke(bundle)) == 1
    os.kill(own_enclave.cells()[0], signal.SIGKILL)
    await asyncio.sleep(begun + 5 * gap - time.monotonic())
    assert not (await own_host.invoke(bundle)).cold
    statistics = await loads(own_host)
    assert (statistics.predictions_right, statistics.predictions_wasted, statistics.cold_starts) == (1, 0, 1)
    # The next one does not come.
    os.kill(own_enclave.cells()[0], signal.SIGKILL)
    async with asyncio.timeout(10):
        while not (statistics := await loads(own_host)).predictions_wasted:
            await asyncio.sleep(0.05)
    assert (statistics.predictions_right, statistics.warmed) == (1, 2)


async def test_without_warm_up_nothing_is_expected(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path, "--no-warm-up")
    host = await Host.connect(enclave)
    bundle = await host.load("export default () => 1")
    for _ in range(5):
        await host.invoke(bundle)
        await asyncio.sleep(1.1)
    os.kill(enclave.cells()[0], signal.SIGKILL)
    await asyncio.sleep(1.1)
    assert (await host.invoke(bundle)).cold
    assert (await loads(host)).warmed == 0
    await host.close()
    await enclave.stop()


async def test_what_saves_most_time_for_its_memory_stays(own_host: Host) -> None:
    # All but one are used once and are quick to make; that one is used now and then and takes long.
    slow = "const end = Date.now() + 60; while (Date.now() < end); export default () => 'slow'"
    dear = await own_host.load(slow, memory_mb=16)
    for _ in range(4):
        assert output(await own_host.invoke(dear)) == "slow"
    for n in range(80):
        bundle = await own_host.load(f"export default () => {n}", memory_mb=16)
        assert output(await own_host.invoke(bundle)) == n
    result = await own_host.invoke(dear)
    assert (output(result), result.cold) == ("slow", False)
    assert (await own_host.ask(Stats(), Statistics)).isolates <= 64


def test_memory_is_the_machines_or_the_containers_whichever_is_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB\n")
    assert available_memory(meminfo, tmp_path) == 0.4
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("950\n")
    (tmp_path / "memory.stat").write_text("anon 700\ninactive_file 200\n")
    assert available_memory(meminfo, tmp_path) == pytest.approx(0.25)
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(meminfo, tmp_path) == 0.4
    assert available_memory(tmp_path / "none", tmp_path) == 1.0
    assert 0 < available_memory() < 1


async def test_two_requests_are_both_answered_when_it_is_ready(own_host: Host) -> None:
    busy = "const end = Date.now() + 100; while (Date.now() < end); export default () => 1"
    bundle = await own_host.load(busy)
    begun = time.monotonic()
    both = await asyncio.gather(*(own_host.ask(Warm(HANDLES[bundle]), Warmed) for _ in range(2)))
    assert time.monotonic() - begun > 0.1
    assert [each.was_warm for each in both] == [False, True]


async def test_isolates_at_rest_go_when_memory_runs_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "MEMORY_S", 0.02)
    node = bundled_node()
    assert node
    web = Egress(allow_private=False)
    hardening, blank = await settle(node)
    cells = Cells(hardening, web, Loading(node, None, warm_up=True), most=2)
    await cells.open(blank)
    bundle = Bundle.make(
        "alice", "one", b"", shown="one", source="export default () => 1", limits=Limits(), secrets={}, patterns=[]
    )
    cell = cells.of("alice")
    assert not await cell.warm(bundle)
    assert await cell.warm(bundle)

    class Known:
        def known(self, tenant: str, name: str) -> Bundle | None:
            return bundle

    share = 0.5
    running = asyncio.ensure_future(WarmUp(Known(), cells, lambda: share).run())
    await asyncio.sleep(0.1)
    assert await cell.warm(bundle)
    share = 0.07
    await asyncio.sleep(0.1)
    assert await cell.warm(bundle)  # it holds less than what may stay
    share = 0.03
    await asyncio.sleep(0.1)
    running.cancel()
    assert not await cell.warm(bundle)
    await cells.close()
    await web.close()
