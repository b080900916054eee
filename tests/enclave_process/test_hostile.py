"""Hostile programs: none gets out, each ends in time with its code, and nobody else notices."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from neolayer_enclave.protocol import Result
from tests.enclave_process.host import Host, Process, is_direct, logs, output
from tests.enclave_process.hostile import (
    BOMBS,
    ESCAPES,
    SLEEPERS,
    SPINNERS,
    TALKERS,
    TOP_LEVELS,
    WRECKERS,
    Program,
)

#: Of another tenant, and of another function of the same tenant.
NEIGHBOURS_SECRET = "neighbours-secret-5e1f"
OTHERS_SECRET = "others-secret-77ab"
#: Past its limit; seconds.
SLACK_S = 0.5
NEIGHBOUR_S = 0.05
CODES = {
    *("function_error", "invalid_output", "timeout", "cpu_limit", "memory_limit", "cell_crashed"),
    *("invalid_function", "invalid_input"),
}


class Neighbour:
    """Another tenant's function, called all along."""

    def __init__(self, host: Host, bundle: str) -> None:
        self._host, self._bundle = host, bundle
        self.answered = 0
        self.longest_s = 0.0
        self.wrong: list[Any] = []

    async def run(self) -> None:
        while True:
            begun = time.monotonic()
            result = await self._host.invoke(self._bundle, self.answered)
            self.longest_s = max(self.longest_s, time.monotonic() - begun)
            if result.error or json.loads(result.output) != [self.answered, len(NEIGHBOURS_SECRET)]:
                self.wrong.append(result)
            self.answered += 1
            await asyncio.sleep(NEIGHBOUR_S)


class Arena(NamedTuple):
    host: Host
    #: The same tenant's, whose calls go straight to the cell.
    direct: Host
    neighbour: Neighbour


@pytest.fixture(scope="module")
async def arena(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Arena]:
    """An enclave in which a neighbour's function is called every 50 ms while hostile programs run."""
    process = await Process.start(tmp_path_factory.mktemp("arena"))
    host, neighbours_host = await Host.connect(process), await Host.connect(process)
    direct = await Host.connect(process, direct=True)
    bundle = await neighbours_host.load(
        "export default (input, ctx) => [input, ctx.secrets.CANARY.length]",
        tenant="neighbour",
        secrets={"CANARY": NEIGHBOURS_SECRET},
    )
    neighbour = Neighbour(neighbours_host, bundle)
    calls = asyncio.create_task(neighbour.run())
    # A function of the same tenant as the hostile ones, with something worth taking.
    other = await host.load(
        f"globalThis.leftByAnother = Object.prototype.leftByAnother = '{OTHERS_SECRET}';"
        "export default (input, ctx) => (Array.leftByAnother = ctx.secrets.OWN, 1)",
        secrets={"OWN": OTHERS_SECRET},
    )
    assert output(await host.invoke(other)) == 1
    yield Arena(host, direct, neighbour)
    calls.cancel()
    await direct.close()
    await host.close()
    await neighbours_host.close()
    await process.stop()
    print(f"\nthe neighbour answered {neighbour.answered} times, at the slowest in {neighbour.longest_s:.3f} s")
    assert neighbour.answered > 20


async def answer(name: str, argument: Any) -> Any:
    if argument == "never" or (isinstance(argument, str) and len(argument) > 1000):
        await asyncio.sleep(30)
    return {"asked": name}


def was_cut_short(result: Result, program: Program) -> bool:
    """By a busy machine, with CPU time left, after it had asked for something: that cannot be begun again."""
    return (
        result.error is not None
        and result.error.code == "cell_crashed"
        and "too busy" in result.error.message
        and result.cpu_us < program.limits["cpu_ms"] * 1000
    )


async def end_of(host: Host, neighbour: Neighbour, bundle: str, program: Program) -> Result:
    """Call it; see that it ends in time, as said, and that neither it nor anybody else shows what it must not."""
    limit_s = program.limits["timeout_ms"] / 1000
    begun = time.monotonic()
    result = await asyncio.wait_for(host.invoke(bundle, 1, host=answer), limit_s + 10)
    took_s = time.monotonic() - begun
    code = result.error.code if result.error else "ok"
    if not was_cut_short(result, program):
        assert code in program.ends.split("|"), (code, result.error or result.output[:200])
    assert code == "ok" or code in CODES
    assert took_s < limit_s + SLACK_S
    # No wall time is demanded of a limit of CPU time: others may use the processors, too.
    assert result.cpu_us / 1e6 < program.limits["cpu_ms"] / 1000 + SLACK_S
    shown = (
        result.output + result.logs + (result.error.message + result.error.stack if result.error else "").encode()
    )
    for secret in (NEIGHBOURS_SECRET, OTHERS_SECRET):
        assert secret.encode() not in shown
    assert not re.search(rb"\.[cm]js|node:|/runner/|isolated-vm", shown)
    assert neighbour.wrong == []
    return result


