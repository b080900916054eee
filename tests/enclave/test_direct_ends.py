"""Nothing is lost, repeated or shared when cells, hosts or enclaves end while calls are on their way past them."""

import asyncio
import contextlib
import os
import random
import signal
import time

import pytest

from neolayer.enclave import (
    EnclaveRefused,
    EnclaveUnavailable,
    OutcomeUnknown,
)
from neolayer_enclave import protocol
from tests.enclave.caller import ASK, ECHO, Caller, Gate, echo_host, stopped, until
from tests.enclave_process.host import Process, is_direct, output


@pytest.mark.parametrize(
    ("work", "code"),
    [
        ("for (;;);", "cpu_limit"),
        ("await new Promise(() => {});", "timeout"),
        ("const kept = []; for (;;) kept.push(new Array(1e5).fill(kept.length));", "memory_limit"),
        ("return 'x'.repeat(2 ** 29 - 24).split('');", "memory_limit"),
    ],
)
@pytest.mark.parametrize("quick_calls", [0, 12], ids=["on a thread", "on the main thread"])
async def test_a_call_that_ends_its_isolate_or_cell_has_its_code_and_others_do_not_notice(
    caller: Caller, work: str, code: str, quick_calls: int
) -> None:
    neighbour = await caller.warm(ASK, tenant="bob")
    gate = Gate()
    waiting = asyncio.ensure_future(caller.call(neighbour, "mine", gate))
    bundle = await caller.warm(
        f"export default async (input, ctx) => {{ if (input === 0) return 0; {work} }}",
        tenant="culprit", cpu_ms=200, timeout_ms=600, memory_mb=32,
    )  # fmt: skip
    for _ in range(quick_calls):
        assert output(await caller.call(bundle, 0)) == 0
    assert is_direct(caller.client, "culprit")
    result = await asyncio.wait_for(caller.call(bundle, 1), 5)
    assert result.error
    assert (result.error.code, result.error.retryable) == (code, False)
    gate.opened.set()
    assert output(await waiting) == "mine"
    assert output(await caller.call(bundle, 0)) == 0


@pytest.mark.parametrize("sends", [False, True])
async def test_a_killed_cell_fails_its_calls_which_may_be_repeated_unless_they_had_effects(
    own_enclave: Process, own: Caller, sends: bool
) -> None:
    gate, sent = Gate(), Gate()
    sent.opened.set()

    async def host(name: str, argument: bytes) -> bytes:
        return await (sent if name == "neo.send" else gate)(name, argument)

    effect = "await ctx.neo.send({});" if sends else ""
    bundle = await own.warm(
        f"export default async (input, ctx) => {{ {effect} return await ctx.neo.read(input) }}"
    )
    (cell,) = own_enclave.cells()
    neighbour = await own.warm(ASK, tenant="bob")
    others = asyncio.ensure_future(own.call(neighbour, "mine", gate))
    calls = [asyncio.ensure_future(own.call(bundle, n, host)) for n in range(20)]
    await until(lambda: len(gate.asked) == 21)
    os.kill(cell, signal.SIGKILL)
    ended = [result.error for result in await asyncio.gather(*calls)]
    assert [(error.code, error.retryable) for error in ended if error] == [("cell_crashed", not sends)] * 20
    assert len(sent.asked) == (20 if sends else 0)
    gate.opened.set()
    assert output(await others) == "mine"
    assert output(await own.call(bundle, 1, host)) == 1


async def test_calls_that_waited_in_a_cell_which_another_one_ended_run_in_the_next(own: Caller) -> None:
    gate = Gate()
    bundle = await own.warm(ASK)
    bomb = await own.warm("export default () => 'x'.repeat(2 ** 29 - 24).split('')", memory_mb=32)
    running = [asyncio.ensure_future(own.call(bundle, n, gate)) for n in range(63)]
    await until(lambda: len(gate.asked) == 63)
    await asyncio.sleep(0.1)
    ending = asyncio.ensure_future(own.call(bomb))
    waiting = [asyncio.ensure_future(own.call(bundle, n, gate)) for n in range(63, 70)]
    error = (await ending).error
    assert error
    assert error.code == "memory_limit"
    if (await own.client.stats()).cells_crashed:
        await until(lambda: len(gate.asked) == 70)
        assert {result.error and result.error.code for result in await asyncio.gather(*running)} == {
            "cell_crashed"
        }
    gate.opened.set()
    assert [output(result) for result in await asyncio.gather(*waiting)] == list(range(63, 70))


