"""The processes of the cells: born on demand, one a tenant, replaced when they die."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from neolayer_enclave.ceiling import NoCeilings, own_group
from neolayer_enclave.protocol import Hardening, Layers, Loads, Statistics, Stats
from tests.enclave_process.host import Host, Process, Refusal, output

ECHO = "export default (input) => input"


def cell_of(enclave: Process) -> int:
    (pid,) = enclave.cells()
    return pid


async def test_each_tenant_has_a_process_of_its_own(own_enclave: Process, own_host: Host) -> None:
    assert own_enclave.cells() == []
    for tenant in ("alice", "bob", "alice"):
        assert output(await own_host.run(ECHO, 1, tenant=tenant)) == 1
    assert len(own_enclave.cells()) == 2
    statistics = await own_host.ask(Stats(), Statistics)
    assert msgspec.structs.replace(statistics, loads=Loads()) == Statistics(2, 3, 3, 0, 2, 0, 0, 0)


async def test_a_cell_starts_with_a_clean_environment_and_few_descriptors(
    own_enclave: Process, own_host: Host
) -> None:
    await own_host.run(ECHO, 1)
    cell = Path(f"/proc/{cell_of(own_enclave)}")
    environment = b"NODE_ENV=production\0TZ=UTC\0MALLOC_ARENA_MAX=1\0NODE_CHANNEL_FD=6\0"
    assert (cell / "environ").read_bytes() == environment
    assert (cell / "cwd").readlink() == Path("/")
    opened = {each.name: str(each.readlink()) for each in (cell / "fd").iterdir()}
    sockets = {target for target in opened.values() if target.startswith("socket:")}
    # The one to the enclave, the channel by which it hands over connections, and its own stderr.
    assert len(sockets - {opened["2"]}) == 2
    files = {target for target in opened.values() if target.startswith("/")}
    assert files == {"/dev/null", "/memfd:black-box (deleted)"}
    limits = (cell / "limits").read_text()
    assert next(line for line in limits.splitlines() if line.startswith("Max core")).split()[4:6] == ["0", "0"]


async def test_an_idle_cell_that_is_killed_is_replaced_at_the_next_call(
    own_enclave: Process, own_host: Host
) -> None:
    bundle = await own_host.load(ECHO)
    assert output(await own_host.invoke(bundle, 1)) == 1
    before = cell_of(own_enclave)
    os.kill(before, signal.SIGKILL)
    while before in own_enclave.cells():
        await asyncio.sleep(0.01)
    result = await own_host.invoke(bundle, 2)
    assert (output(result), result.cold) == (2, True)
    assert cell_of(own_enclave) != before


async def test_calls_of_a_cell_that_is_killed_may_be_repeated_unless_they_sent(
    own_enclave: Process, own_host: Host
) -> None:
    asked = asyncio.Queue[str]()

    async def slow(name: str, argument: Any) -> Any:
        await asked.put(name)
        await asyncio.sleep(20)

    source = "export default async (input, ctx) => { await (input ? ctx.neo.send({}) : ctx.neo.read({})) }"
    bundle = await own_host.load(source)
    calls = [asyncio.ensure_future(own_host.invoke(bundle, value, host=slow)) for value in (0, 1)]
    assert {await asked.get(), await asked.get()} == {"neo.read", "neo.send"}
    os.kill(cell_of(own_enclave), signal.SIGKILL)
    read, send = [(await call).error for call in calls]
    assert read is not None
    assert (read.code, read.retryable) == ("cell_crashed", True)
    assert send is not None
    assert (send.code, send.retryable) == ("cell_crashed", False)
    assert output(await own_host.run(ECHO, 1)) == 1
    assert (await own_host.ask(Stats(), Statistics)).cells_crashed == 1


async def test_a_cell_that_stands_still_is_ended_at_the_calls_deadline(
    own_enclave: Process, own_host: Host
) -> None:
    bundle = await own_host.load(ECHO, timeout_ms=300)
    assert output(await own_host.invoke(bundle, 1)) == 1
    os.kill(cell_of(own_enclave), signal.SIGSTOP)
    error = (await asyncio.wait_for(own_host.invoke(bundle, 2), 3)).error
    assert error is not None
    assert error.code == "timeout"
    assert output(await own_host.invoke(bundle, 3)) == 3


async def test_the_cell_unused_for_longest_makes_room(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path, "--cells", "2", "--spare", "0", "--cell-wait-s", "0.5")
    host = await Host.connect(enclave)

    async def never(name: str, argument: Any) -> Any:
        await asyncio.sleep(60)

    for tenant in ("a", "b", "c", "a"):
        assert output(await host.run(ECHO, 1, tenant=tenant)) == 1
        assert (await host.ask(Stats(), Statistics)).cells <= 2
    statistics = await host.ask(Stats(), Statistics)
    assert (statistics.cells_started, statistics.cells_crashed) == (4, 0)
    waiting = "export default (i, ctx) => ctx.neo.read({})"
    calls = [asyncio.ensure_future(host.run(waiting, tenant=tenant, host=never)) for tenant in ("a", "c")]
    while (await host.ask(Stats(), Statistics)).running < 2:
        await asyncio.sleep(0.01)
    with pytest.raises(Refusal) as refusal:
        await host.run(ECHO, 1, tenant="d")
    assert (refusal.value.code, refusal.value.failure.retryable) == ("no_capacity", True)
    for call in calls:
        call.cancel()
    await host.close()
    await enclave.stop()


async def test_a_tenant_may_have_more_functions_than_isolates(own_enclave: Process, own_host: Host) -> None:
    bundles = [await own_host.load(f"export default () => {n}", memory_mb=16) for n in range(70)]
    for _ in range(2):
        for n, bundle in enumerate(bundles):
            assert output(await own_host.invoke(bundle)) == n
    assert (await own_host.ask(Stats(), Statistics)).isolates <= 64


async def test_functions_that_rest_on_much_memory_make_room_for_others(
    own_enclave: Process, own_host: Host
) -> None:
    source = "const kept = []; export default () => { if (!kept.length) %s; return kept.length }"
    grow = "for (let i = 0; i < 60; i++) kept.push(new Uint8Array(1 << 20).fill(1))"
    for _ in range(15):
        bundle = await own_host.load(source % grow)
        assert output(await own_host.invoke(bundle)) == 60
        await asyncio.sleep(0.05)
    statistics = await own_host.ask(Stats(), Statistics)
    assert statistics.cells_crashed == 0
    assert statistics.isolates < 10


async def ready_spares(host: Host, number: int) -> None:
    while (await host.ask(Stats(), Statistics)).spares < number:
        await asyncio.sleep(0.02)


async def test_a_spare_serves_one_tenant_and_is_replaced_by_another(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path, "--spare", "2")
    host = await Host.connect(enclave)
    await ready_spares(host, 2)
    blank = set(enclave.cells())
    assert len(blank) == 2
    assert output(await host.run(ECHO, 1, tenant="a")) == 1
    assert set(enclave.cells()) == blank
    await ready_spares(host, 2)
    (new,) = set(enclave.cells()) - blank
    for tenant in ("b", "a", "c"):
        assert output(await host.run(ECHO, 1, tenant=tenant)) == 1
    statistics = await host.ask(Stats(), Statistics)
    assert (statistics.cells, statistics.cells_started) == (3, 3)
    assert {*blank, new} <= set(enclave.cells())
    await host.close()
    assert await enclave.stop() == 0


async def test_a_spare_makes_the_first_call_quick(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path, "--spare", "1")
    host = await Host.connect(enclave)
    quick, slow = [], []
    for n in range(5):
        await ready_spares(host, 1)
        for tenant, times in ((f"with-{n}", quick), (f"without-{n}", slow)):
            bundle = await host.load(ECHO, tenant=tenant)
            begun = time.perf_counter()
            assert output(await host.invoke(bundle, 1)) == 1
            times.append(time.perf_counter() - begun)
    assert min(quick) < min(slow) / 3, (quick, slow)
    await host.close()
    await enclave.stop()


async def test_a_spare_that_dies_is_replaced_and_harms_nobody(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path, "--spare", "1")
    host = await Host.connect(enclave)
    await ready_spares(host, 1)
    (spare,) = enclave.cells()
    os.kill(spare, signal.SIGKILL)
    while spare in enclave.cells():
        await asyncio.sleep(0.02)
    assert output(await host.run(ECHO, 1)) == 1
    await ready_spares(host, 1)
    statistics = await host.ask(Stats(), Statistics)
    assert statistics.cells_crashed == 0
    await host.close()
    await enclave.stop()


async def test_an_unused_cell_ends_and_a_busy_one_does_not(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path, "--spare", "0", "--cell-idle-s", "0.4")
    host = await Host.connect(enclave)

    async def slow(name: str, argument: Any) -> Any:
        await asyncio.sleep(1.5)
        return 7

    busy = asyncio.ensure_future(host.run("export default (i, ctx) => ctx.neo.read({})", tenant="busy", host=slow))
    assert output(await host.run(ECHO, 1, tenant="idle")) == 1
    assert (await host.ask(Stats(), Statistics)).cells == 2
    while (await host.ask(Stats(), Statistics)).cells == 2:
        await asyncio.sleep(0.05)
    assert not busy.done()
    assert output(await busy) == 7
    assert output(await host.run(ECHO, 2, tenant="idle")) == 2
    assert (await host.ask(Stats(), Statistics)).cells_crashed == 0
    await host.close()
    await enclave.stop()


async def test_tenants_wait_their_turn_when_all_cells_are_busy(tmp_path: Path) -> None:
    """Also when the tenants that have cells never pause: those held for longest are taken from them."""
    enclave = await Process.start(tmp_path, "--cells", "2", "--spare", "0")
    host = await Host.connect(enclave)
    over = asyncio.Event()

    async def wait(name: str, argument: Any) -> Any:
        await asyncio.sleep(0.2)
        return 1

    source = "export default (i, ctx) => ctx.neo.read({})"

    async def restless(tenant: str) -> int:
        bundle = await host.load(source, tenant=tenant)
        calls = 0

        async def one_after_the_other() -> None:
            nonlocal calls
            while not over.is_set():
                assert output(await host.invoke(bundle, host=wait)) == 1
                calls += 1

        await asyncio.gather(one_after_the_other(), one_after_the_other(), one_after_the_other())
        return calls

    greedy = [asyncio.ensure_future(restless(tenant)) for tenant in ("greedy-1", "greedy-2")]
    while (await host.ask(Stats(), Statistics)).running < 6:
        await asyncio.sleep(0.02)
    served: list[str] = []

    async def patient(tenant: str) -> None:
        assert output(await host.run(ECHO, tenant, tenant=tenant)) == tenant
        served.append(tenant)

    waiting = []
    for n in range(4):
        waiting.append(asyncio.ensure_future(patient(f"patient-{n}")))
        while (await host.ask(Stats(), Statistics)).waiting < n + 1:
            await asyncio.sleep(0.01)
    await asyncio.gather(*waiting)
    # Two at a time are served, so neighbours in the line may finish in any order.
    for n, tenant in enumerate(served):
        assert abs(int(tenant[-1]) - n) <= 1, served
    over.set()
    assert all(calls > 0 for calls in await asyncio.gather(*greedy))
    statistics = await host.ask(Stats(), Statistics)
    assert (statistics.cells_crashed, statistics.waiting) == (0, 0)
    await host.close()
    await enclave.stop()


async def test_what_a_function_of_a_leaving_cell_calls_runs_there(tmp_path: Path) -> None:
    """Another cell would have to wait until this one is gone, and this one for the call."""
    enclave = await Process.start(tmp_path, "--cells", "1", "--spare", "0")
    host = await Host.connect(enclave)
    echo = await host.load(ECHO, tenant="a")
    caller = await host.load("export default (input, ctx) => ctx.invoke('echo', input)", tenant="a")
    asked, waiting = asyncio.Event(), asyncio.Event()

    async def nested(name: str, argument: Any) -> Any:
        asked.set()
        await waiting.wait()
        return output(await host.invoke(echo, 7, depth=1))

    calling = asyncio.ensure_future(host.invoke(caller, 7, host=nested))
    await asked.wait()
    patient = asyncio.ensure_future(host.run(ECHO, 1, tenant="b"))
    # Longer than a cell stays with its tenant when others wait. A new call of the tenant lines up behind them.
    await asyncio.sleep(1.5)
    late = asyncio.ensure_future(host.invoke(echo, 2))
    await asyncio.sleep(0.1)
    assert (await host.ask(Stats(), Statistics)).waiting == 2
    begun = time.monotonic()
    waiting.set()
    assert output(await calling) == 7
    assert time.monotonic() - begun < 2
    assert [output(result) for result in await asyncio.gather(patient, late)] == [1, 2]
    statistics = await host.ask(Stats(), Statistics)
    assert (statistics.cells_started, statistics.cells_crashed) == (3, 0)
    await host.close()
    await enclave.stop()


async def test_the_first_call_of_a_cold_start_says_what_that_took(own_host: Host) -> None:
    spin = "const end = Date.now() + %d; while (Date.now() < end);"
    source = f"{spin % 30} export default () => {{ {spin % 20} return 1 }}"
    first, second = await own_host.load(source), await own_host.load(source.replace("return 1", "return 2"))
    result = await own_host.invoke(first)
    assert result.cold
    phases = result.phases
    assert phases is not None
    assert 29_000 < phases.evaluate < result.wall_us
    assert 19_000 < phases.first_call < result.wall_us
    assert phases.process > 10_000  # a Node process takes some 30 ms
    assert min(phases.isolate, phases.context, phases.prepare, phases.compile) > 0
    assert (await own_host.invoke(first)).phases is None
    # The process is there by now.
    later = (await own_host.invoke(second)).phases
    assert later is not None
    assert later.process == 0
    assert later.evaluate > 29_000


async def test_a_call_that_is_given_a_spare_waits_for_no_process(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path, "--spare", "1")
    host = await Host.connect(enclave)
    await ready_spares(host, 1)
    phases = (await host.run(ECHO, 1)).phases
    assert phases is not None
    assert phases.process == 0
    await host.close()
    await enclave.stop()


async def test_a_call_that_nobody_waits_for_any_more_gives_its_place_in_the_line_away(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path, "--cells", "1", "--spare", "0")
    host, gone = await Host.connect(enclave), await Host.connect(enclave)

    async def slow(name: str, argument: Any) -> Any:
        await asyncio.sleep(0.8)
        return 1

    busy = asyncio.ensure_future(host.run("export default (i, ctx) => ctx.neo.read({})", tenant="a", host=slow))
    while (await host.ask(Stats(), Statistics)).running < 1:
        await asyncio.sleep(0.01)
    bundle = await gone.load(ECHO, tenant="b")
    call = gone.call(bundle, b"")
    while (await host.ask(Stats(), Statistics)).waiting < 1:
        await asyncio.sleep(0.01)
    await gone.close()
    while (await host.ask(Stats(), Statistics)).waiting:
        await asyncio.sleep(0.01)
    assert output(await busy) == 1
    assert (await host.ask(Stats(), Statistics)).cells_started == 1
    call.cancel()
    await host.close()
    await enclave.stop()


async def test_a_cell_past_its_ceiling_is_ended_by_the_kernel_and_replaced(
    own_enclave: Process, own_host: Host
) -> None:
    """Faster than any watch from outside: a ceiling of 512 MB and a program that takes all it can at once."""
    layers = {each.name: each for each in (await own_host.ask(Layers(), Hardening)).layers}
    if layers["memory"].state != "on":
        pytest.skip(f"no control groups here: {layers['memory'].reason}")
    neighbour = await own_host.load(ECHO, tenant="neighbour")
    assert output(await own_host.invoke(neighbour, 1)) == 1
    grow = "export default () => { const all = []; for (;;) all.push(new Uint8Array(1 << 26).fill(1)) }"
    bundle = await own_host.load(grow, memory_mb=512, cpu_ms=10_000)
    error = (await own_host.invoke(bundle)).error
    assert error is not None
    assert error.code in ("memory_limit", "function_error")
    assert output(await own_host.invoke(neighbour, 2)) == 2
    assert output(await own_host.run(ECHO, 3)) == 3


async def test_control_groups_are_gone_with_their_cells(tmp_path: Path) -> None:
    try:
        folder, _ = own_group()
    except NoCeilings as error:
        pytest.skip(str(error))
    enclave = await Process.start(tmp_path)
    host = await Host.connect(enclave)
    if "memory" in enclave.ready["missing_layers"]:
        pytest.skip("no control groups here")
    assert output(await host.run(ECHO, 1)) == 1
    mine = f"neolayer-{enclave.process.pid}-*"
    assert list(folder.glob(mine))
    await host.close()
    assert await enclave.stop() == 0
    assert not list(folder.glob(mine))
    # Of one that was killed they stay until the next one starts.
    enclave = await Process.start(tmp_path)
    left = f"neolayer-{enclave.process.pid}-*"
    enclave.process.kill()
    await enclave.process.wait()
    assert list(folder.glob(left))
    await asyncio.sleep(0.2)
    enclave = await Process.start(tmp_path)
    assert not list(folder.glob(left))
    assert await enclave.stop() == 0