async def both_ways(arena: Arena, program: Program) -> list[Result]:
    """Entered on a thread of its own, as at first, and past the enclave on the cell's main thread, as after quick
    calls."""
    results = []
    for warm, host in ((0, arena.host), (12, arena.direct)):
        calm = await host.load("export default () => 'calm'")
        assert output(await host.invoke(calm)) == "calm"
        bundle = await host.load(program.source, secrets={"OWN": "own"}, ahead=False, **program.limits)
        for _ in range(0 if program.whole else warm):
            assert output(await host.invoke(bundle, "ready")) == "ready"
        assert host.client is None or is_direct(host.client, "alice")
        results.append(await end_of(host, arena.neighbour, bundle, program))
        # The tenant's next call is answered, if need be by a new process.
        assert output(await host.invoke(calm)) == "calm"
    return results


def named(program: Program) -> str:
    return program.name


def test_there_are_enough_of_them() -> None:
    programs = [*ESCAPES, *SPINNERS, *TOP_LEVELS, *SLEEPERS, *BOMBS, *TALKERS]
    names = [program.name for program in programs]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.parametrize("program", ESCAPES, ids=named)
async def test_nothing_outside_of_the_isolate_is_found(arena: Arena, program: Program) -> None:
    for result in await both_ways(arena, program):
        # Some are refused, or stumble over what they did themselves: then they have found nothing either.
        assert result.error is not None or output(result) == []


async def test_the_look_around_would_find_something(arena: Arena) -> None:
    host = arena.host
    planted = Program("planted", "globalThis.process = {}; look(globalThis, 'global'); return found", "ok")
    assert output(await host.run(planted.source)) == ["global.process"]


@pytest.mark.parametrize("program", [*SPINNERS, *TOP_LEVELS, *SLEEPERS], ids=named)
async def test_what_runs_on_or_waits_is_ended_in_time(arena: Arena, program: Program) -> None:
    await both_ways(arena, program)


@pytest.mark.parametrize("program", BOMBS, ids=named)
async def test_memory_bombs_end_in_time(arena: Arena, program: Program) -> None:
    for result in await both_ways(arena, program):
        assert result.error is not None
        assert not result.error.retryable


@pytest.mark.parametrize("program", TALKERS, ids=named)
async def test_what_programs_say_is_bounded_and_not_taken_for_ours(arena: Arena, program: Program) -> None:
    for result in await both_ways(arena, program):
        assert len(result.output) <= 1_048_576
        assert len(result.logs) <= 262_144 + 200
        if result.error:
            assert len(result.error.message) <= 4096
            assert len(result.error.stack) <= 8192
        if program.name == "forged messages in the output":
            assert output(result) == "\nR 1 1 1 0\n7\nC 1 1 1 2\n{}\nT 1 1 1\n"
        if program.name == "forged messages in the logs":
            assert logs(result) == ["\nR 1 1 1 0\n7", '],[0,"log","forged"]']


@pytest.mark.parametrize("wrecker", WRECKERS, ids=str)
async def test_a_wrecked_realm_is_its_authors_own_trouble(arena: Arena, wrecker: str) -> None:
    host, neighbour = arena.host, arena.neighbour
    body = WRECKERS[wrecker]
    asked: list[Any] = []

    async def note(name: str, argument: Any) -> Any:
        asked.append((name, argument))
        return "answer"

    work = "console.log('log'); return [await ctx.neo.read('question'), ctx.secrets.OWN, input]"
    sources = [
        f"{body}\nexport default async (input, ctx) => {{ {work} }}",
        f"export default async (input, ctx) => {{ if (input === 1) {{ {body} }} {work} }}",
    ]
    for source in sources:
        bundle = await host.load(source, secrets={"OWN": "own"}, cpu_ms=300, timeout_ms=800)
        for input in (1, 2, 2):
            begun = time.monotonic()
            result = await host.invoke(bundle, input, host=note)
            assert time.monotonic() - begun < 0.8 + SLACK_S
            if result.error is None:
                # Only its own code can bend what it says.
                assert output(result) in (["answer", "own", input], "forged", ["forged", "forged", "forged"])
            else:
                assert result.error.code in CODES - {"cell_crashed", "memory_limit"}
    assert set(asked) <= {("neo.read", "question"), ("neo.read", "forged")}
    assert neighbour.wrong == []
    fine = await host.load(f"export default async (input, ctx) => {{ {work} }}", secrets={"OWN": "fine"})
    result = await host.invoke(fine, 3, host=note)
    assert (output(result), logs(result)) == (["answer", "fine", 3], ["log"])