async def test_a_cell_that_stands_still_within_a_call_is_ended_at_the_calls_limit(
    own_enclave: Process, own: Caller
) -> None:
    bundle = await own.warm(ASK, timeout_ms=500)
    (cell,) = own_enclave.cells()
    gate = Gate()
    call = asyncio.ensure_future(own.call(bundle, 1, gate))
    await until(lambda: len(gate.asked) == 1)
    await asyncio.sleep(0.05)
    with contextlib.suppress(ProcessLookupError), stopped(cell):
        error = (await asyncio.wait_for(call, 5)).error
    assert error
    assert (error.code, error.retryable) == ("timeout", False)
    assert output(await own.call(bundle, 2, echo_host)) == ["neo.read", 2]


async def test_a_cell_that_hangs_at_rest_is_given_up_and_replaced(
    own_enclave: Process, own: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neolayer.enclave.client.INVOKE_SLACK_S", 0.2)
    bundle = await own.warm(ECHO, timeout_ms=300)
    (cell,) = own_enclave.cells()
    await asyncio.sleep(0.3)
    with contextlib.suppress(ProcessLookupError), stopped(cell):
        with pytest.raises(OutcomeUnknown):
            await own.call(bundle, 1, timeout_ms=100)
        monkeypatch.setattr("neolayer.enclave.client.INVOKE_SLACK_S", 40.0)
        error = (await asyncio.wait_for(own.call(bundle, 2), 5)).error
        assert error
        assert error.code == "timeout"
    assert output(await own.call(bundle, 3)) == 3


async def test_no_call_fails_when_idle_cells_end(tmp_path_factory: pytest.TempPathFactory) -> None:
    process = await Process.start(tmp_path_factory.mktemp("idle"), "--spare", "1", "--cell-idle-s", "0.15")
    caller = Caller(process)
    bundle = await caller.load(ECHO)
    pauses = random.Random(5)  # noqa: S311
    directly = 0
    for n in range(60):
        assert output(await caller.call(bundle, n)) == n
        await asyncio.sleep(0)
        directly += is_direct(caller.client, "alice")
        await asyncio.sleep(pauses.choice((0.0, 0.001, 0.01, pauses.uniform(0.1, 0.35))))
    statistics = await caller.client.stats()
    assert statistics.cells_started > 3
    assert statistics.cells_crashed == 0
    assert directly > 10
    await caller.client.close()
    await process.stop()


async def test_two_busy_tenants_share_one_cells_place_and_every_call_is_answered(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    process = await Process.start(tmp_path_factory.mktemp("one"), "--cells", "1", "--spare", "1")
    caller = Caller(process)
    end = time.monotonic() + 5

    async def keep_calling(bundle: str, answered: list[int]) -> None:
        while time.monotonic() < end:
            assert output(await caller.call(bundle, len(answered), echo_host)) == ["neo.read", len(answered)]
            answered.append(len(answered))

    counts: dict[str, list[list[int]]] = {"alice": [], "bob": []}
    async with asyncio.TaskGroup() as group:
        for tenant, lists in counts.items():
            bundle = await caller.load(ASK, tenant=tenant)
            for _ in range(3):
                lists.append([])
                group.create_task(keep_calling(bundle, lists[-1]))
    assert all(len(answered) > 10 for lists in counts.values() for answered in lists)
    statistics = await caller.client.stats()
    assert statistics.cells_started >= 3
    assert statistics.cells_crashed == 0
    await caller.client.close()
    await process.stop()


async def test_calls_of_a_client_that_closes_are_told_and_cancelled_in_the_cell(
    own_enclave: Process, own: Caller
) -> None:
    bundle = await own.warm(ASK, timeout_ms=30_000)
    leaving = Caller(own_enclave)
    gate = Gate()
    asking = await leaving.warm(ASK, timeout_ms=30_000)
    ended = asyncio.gather(*(leaving.call(asking, n, gate) for n in range(80)), return_exceptions=True)
    await until(lambda: len(gate.asked) == 64)
    await asyncio.sleep(0.05)
    assert (await own.client.stats()).running == 64
    await leaving.client.close()
    assert {type(error) for error in await asyncio.wait_for(ended, 0.1)} == {OutcomeUnknown}
    async with asyncio.timeout(5):
        while (await own.client.stats()).running:
            await asyncio.sleep(0.01)
    assert output(await own.call(bundle, 1, echo_host)) == ["neo.read", 1]
    assert len(gate.asked) == 64
    with pytest.raises(EnclaveUnavailable):
        await leaving.client.stats()


async def test_closing_waits_for_no_cell_that_stands_still_nor_for_one_that_left(
    own_enclave: Process, own: Caller
) -> None:
    bundle = await own.warm(ASK)
    gate = Gate()
    call = asyncio.ensure_future(own.call(bundle, 1, gate))
    await until(lambda: len(gate.asked) == 1)
    (connection,) = own.client.cells
    connection.retire()
    assert not is_direct(own.client, "alice")
    (cell,) = own_enclave.cells()
    with stopped(cell):
        await asyncio.wait_for(own.client.close(), 2)
    with pytest.raises(OutcomeUnknown):
        await call


async def test_a_lost_connection_to_a_living_cell_fails_its_calls_and_repeats_none(own: Caller) -> None:
    gate = Gate()
    bundle = await own.warm(ASK)
    call = asyncio.ensure_future(own.call(bundle, 1, gate))
    await until(lambda: len(gate.asked) == 1)
    (connection,) = own.client.cells
    connection.close()
    error = (await asyncio.wait_for(call, 5)).error
    assert error
    assert (error.code, error.retryable) == ("cell_crashed", True)
    assert gate.asked == [1]
    assert output(await own.call(bundle, 2, echo_host)) == ["neo.read", 2]


async def test_calls_in_flight_when_the_enclave_ends_are_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("ends")
    process = await Process.start(folder, "--spare", "0")
    caller, gate = Caller(process), Gate()
    bundle = await caller.warm(ASK)
    calls = [asyncio.ensure_future(caller.call(bundle, n, gate)) for n in range(10)]
    await until(lambda: len(gate.asked) == 10)
    os.kill(process.process.pid, signal.SIGKILL)
    await process.process.wait()
    ended = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
    assert {type(error) for error in ended} == {OutcomeUnknown}
    process = await Process.start(folder, "--spare", "0")
    with pytest.raises(EnclaveRefused) as refusal:
        await caller.call(bundle, 1)
    assert refusal.value.code == "not_loaded"
    assert len(gate.asked) == 10
    await caller.client.close()
    await process.stop()


async def test_the_fate_of_a_cell_of_another_enclave_or_tenant_is_told_by_nobody(
    own_enclave: Process, own: Caller
) -> None:
    bundle = await own.warm(ASK)
    neighbour = await own.warm(ECHO, tenant="bob")
    alice = await own.open()
    handle = own.client._known[bundle][0]
    stranger = own.client._known[neighbour][0]
    gate = Gate()
    call = asyncio.ensure_future(own.call(bundle, 1, gate))
    await until(lambda: len(gate.asked) == 1)
    id = next(iter(alice._calls))
    await asyncio.sleep(0.05)
    os.kill(own_enclave.cells()[0], signal.SIGKILL)
    await call
    (own_fate,) = (await own.client.fates(protocol.Fate(alice._cell, [(id, handle)]))).errors
    assert own_fate
    assert own_fate.code == "cell_crashed"
    for cell in (1, 2, alice._cell + 1000):
        (fate,) = (await own.client.fates(protocol.Fate(cell, [(id, stranger)]))).errors
        assert fate
        assert (fate.code, fate.retryable) == ("cell_crashed", True)


async def test_two_clients_use_one_cell(process: Process, caller: Caller) -> None:
    other = Caller(process)
    bundles = [await each.warm(ASK, tenant="shared") for each in (caller, other)]
    cells = [await each.open("shared") for each in (caller, other)]
    assert cells[0]._cell == cells[1]._cell
    assert cells[0]._first != cells[1]._first
    results = await asyncio.gather(
        *(
            each.call(bundle, n, echo_host)
            for n in range(150)
            for each, bundle in zip((caller, other), bundles, strict=True)
        )
    )
    assert [output(result) for result in results] == [["neo.read", n] for n in range(150) for _ in range(2)]
    await other.client.close()
    assert output(await caller.call(bundles[0], 1, echo_host)) == ["neo.read", 1]
    assert is_direct(caller.client, "shared")
