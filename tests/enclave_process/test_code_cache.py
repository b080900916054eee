"""V8's code cache: used again after a restart, never believed, never needed."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from neolayer_enclave.__main__ import bundled_node
from neolayer_enclave.codecache import FOLDER, CodeCache
from neolayer_enclave.keys import derive, simulated_root
from neolayer_enclave.loading import engine
from neolayer_enclave.protocol import Check, Checked, Loads, Statistics, Stats
from tests.enclave_process.host import Host, Process, logs, output

#: Uses a part of itself, and fails at a place that a test knows.
SOURCE = """
function used(n) { return n + 1 }
function unused(n) { return n * 2 }
export default (input) => {
  if (input < 0) throw new Error('negative');
  return used(input);
}
"""


def cache(folder: Path, key: bytes = b"k" * 32, most_bytes: int = 10_000) -> CodeCache:
    return CodeCache(folder / FOLDER, key, b"engine", most_bytes=most_bytes)


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_an_entry_is_found_again_by_another_process(tmp_path: Path) -> None:
    first = cache(tmp_path)
    name = first.name("alice", b"source")
    assert first.get(name) is None
    first.put(name, b"code")
    again = cache(tmp_path)
    assert (first.get(name), again.get(name)) == (b"code", b"code")
    assert (again.hits, again.misses, again.corrupt, again.bytes) == (1, 0, 0, 36)
    path = tmp_path / FOLDER / name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_names_differ_by_tenant_source_and_engine(tmp_path: Path) -> None:
    one, other = cache(tmp_path), CodeCache(tmp_path / "other", b"k" * 32, b"another engine")
    names = {store.name(tenant, source) for store in (one, other) for tenant in "ab" for source in (b"a", b"b")}
    assert len(names) == 8


@pytest.mark.parametrize("at", [0, 31, 32, -1])
def test_a_changed_entry_is_dropped(tmp_path: Path, at: int) -> None:
    store = cache(tmp_path)
    name = store.name("alice", b"source")
    store.put(name, b"code" * 100)
    path = tmp_path / FOLDER / name
    flip(path, at)
    assert store.get(name) is None
    assert (store.corrupt, store.bytes, path.exists()) == (1, 0, False)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 100])
def test_a_cut_entry_is_dropped(tmp_path: Path, length: int) -> None:
    store = cache(tmp_path)
    name = store.name("alice", b"source")
    store.put(name, b"code" * 100)
    os.truncate(tmp_path / FOLDER / name, length)
    assert store.get(name) is None
    assert store.corrupt == 1


def test_entries_cannot_be_exchanged_nor_made_without_the_key(tmp_path: Path) -> None:
    store = cache(tmp_path)
    one, other = store.name("alice", b"one"), store.name("bob", b"other")
    store.put(one, b"of one")
    store.put(other, b"of other")
    folder = tmp_path / FOLDER
    (folder / one).write_bytes((folder / other).read_bytes())
    assert store.get(one) is None
    assert store.get(other) == b"of other"
    assert cache(tmp_path, key=b"x" * 32).get(other) is None


def test_what_was_unused_for_longest_goes_when_there_is_too_much(tmp_path: Path) -> None:
    store = cache(tmp_path, most_bytes=1_000)
    names = [store.name("alice", bytes([n])) for n in range(4)]
    for name in names[:3]:
        store.put(name, b"x" * 268)
    assert store.get(names[0]) is not None
    store.put(names[3], b"x" * 268)
    assert [store.has(name) for name in names] == [True, False, True, True]
    assert store.bytes == 900
    store.put(names[1], b"x" * 2_000)
    assert not store.has(names[1])
    smaller = cache(tmp_path, most_bytes=600)
    assert smaller.bytes <= 600
    assert len(list((tmp_path / FOLDER).iterdir())) == 2


def test_drafts_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / ".draft.1").write_bytes(b"half")
    assert cache(tmp_path).bytes == 0
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_only_the_entries(tmp_path: Path) -> None:
    store = cache(tmp_path)
    name = store.name("alice", b"source")
    (tmp_path / FOLDER / name).mkdir()
    store.put(name, b"code")
    assert store.get(name) is None


async def loads(host: Host) -> Loads:
    return (await host.ask(Stats(), Statistics)).loads


async def exercise(process: Process, tenant: str = "alice") -> Loads:
    """Call a function until its code is kept."""
    host = await Host.connect(process)
    before = await loads(host)
    bundle = await host.load(SOURCE, tenant=tenant)
    for n in range(12):
        assert output(await host.invoke(bundle, n)) == n + 1
    async with asyncio.timeout(5):
        while (await loads(host)).code_bytes == before.code_bytes:
            await asyncio.sleep(0.01)
    statistics = await loads(host)
    await host.close()
    return statistics


async def first_call(process: Process, tenant: str = "alice") -> Loads:
    host = await Host.connect(process)
    bundle = await host.load(SOURCE, tenant=tenant)
    result = await host.invoke(bundle, 1)
    assert (output(result), result.cold) == (2, True)
    failed = (await host.invoke(bundle, -1)).error
    assert failed is not None
    assert failed.stack.splitlines()[1].strip() == "at $default (hello.js:5:24)"
    statistics = await loads(host)
    await host.close()
    return statistics


async def test_code_is_used_again_after_a_restart_by_its_tenant_only(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path)
    assert (await exercise(enclave)).code_misses == 1
    await enclave.stop()
    enclave = await Process.start(tmp_path)
    statistics = await first_call(enclave)
    assert (statistics.code_hits, statistics.code_misses, statistics.code_rejected) == (2, 0, 0)
    assert statistics.prepare_us < 1_000
    assert (await first_call(enclave, "bob")).code_misses == 1
    await enclave.stop()


async def test_a_check_leaves_code_for_the_first_call(own_enclave: Process, own_host: Host) -> None:
    await own_host.ask(Check("alice", SOURCE), Checked)
    statistics = await first_call(own_enclave)
    assert (statistics.code_hits, statistics.code_misses, statistics.code_rejected) == (1, 0, 0)


async def test_damaged_code_is_counted_and_compiled_anew(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path)
    await exercise(enclave)
    await enclave.stop()
    entries = list((tmp_path / "state" / FOLDER).iterdir())
    assert len(entries) == 2  # the bootstrap's and the function's
    for entry in entries:
        flip(entry, 500)
    enclave = await Process.start(tmp_path)
    statistics = await first_call(enclave)
    assert (statistics.code_hits, statistics.code_corrupt, statistics.code_rejected) == (0, 2, 0)
    await enclave.stop()


async def test_code_that_v8_refuses_is_counted_dropped_and_compiled_anew(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path)
    await exercise(enclave)
    await enclave.stop()
    node = bundled_node()
    assert node
    state = tmp_path / "state"
    store = CodeCache(state / FOLDER, derive(simulated_root(state)).code, engine(node))
    name = store.name("alice", SOURCE.encode())
    program = store.get(name)
    assert program
    # V8's own check sum stands in the first words of the code, which follows the script's text.
    code_at = 5 + int.from_bytes(program[1:5], "little")
    store.put(name, program[:code_at] + bytes(64) + program[code_at + 64 :])
    enclave = await Process.start(tmp_path)
    assert (await first_call(enclave)).code_rejected == 1
    await enclave.stop()
    assert not CodeCache(state / FOLDER, b"", b"").has(name)


async def test_without_the_cache_nothing_is_kept(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path, "--no-code-cache")
    for tenant in ("alice", "alice", "bob"):
        host = await Host.connect(enclave)
        bundle = await host.load(SOURCE, tenant=tenant)
        assert [output(await host.invoke(bundle, n)) for n in range(12)] == list(range(1, 13))
        statistics = await loads(host)
        await host.close()
    assert (statistics.code_hits, statistics.code_misses, statistics.code_bytes) == (0, 0, 0)
    assert statistics.cold_starts == 3
    assert not (tmp_path / "state" / FOLDER).exists()
    await enclave.stop()


PROGRAMS = [
    "export default (input) => ({ input, text: 'ü€😀' })",
    "console.log('loaded'); let n = 0; export default () => { console.log('called', ++n); return n }",
    "function deep(n) { if (n === 0) throw new RangeError('deep'); deep(n - 1) }\nexport default () => deep(3)",
    "export default async (input, ctx) => { await null; return ctx.secrets.MISSING }",
    "export default (input: { a: number }): number => input.a.b.c",
    "throw new Error('top'); export default () => 1",
    "export default () => { for (;;); }",
    "export default () => 10n",
    "const value = await Promise.resolve(5); export { f as default }; async function f() { return value }",
]


async def answers(process: Process) -> list[object]:
    """What a host sees of each program's first three calls, times left out."""
    host = await Host.connect(process)
    seen: list[object] = []
    for source in PROGRAMS:
        bundle = await host.load(source, cpu_ms=100)
        for _ in range(3):
            result = await host.invoke(bundle, {"a": {}})
            seen.append((source, result.output, result.error, logs(result)))
        # Makes what is kept of it once it is exercised.
        for _ in range(10):
            await host.invoke(bundle, {"a": {}})
        await asyncio.sleep(0.05)
    await host.close()
    return seen


async def test_answers_are_the_same_without_with_empty_and_with_full_cache(tmp_path: Path) -> None:
    seen = []
    for options in (("--no-code-cache", "--no-warm-up"), (), ()):
        enclave = await Process.start(tmp_path, *options)
        seen.append(await answers(enclave))
        await enclave.stop()
    assert seen[0] == seen[1] == seen[2]
