"""The processes of the cells: born on demand, one a tenant, replaced when they die."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from neolayer_enclave.protocol import Loads, Statistics, Stats
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
    assert msgspec.structs.replace(statistics, loads=Loads()) == Statistics(2, 3, 3, 0, 2, 0)


async def test_a_cell_starts_with_a_clean_environment_and_few_descriptors(
    own_enclave: Process, own_host: Host
) -> None:
    await own_host.run(ECHO, 1)
    cell = Path(f"/proc/{cell_of(own_enclave)}")
    assert (cell / "environ").read_bytes() == b"NODE_ENV=production\0"
    assert (cell / "cwd").readlink() == Path("/")
    opened = {each.name: str(each.readlink()) for each in (cell / "fd").iterdir()}
    sockets = {target for target in opened.values() if target.startswith("socket:")}
    # The one to the enclave and its own stderr.
    assert len(sockets - {opened["2"]}) == 1
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
    enclave = await Process.start(tmp_path, "--cells", "2")
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
